package qcow2

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// File is the image file as the engine uses it: a page cache over a disk. A
// write is visible to every reader at once and durable after the next Sync.
// *OSFile is one; a crash simulation is another.
type File interface {
	io.ReaderAt
	io.WriterAt
	// WriteDurable writes p at off and returns when p is on stable storage.
	// It says nothing about earlier writes elsewhere.
	WriteDurable(p []byte, off int64) error
	// Sync makes everything written, truncated and punched before the call
	// durable, including the length of the file (fdatasync).
	Sync() error
	// Truncate sets the length in bytes; what it adds reads as zeros.
	Truncate(size int64) error
	// Size returns the length in bytes.
	Size() (int64, error)
	// Punch makes [off, off+n) read as zeros and gives its space back to the
	// file system where that is possible. It never changes the length.
	Punch(off, n int64) error
	Close() error
}

// OSFile is a File in a file system of this machine.
type OSFile struct {
	*os.File
	noPunch atomic.Bool // the file system cannot punch holes: zeros are written
	counts  syncCounts

	direct *os.File // the way of data clusters, if it is not the page cache
	needs  Direct
}

// NewOSFile takes over f.
func NewOSFile(f *os.File) *OSFile { return &OSFile{File: f} }

// WriteDurable writes with RWF_DSYNC.
func (f *OSFile) WriteDurable(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwritev2(int(f.Fd()), [][]byte{p}, off, unix.RWF_DSYNC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "durable write", Path: f.Name(), Err: err}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// isHole reports whether [off, off+n) is known to read as zeros without being
// read. A sparse file of a few kilobytes can have tables for days of reading.
func isHole(f File, off, n int64) bool {
	h, ok := f.(interface{ isHole(off, n int64) bool })
	return ok && h.isHole(off, n)
}

func (f *OSFile) isHole(off, n int64) bool {
	data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	return errors.Is(err, unix.ENXIO) || err == nil && data >= off+n
}

// dropCache makes what is read next come from the disk. It is a hint that the
// kernel follows where nothing is dirty or in use.
func (f *OSFile) dropCache() { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }

// Sync is fdatasync.
func (f *OSFile) Sync() (err error) {
	defer func(begun time.Time) { f.counts.ended(time.Since(begun), err) }(time.Now())
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
		return nil
	}
}

// Size returns the length of the file in bytes.
func (f *OSFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Punch deallocates, or writes zeros where the file system cannot.
func (f *OSFile) Punch(off, n int64) error {
	if n <= 0 {
		return nil
	}
	if f.direct != nil {
		return f.punchDirect(off, n)
	}
	if ok, err := f.deallocate(off, n); ok || err != nil {
		return err
	}
	return f.zero(off, n)
}

// deallocate punches a hole; ok is false where the file system cannot.
func (f *OSFile) deallocate(off, n int64) (ok bool, err error) {
	for !f.noPunch.Load() {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			f.noPunch.Store(true)
		default:
			return false, fmt.Errorf("punch hole of %d bytes at %d in %s: %w", n, off, f.Name(), err)
		}
	}
	return false, nil
}

func (f *OSFile) zero(off, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	n = min(n, size-off) // beyond the end it reads as zeros already
	buf := make([]byte, min(max(n, 0), 1<<20))
	for n > 0 {
		k, err := f.WriteAt(buf[:min(n, int64(len(buf)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}
