package ublk

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// buffers are the data buffers of a queue, one for every tag, outside the Go
// heap. They are handed out last in, first out, so that a queue touches as
// much memory as it ever had requests in flight, and finds it in the cache.
type buffers struct {
	arena []byte
	size  int
	free  []int // indices, the next one last
}

func (b *buffers) open(n, size int) error {
	arena, err := unix.Mmap(-1, 0, n*size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("ublk: map %d buffers of %d bytes: %w: use a smaller queue depth or largest request", n, size, err)
	}
	b.arena, b.size = arena, size
	b.free = make([]int, n)
	for i := range b.free {
		b.free[i] = n - 1 - i
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
