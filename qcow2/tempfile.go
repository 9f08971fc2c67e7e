package qcow2

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// tempFile is a file that gets its name when it is complete. Where the file
// system can, it has none before and is gone with the process that writes it;
// elsewhere it has a hidden one beside its later name.
type tempFile struct {
	*os.File
	dir, temp string
	named     bool // temp is there
}

// openTemp makes the file that is to replace path.
func openTemp(path string, mode fs.FileMode) (*tempFile, error) {
	t := &tempFile{dir: filepath.Dir(path)}
	t.temp = filepath.Join(t.dir, fmt.Sprintf(".%s.%s.tmp", filepath.Base(path), rand.Text()[:8]))
	fd, err := unix.Open(t.dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, uint32(mode))
	if err == nil {
		t.File = os.NewFile(uintptr(fd), path) // so that errors name it
		return t, nil
	}
	if t.File, err = os.OpenFile(t.temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode); err != nil {
		var perr *os.PathError
		if errors.As(err, &perr) {
			perr.Path = path
		}
		return nil, err
	}
	t.named = true
	return t, nil
}

// publish gives the file its name, whatever has it now, and makes that durable.
func (t *tempFile) publish(path string) error {
	if !t.named {
		if err := t.link(); err != nil {
			return fmt.Errorf("name the new image %s: %w", path, err)
		}
		t.named = true
	}
	if err := os.Rename(t.temp, path); err != nil {
		return err
	}
	t.named = false
	d, err := os.Open(t.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// link gives an unnamed file the temporary name: no call replaces another file
// by an unnamed one.
func (t *tempFile) link() error {
	proc := fmt.Sprintf("/proc/self/fd/%d", t.Fd())
	err := unix.Linkat(unix.AT_FDCWD, proc, unix.AT_FDCWD, t.temp, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, syscall.ENOENT) { // no /proc: root can do without
		err = unix.Linkat(int(t.Fd()), "", unix.AT_FDCWD, t.temp, unix.AT_EMPTY_PATH)
	}
	return err
}

// discard closes the file and removes what has not been published.
func (t *tempFile) discard() error {
	err := t.Close()
	if t.named {
		err = errors.Join(err, os.Remove(t.temp))
	}
	return err
}
