package ublk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/uring"
)

// ErrAgain is a device whose last server died on its way through Recover when it
// had fetched the tags of some queues and not of others. That is in order as soon
// as this process has ended; then another one can recover the device.
var ErrAgain = errors.New("its last server died while it took the device over, which this attempt has put in order: try again")

// ioNobodys is an I/O command that no driver knows.
const ioNobodys = ioFetchReq&^0xff00 | 'q'<<8

// finishFetching makes sure that START_USER_RECOVERY can be sent to a kernel
// without PER_IO_DAEMON. That takes the reference to the last thread away from
// each queue, and with Linux 6.12 a queue that has none is a null pointer, at
// which the kernel breaks with the device locked. Either no queue has had a
// thread since the last START_USER_RECOVERY, then the kernel refuses the next,
// or all of them must have: those that have not get one of this process, whose
// end is the death of it. The result is ErrAgain then.
func (d *Device) finishFetching(ctx context.Context) error {
	fd, err := openChar(ctx, d.id)
	if errors.Is(err, syscall.EBUSY) {
		return errDying
	}
	if err != nil {
		return err
	}
	fresh, err := threadless(fd, d.cfg.Queues)
	if err != nil || len(fresh) == 0 || len(fresh) == d.cfg.Queues {
		unix.Close(fd)
		return err
	}
	// Only now the number cannot go to another device any more.
	info, err := d.ctl.Info(ctx, d.id)
	if err == nil {
		err = recoverable(info, d.mark)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	d.charFD = fd
	fetched := make(chan error)
	go func() {
		runtime.LockOSThread()
		for _, id := range fresh {
			q := newQueue(d, id)
			fetched <- errors.Join(q.open(), q.fetch())
		}
		select {} // with the rings, until the process ends
	}()
	for range fresh {
		if err := <-fetched; err != nil {
			return fmt.Errorf("fetch what the last server has not: %w", err)
		}
	}
	return ErrAgain
}

// threadless lists the queues without a thread, dead or alive. The kernel looks
// whether a command comes from the queue's thread before it looks at the command.
func threadless(charFD, queues int) (ids []uint16, err error) {
	ring, err := uring.New(uint32(queues), 0)
	if err != nil {
		return nil, err
	}
	defer ring.Close()
	for i := range queues {
		cmd := ioCmd{QID: uint16(i), Result: -1}
		if err := ring.Cmd(uring.FD(charFD), ioNobodys, (*[16]byte)(unsafe.Pointer(&cmd)), 0, uint64(i)); err != nil {
			return nil, err
		}
	}
	for left := queues; left > 0; {
		if err := ring.SubmitAndWait(1); err != nil {
			return nil, err
		}
		ring.ForEach(func(c uring.CQE) {
			left--
			switch e := syscall.Errno(-c.Res); e {
			case syscall.EINVAL:
			case syscall.EOPNOTSUPP:
				ids = append(ids, uint16(c.Data))
			default:
				err = errors.Join(err, fmt.Errorf("ask queue %d for its thread: %w", c.Data, os.NewSyscallError("io_uring_enter", e)))
			}
		})
	}
	return ids, err
}
