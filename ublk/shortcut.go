package ublk

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// shortcut moves data of the data file that needs no waiting, at once and
// without the ring: what is in the page cache on file systems that can tell
// (RWF_NOWAIT), and everything on one that lives in memory. io_uring would
// hand the latter, and what such a file system cannot promise, to a kernel
// thread. What is not moved here goes through the ring.
type shortcut struct {
	fd          uintptr
	memory      bool // the file system has nothing to wait for
	read, write bool // still worth trying
	iov         unix.Iovec
}

// open looks at the file. One that is open for O_DIRECT waits for the disk in
// every call.
func (s *shortcut) open(fd int) {
	s.fd = uintptr(fd)
	flags, err := unix.FcntlInt(s.fd, unix.F_GETFL, 0)
	if err != nil || flags&unix.O_DIRECT != 0 {
		return
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return
	}
	s.memory = fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC
	s.read, s.write = true, true
}

// move reads or writes mem at off of the file and returns how much it moved:
// possibly nothing, whatever the reason. The ring finds out errors.
func (s *shortcut) move(read bool, mem []byte, off int64) int {
	worth := &s.write
	if read {
		worth = &s.read
	}
	if !*worth {
		return 0
	}
	n, errno := s.call(read, mem, off)
	switch errno {
	case 0:
		return n
	case syscall.EOPNOTSUPP, syscall.ENOSYS, syscall.EINVAL:
		*worth = false // the file system cannot tell whether it would wait
	}
	return 0
}

func (s *shortcut) call(read bool, mem []byte, off int64) (int, syscall.Errno) {
	if s.memory {
		trap := uintptr(unix.SYS_PWRITE64)
		if read {
			trap = unix.SYS_PREAD64
		}
		n, _, errno := syscall.RawSyscall6(trap, s.fd, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(off), 0, 0)
		return int(n), errno
	}
	trap := uintptr(unix.SYS_PWRITEV2)
	if read {
		trap = unix.SYS_PREADV2
	}
	s.iov.Base = &mem[0]
	s.iov.SetLen(len(mem))
	n, _, errno := syscall.RawSyscall6(trap, s.fd, uintptr(unsafe.Pointer(&s.iov)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	return int(n), errno
}
