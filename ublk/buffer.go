package ublk

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readyBuffers are the data buffers of a queue that have their memory from the
// beginning: enough for it to go on when the machine has none left.
const readyBuffers = 8

// buffers are the data buffers of a queue, one for every tag, outside the Go
// heap. They are handed out last in, first out, so that a queue touches as
// much memory as it ever had requests in flight, and finds it in the cache.
// What it has touched stays in memory.
type buffers struct {
	arena []byte
	size  int
	free  []int // indices, the next one last
}

// buffersMemory is what the buffers of n tags take, in bytes: from the beginning, and at
// most.
func buffersMemory(n, size int) (ready, most int) { return min(n, readyBuffers) * size, n * size }

func (b *buffers) open(n, size int) error {
	arena, err := unix.Mmap(-1, 0, n*size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("ublk: map %d buffers of %d bytes: %w: use a smaller queue depth or largest request", n, size, err)
	}
	b.arena, b.size = arena, size
	ready, _ := buffersMemory(n, size)
	if err := unix.Madvise(arena[:ready], unix.MADV_POPULATE_WRITE); err != nil {
		return fmt.Errorf("ublk: get %d bytes of memory for buffers: %w: use a smaller queue depth or largest request", ready, err)
	}
	b.free = make([]int, n)
	for i := range b.free {
		b.free[i] = n - 1 - i
	}
	return nil
}

// lock keeps what has been touched, and what will be, from being swapped out:
// the way to a swap file could be through the device itself.
func (b *buffers) lock() error {
	_, _, errno := unix.Syscall(unix.SYS_MLOCK2, uintptr(unsafe.Pointer(&b.arena[0])), uintptr(len(b.arena)), unix.MLOCK_ONFAULT)
	if errno != 0 {
		return fmt.Errorf("lock %d bytes of buffers into memory (needs CAP_IPC_LOCK): %w", len(b.arena), errno)
	}
	return nil
}

// take hands out buffer i.
func (b *buffers) take() (i int, buf []byte) {
	i = b.free[len(b.free)-1]
	b.free = b.free[:len(b.free)-1]
	return i, b.arena[i*b.size : (i+1)*b.size : (i+1)*b.size]
}

// give takes buffer i back.
func (b *buffers) give(i int) { b.free = append(b.free, i) }

func (b *buffers) close() {
	if b.arena != nil {
		unix.Munmap(b.arena)
		b.arena = nil
	}
}
