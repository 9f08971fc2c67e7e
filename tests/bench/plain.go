package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// plainFile makes a file of the size of a device, without any server: what the
// memory itself costs in which images lie. Of a fresh one nothing is allocated.
func plainFile(allocated bool) func(*bench) (*device, error) {
	return func(b *bench) (*device, error) {
		path := b.path("plain")
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, err
		}
		if allocated {
			err = unix.Fallocate(int(f.Fd()), 0, 0, sizeMiB<<20)
		} else {
			err = f.Truncate(sizeMiB << 20)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("plain file: %w", err)
		}
		return &device{path, func() error { return os.Remove(path) }}, nil
	}
}
