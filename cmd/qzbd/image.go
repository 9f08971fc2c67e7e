package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/qcow2"
)

// openImage opens and locks an image. The lock belongs to the returned file.
func openImage(path string, write bool, lock func(f *os.File, write bool) error) (*os.File, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := openFile(path, flag)
	if err != nil {
		return nil, err
	}
	if err := lockImage(f, write, lock); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// Before the lock, create may have put another file in its place.
	now, err := os.Stat(path)
	if err != nil {
		return nil, errors.Join(explainOpen(err), f.Close())
	}
	if st, err := f.Stat(); err != nil || !os.SameFile(now, st) {
		return nil, errors.Join(err, fmt.Errorf("%s has just been replaced by another file: try again", path), f.Close())
	}
	return f, nil
}

// openFile opens a regular file. Anything else is refused before it is opened,
// which may wait for ever.
func openFile(path string, flag int) (*os.File, error) {
	st, err := os.Stat(path)
	switch {
	case path == "":
		return nil, errors.New("the name of the image is empty")
	case err != nil:
		return nil, explainOpen(err)
	case st.IsDir():
		return nil, fmt.Errorf("%s is a directory: name the image in it", path)
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is a %s and no regular file: an image is one", path, kindOf(st.Mode()))
	case st.Size() == 0:
		return nil, fmt.Errorf("%s is empty: `qzbd create` makes an image of it", path)
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, explainOpen(err)
	}
	return f, nil
}

// explainOpen says what helps against an error of open or stat.
func explainOpen(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: `qzbd create` makes an image", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: run as root (sudo), or allow it with chmod", err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: `qzbd attach --read-only` and `qzbd check` need no writing", err)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w: a part of the path is a file", err)
	}
	return err
}

// kindOf names what is no regular file.
func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeNamedPipe != 0:
		return "FIFO"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeCharDevice != 0:
		return "character device"
	case m&fs.ModeDevice != 0:
		return "block device"
	}
	return "special file"
}

// lockWait is how long the kernel may hold on to what a killed process had open: its
// io_uring goes later than the process.
const lockWait = 2 * time.Second

// lockImage locks an image. It waits a moment for one that nobody has open any more.
func lockImage(f *os.File, write bool, lock func(f *os.File, write bool) error) error {
	for deadline := time.Now().Add(lockWait); ; time.Sleep(lockWait / 50) {
		err := lock(f, write)
		if !errors.Is(err, qcow2.ErrInUse) {
			return err
		}
		if err, known := explainInUse(err, f); known || time.Now().After(deadline) {
			return err
		}
	}
}

// explainInUse says who has the image open: one of our devices, or other
// processes. If none is known, it may be that there is none any more.
func explainInUse(err error, f *os.File) (explained error, known bool) {
	if list, _ := findStates(f.Name()); len(list) > 0 && list[0].alive() {
		return fmt.Errorf("%s is attached as %s: detach it first", f.Name(), devicesOf(list)), true
	}
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return err, false
	}
	who := openersOf(func(o *unix.Stat_t) bool { return o.Dev == st.Dev && o.Ino == st.Ino })
	if len(who) == 0 {
		return fmt.Errorf("%w: close it there", err), false
	}
	return fmt.Errorf("%w (%s): close it there", err, strings.Join(who, ", ")), true
}
