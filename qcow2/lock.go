package qcow2

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// QEMU's scheme for image files (block/file-posix.c, raw_apply_lock_bytes): a
// permission that is held is a shared lock on the byte lockHeld + permission,
// one that is not granted to others a shared lock on lockDenied + permission.
// Who has taken its own locks tests the opposite bytes for locks of others.
// Exclusive locks there would break the scheme, so nobody ever takes one.
const (
	lockHeld   = 100
	lockDenied = 200

	permRead   = 0 // consistent read
	permWrite  = 1
	permResize = 3
)

// ErrInUse is wrapped by Lock's error when another open of the file is in the
// way.
var ErrInUse = errors.New("the image is in use by another process")

// ErrNoLocks is wrapped by Lock's error when the file system has no locks of
// open file descriptions: then nothing keeps a second writer out.
var ErrNoLocks = errors.New("the file system has no open file description locks")

// Lock keeps other programs, QEMU's among them, from writing to the image
// while f, or a duplicate of it, is open, and with write also from opening it
// in a way that needs an image at rest (I14). The locks belong to the open file
// description: two opens exclude each other in one process, too, and a child
// that inherits f holds them on. A failed Lock leaves no locks behind. f must be
// readable.
func Lock(f *os.File, write bool) error {
	held, denied := []int64{permRead}, []int64{permWrite, permResize}
	if write {
		held = append(held, permWrite, permResize)
	}
	err := lockBytes(f, held, denied)
	if err != nil {
		return errors.Join(err, unlockBytes(f))
	}
	return nil
}

func lockBytes(f *os.File, held, denied []int64) error {
	for _, p := range held {
		if err := setLock(f, unix.F_RDLCK, lockHeld+p, 1); err != nil {
			return err
		}
	}
	for _, p := range denied {
		if err := setLock(f, unix.F_RDLCK, lockDenied+p, 1); err != nil {
			return err
		}
	}
	for _, p := range held {
		if busy, err := lockedByOther(f, lockDenied+p); err != nil {
			return err
		} else if busy {
			return fmt.Errorf("%s: %w, which does not share %s access", f.Name(), ErrInUse, permName(p))
		}
	}
	for _, p := range denied {
		if busy, err := lockedByOther(f, lockHeld+p); err != nil {
			return err
		} else if busy {
			return fmt.Errorf("%s: %w, which has %s access", f.Name(), ErrInUse, permName(p))
		}
	}
	return nil
}

func permName(p int64) string {
	switch p {
	case permRead:
		return "read"
	case permWrite:
		return "write"
	default:
		return "resize"
	}
}

// unlockBytes drops all locks of the scheme.
func unlockBytes(f *os.File) error {
	err := setLock(f, unix.F_UNLCK, lockHeld, 2*(lockDenied-lockHeld))
	if errors.Is(err, ErrNoLocks) {
		return nil
	}
	return err
}

func setLock(f *os.File, kind int16, off, n int64) error {
	return lockError(f, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: off, Len: n}))
}

// lockedByOther asks for an exclusive lock without taking it.
func lockedByOther(f *os.File, off int64) (bool, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: off, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return false, lockError(f, err)
	}
	return l.Type != unix.F_UNLCK, nil
}

func lockError(f *os.File, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: %w, which has locked it exclusively", f.Name(), ErrInUse)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%s: %w (%w): nothing would keep another program from writing to the image", f.Name(), ErrNoLocks, err)
	default:
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
}
