package uring

import (
	"fmt"
	"runtime"
	"unsafe"
)

// registerFiles is IORING_REGISTER_FILES.
const registerFiles = 2

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
