package qcow2

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Metadata is written in place, much of it when a request has been answered
// already: lack of space there would fail the image. A fresh image of ours has
// all its tables written; one that another program has made, or that was copied
// sparsely, has holes. So whatever is going to be written in place gets its
// space first, where that can still refuse a single request.

// reserveTables reserves what the header names.
func (im *Image) reserveTables() error {
	for _, p := range im.header().places() {
		if p.off == 0 {
			continue // nothing but its first sector is written, which is there
		}
		if err := reserveRange(im.f, p.off, p.n); err != nil {
			return fmt.Errorf("reserve space for %s: %w", p.name, err)
		}
	}
	return nil
}

// reserveMeta reserves the table or refcount block at off. The token is held.
func (im *Image) reserveMeta(off int64) error {
	if c := off >> im.clusterBits; !im.reserved.has(c) {
		if err := reserveRange(im.f, off, im.cs); err != nil {
			return fmt.Errorf("reserve space for metadata: %w", err)
		}
		_ = im.reserved.set(c) // what it does not remember is asked for again
	}
	return nil
}

// reserveRange makes writes to [off, off+n) need no more space, as far as the
// file system can tell. What is there stays, and nobody writes there meanwhile.
func reserveRange(f File, off, n int64) error {
	r, ok := f.(reserver)
	if !ok {
		return nil
	}
	err := r.Reserve(off, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return rewrite(f, off, n)
	}
	return err
}

// rewrite writes what is there.
func rewrite(f File, off, n int64) error {
	buf := make([]byte, min(n, 1<<20))
	for end := off + n; off < end; off += int64(len(buf)) {
		buf = buf[:min(end-off, int64(len(buf)))]
		if err := readPadded(f, buf, off); err != nil {
			return err
		}
		if _, err := f.WriteAt(buf, off); err != nil {
			return err
		}
	}
	return nil
}
