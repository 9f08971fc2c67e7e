package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// What lies below /run/qzbd is believed, so nobody else may have put it there.
// Directories are 0755 and records 0644: who is not root must be able to see that
// an image waits for a server before changing it, and sees no more than ps shows
// of servers that live. All else is 0600, whatever the umask. No symlink is
// followed: a directory that passes checkDir changes only by its owner, the last
// part of a path is opened by openOwn, and removing, renaming and linking do not
// follow it.

// checkDir returns an error unless path is a directory that only root and our
// user can change.
func checkDir(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is no directory, so qzbd did not make it: remove it", path)
	case !trusted(st.Uid):
		return fmt.Errorf("%s belongs to user %d, so what is in it cannot be believed: remove it", path, st.Uid)
	case st.Mode&0o022 != 0:
		return fmt.Errorf("%s can be changed by others (mode %04o), so what is in it cannot be believed: remove it", path, st.Mode&0o7777)
	}
	return nil
}

// checkStateDir is checkDir for the directory of a device and the one it is in.
func checkStateDir(id int) error {
	if err := checkDir(stateRoot); err != nil {
		return err
	}
	return checkDir(stateDir(id))
}

// makeDir makes the directory path, or checks the one that is there.
func makeDir(path string) error {
	err := os.Mkdir(path, 0o755)
	switch {
	case errors.Is(err, fs.ErrExist):
		return checkDir(path)
	case err != nil:
		return err
	}
	return os.Chmod(path, 0o755)
}

// makeStateDir makes the directory of a device that has just got its number.
// What an earlier device of that number has left is nobody's any more.
func makeStateDir(id int) error {
	if err := makeDir(stateRoot); err != nil {
		return err
	}
	if err := removeStateDir(id); err != nil {
		return err
	}
	return makeDir(stateDir(id))
}

// removeStateDir removes all there is under the number.
func removeStateDir(id int) error {
	if err := checkDir(stateRoot); err != nil {
		return err
	}
	return os.RemoveAll(stateDir(id))
}

// openOwn opens a regular file of ours or root's in a directory that has been
// checked. One that it makes has the mode perm.
func openOwn(path string, flag int, perm fs.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, perm)
	if errors.Is(err, unix.ELOOP) {
		err = fmt.Errorf("%s is a symlink, so qzbd did not make it: remove it", path)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || !trusted(st.Uid)) {
		err = fmt.Errorf("%s is no file that qzbd has made (mode %o, user %d): remove it", path, st.Mode, st.Uid)
	}
	if err == nil && flag&os.O_CREATE != 0 {
		err = f.Chmod(perm)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// replaceOwn makes the content of a file in a directory that has been checked b,
// all at once.
func replaceOwn(path string, b []byte, perm fs.FileMode) error {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := openOwn(fresh, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(fresh, path)
}

// stateIDs returns the numbers under which there is something.
func stateIDs() ([]int, error) {
	err := checkDir(stateRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(stateRoot)
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, e := range entries {
		if id, err := strconv.Atoi(e.Name()); err == nil && id >= 0 && strconv.Itoa(id) == e.Name() {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
