package uring

import (
	"fmt"
	"runtime"
	"unsafe"
)

// enum io_uring_register_op, as far as used.
const (
	registerFiles   = 2
	unregisterFiles = 3
)

// RegisterFiles registers the descriptors as files 0, 1, … of the ring, once.
// The ring holds them open until it is closed. Registered files spare each
// operation the look-up and the reference count.
func (r *Ring) RegisterFiles(fds ...int) error {
	if len(fds) == 0 {
		return nil
	}
	// The kernel reads 32-bit numbers; giouring would hand it Go's ints.
	table := make([]int32, len(fds))
	for i, fd := range fds {
		table[i] = int32(fd)
	}
	_, errno := r.ring.Register(r.ring.RingFd(), registerFiles, unsafe.Pointer(&table[0]), uint32(len(table)))
	runtime.KeepAlive(table)
	if errno != 0 {
		return fmt.Errorf("uring: register %d files: %w", len(fds), errno)
	}
	return nil
}

// UnregisterFiles lets go of the registered files, and so of the locks that go
// with them. Close does that too, but the kernel then takes its time. It waits
// for what is in flight on them.
func (r *Ring) UnregisterFiles() error {
	if _, errno := r.ring.Register(r.ring.RingFd(), unregisterFiles, nil, 0); errno != 0 {
		return fmt.Errorf("uring: unregister files: %w", errno)
	}
	return nil
}

// RegisterBuffers gives the ring places for n registered buffers, once. Drivers put
// buffers there (UBLK_F_AUTO_BUF_REG).
func (r *Ring) RegisterBuffers(n int) error {
	if _, err := r.ring.RegisterBuffersSparse(uint32(n)); err != nil {
		return fmt.Errorf("uring: register places for %d buffers: %w", n, err)
	}
	return nil
}
