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

// publish gives the file its name and makes that durable. old, which is open
// and locked, loses the name; nil means that nothing has it.
func (t *tempFile) publish(path string, old *os.File) error {
	var err error
	switch {
	case old != nil:
		err = t.replace(path, old)
	case t.named:
		err = unix.Renameat2(unix.AT_FDCWD, t.temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
		if errors.Is(err, syscall.EINVAL) { // the file system cannot: as well as it goes
			if _, serr := os.Lstat(path); serr == nil {
				err = syscall.EEXIST
			} else {
				err = os.Rename(t.temp, path)
			}
		}
	default:
		err = t.link(path)
	}
	switch {
	case errors.Is(err, syscall.EEXIST):
		return fmt.Errorf("%s has been made by somebody else meanwhile and was left as it is: choose another name", path)
	case err != nil:
		return fmt.Errorf("name the new image %s: %w", path, err)
	}
	t.named = false
	d, err := os.Open(t.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// replace takes the name from old. No call does that with an unnamed file, which
// gets the temporary name first.
func (t *tempFile) replace(path string, old *os.File) error {
	if !t.named {
		if err := t.link(t.temp); err != nil {
			return err
		}
		t.named = true
	}
	if err := stillThere(path, old); err != nil {
		return err
	}
	return os.Rename(t.temp, path)
}

// link gives an unnamed file a name that is free.
func (t *tempFile) link(path string) error {
	proc := fmt.Sprintf("/proc/self/fd/%d", t.Fd())
	err := unix.Linkat(unix.AT_FDCWD, proc, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, syscall.ENOENT) { // no /proc: root can do without
		err = unix.Linkat(int(t.Fd()), "", unix.AT_FDCWD, path, unix.AT_EMPTY_PATH)
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
