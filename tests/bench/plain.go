package main

import (
	"errors"
	"fmt"
	"io"
	"os"
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
		err = f.Truncate(sizeMiB << 20)
		if allocated && err == nil {
			err = writeZeros(f, sizeMiB)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("plain file: %w", err)
		}
		return &device{path, func() error { return os.Remove(path) }}, nil
	}
}

// writeZeros writes so many MiB.
func writeZeros(w io.Writer, mib int) error {
	zeros := make([]byte, 1<<20)
	for range mib {
		if _, err := w.Write(zeros); err != nil {
			return err
		}
	}
	return nil
}
