package uring

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Data values that the ring keeps for itself; nobody else sees their CQEs.
const (
	wakeData  = ^uint64(0)
	quietData = ^uint64(0) - 1
	// MaxData is the largest Data that a caller may use.
	MaxData = ^uint64(0) - 2
)

// cqeMore is IORING_CQE_F_MORE: a multishot request goes on.
const cqeMore = 1 << 1

// initWake makes the eventfd and queues the poll that listens to it. The poll
// is multishot and edge-triggered: the counter is never read. It is the ring's first SQE.
func (r *Ring) initWake() (*sqe, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("uring: make the eventfd that wakes a ring: %w", err)
	}
	r.eventfd = fd
	return r.armWake()
}

func (r *Ring) armWake() (*sqe, error) {
	s, err := r.slot()
	if err != nil {
		return nil, err
	}
	s.opcode = opPollAdd
	s.fd = int32(r.eventfd)
	s.len = 1               // IORING_POLL_ADD_MULTI
	s.opFlags = unix.POLLIN // poll32_events, little endian
	s.data = wakeData
	return s, nil
}

// wokenUp handles the CQE of the poll. The flag falls before the caller looks
// for what it was woken for, so no wake-up is lost.
func (r *Ring) wokenUp(c CQE) {
	r.waking.Store(false)
	r.woken = true
	if c.Flags&cqeMore == 0 && c.Res != -int32(unix.ECANCELED) {
		// The kernel ended the multishot; without a slot for a new one the
		// next submit fails too and its caller learns why.
		_, _ = r.armWake()
	}
}

// Wake ends a SubmitAndWait, the present or the next one. Any goroutine may
// call it, also after Close. A burst costs one system call.
func (r *Ring) Wake() {
	if r.waking.Swap(true) {
		return
	}
	r.wakeMu.Lock()
	defer r.wakeMu.Unlock()
	if r.eventfd < 0 {
		return
	}
	one := uint64(1)
	unix.RawSyscall(unix.SYS_WRITE, uintptr(r.eventfd), uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one))
}

func (r *Ring) closeWake() {
	r.wakeMu.Lock()
	defer r.wakeMu.Unlock()
	if r.eventfd >= 0 {
		unix.Close(r.eventfd)
		r.eventfd = -1
	}
}
