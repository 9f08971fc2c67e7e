package zbdtest

import (
	"fmt"
	"runtime"
	"structs"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// iocb is struct iocb of linux/aio_abi.h.
type iocb struct {
	_      structs.HostLayout
	data   uint64
	_      uint64 // aio_key, aio_rw_flags
	opcode uint16
	_      int16 // aio_reqprio
	fd     uint32
	buf    unsafe.Pointer
	nbytes uint64
	offset int64
	_      uint64 // aio_reserved2
	_      uint64 // aio_flags, aio_resfd
}

var _ = [1]int{}[unsafe.Sizeof(iocb{})-64]

// ioEvent is struct io_event.
type ioEvent struct {
	_         structs.HostLayout
	data, obj uint64
	res, res2 int64
}

const iocbPwrite = 1 // IOCB_CMD_PWRITE

// queue submits n writes of some bytes each, one behind the other, in one
// system call, and waits for all.
func (d *BlockDevice) queue(stamp uint64, at, bytes int64, n int) ([]error, error) {
	var ctx uintptr
	if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, uintptr(n), uintptr(unsafe.Pointer(&ctx)), 0); e != 0 {
		return nil, fmt.Errorf("io_setup: %w", e)
	}
	defer unix.Syscall(unix.SYS_IO_DESTROY, ctx, 0, 0)
	data := painted(stamp, at, bytes*int64(n))
	blocks := make([]iocb, n)
	pointers := make([]*iocb, n)
	for i := range blocks {
		off := int64(i) * bytes
		blocks[i] = iocb{
			data: uint64(i), opcode: iocbPwrite, fd: uint32(d.fd),
			buf: unsafe.Pointer(&data[off]), nbytes: uint64(bytes), offset: at + off,
		}
		pointers[i] = &blocks[i]
	}
	done, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, ctx, uintptr(n), uintptr(unsafe.Pointer(&pointers[0])))
	if e != 0 || int(done) != n {
		return nil, fmt.Errorf("io_submit: %d of %d: %w", done, n, e)
	}
	errs := make([]error, n)
	events := make([]ioEvent, n)
	for got := 0; got < n; {
		k, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, ctx, 1, uintptr(n), uintptr(unsafe.Pointer(&events[0])), 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return nil, fmt.Errorf("io_getevents: %w", e)
		}
		for _, v := range events[:k] {
			switch {
			case v.res < 0:
				errs[v.data] = syscall.Errno(-v.res)
			case v.res != bytes:
				errs[v.data] = fmt.Errorf("%d bytes of %d", v.res, bytes)
			}
		}
		got += int(k)
	}
	runtime.KeepAlive(pointers)
	runtime.KeepAlive(data)
	return errs, nil
}
