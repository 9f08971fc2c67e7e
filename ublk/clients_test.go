//go:build kernel

package ublk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// clients write, read and reset the zones of a node from threads of their own.
// They know what they were told was written, and stop at the first error.
type clients struct {
	t     testing.TB
	node  string
	size  int64
	ended sync.WaitGroup

	mu    sync.Mutex
	moved sync.Cond
	ops   []int     // by client
	last  time.Time // of the last answer
	quit  bool
	err   error
}

func startClients(t testing.TB, node string, conventional int, size int64, seed uint64) *clients {
	c := &clients{t: t, node: node, size: size, ops: make([]int, heirZones)}
	c.moved.L = &c.mu
	for i := range heirZones {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		work := c.sequential
		if i < conventional {
			work = c.conventional
		}
		c.ended.Go(func() {
			if err := work(i, rng); err != nil {
				c.mu.Lock()
				c.err = errors.Join(c.err, fmt.Errorf("client %d: %w", i, err))
				c.moved.Broadcast()
				c.mu.Unlock()
			}
		})
	}
	t.Cleanup(c.stop)
	return c
}

// answered counts an operation and says whether to go on.
func (c *clients) answered(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops[i]++
	c.last = time.Now()
	c.moved.Broadcast()
	return !c.quit && c.err == nil
}

// advance waits until every client has had n more answers, and returns when
// the first one came.
func (c *clients) advance(n int) (first time.Time) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	goal := make([]int, len(c.ops))
	for i := range goal {
		goal[i] = c.ops[i] + n
	}
	reached := func() bool {
		for i := range goal {
			if c.ops[i] < goal[i] {
				return false
			}
		}
		return true
	}
	for c.err == nil && !reached() {
		c.moved.Wait()
		if first.IsZero() {
			first = c.last
		}
	}
	if c.err != nil {
		c.t.Fatal(c.err)
	}
	return first
}

// stop ends the clients; the device must be served.
func (c *clients) stop() {
	c.mu.Lock()
	c.quit = true
	c.mu.Unlock()
	c.ended.Wait()
	if c.err != nil {
		c.t.Error(c.err)
	}
}

func (c *clients) open() (*os.File, []byte, error) {
	f, err := os.OpenFile(c.node, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, nil, err
	}
	p, err := unix.Mmap(-1, 0, 128<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	return f, p, err
}

// fill makes every 4096 bytes say where they are and which version they have.
func fill(p []byte, at int64, version uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], uint64(at)+uint64(i)&^4095|version<<40)
	}
}

func (c *clients) verify(f *os.File, p []byte, at int64, version uint64) error {
	if _, err := f.ReadAt(p, at); err != nil {
		return err
	}
	want := make([]byte, len(p))
	fill(want, at, version)
	if !bytes.Equal(p, want) {
		return fmt.Errorf("%d bytes at %d are not what was written: %#x instead of %#x", len(p), at, binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(want))
	}
	return nil
}

// sequential fills a zone again and again and reads what it has written.
func (c *clients) sequential(zone int, rng *rand.Rand) error {
	f, buf, err := c.open()
	if err != nil {
		return err
	}
	defer f.Close()
	defer unix.Munmap(buf)
	start := int64(zone) * c.size
	version := uint64(1)
	for wp := int64(0); ; {
		if wp == c.size {
			span := [2]uint64{uint64(start) / 512, uint64(c.size) / 512}
			if err := ioctl(f, blkResetZone, unsafe.Pointer(&span)); err != nil {
				return fmt.Errorf("reset: %w", err)
			}
			wp = 0
			version++
		} else {
			p := buf[:min(4096*(1+rng.Int64N(16)), c.size-wp)]
			fill(p, start+wp, version)
			if _, err := f.WriteAt(p, start+wp); err != nil {
				return err
			}
			wp += int64(len(p))
		}
		if !c.answered(zone) {
			return c.all(f, buf, start, wp, version)
		}
		if wp > 0 {
			at := rng.Int64N(wp) &^ 4095
			if err := c.verify(f, buf[:min(wp-at, 32<<10)], start+at, version); err != nil {
				return err
			}
		}
	}
}

// all reads everything below the write pointer.
func (c *clients) all(f *os.File, buf []byte, start, wp int64, version uint64) error {
	for at := int64(0); at < wp; at += 32 << 10 {
		if err := c.verify(f, buf[:min(wp-at, 32<<10)], start+at, version); err != nil {
			return err
		}
	}
	return nil
}

// conventional overwrites blocks of a zone in any order, and flushes.
func (c *clients) conventional(zone int, rng *rand.Rand) error {
	f, buf, err := c.open()
	if err != nil {
		return err
	}
	defer f.Close()
	defer unix.Munmap(buf)
	start, versions := int64(zone)*c.size, map[int64]uint64{}
	for version := uint64(1); ; version++ {
		at := start + rng.Int64N(c.size)&^4095
		fill(buf[:4096], at, version)
		if _, err := f.WriteAt(buf[:4096], at); err != nil {
			return err
		}
		versions[at] = version
		if version%16 == 0 {
			if err := f.Sync(); err != nil {
				return err
			}
		}
		more := c.answered(zone)
		for at, version := range versions { // any of them, in the end all
			if err := c.verify(f, buf[:4096], at, version); err != nil {
				return err
			}
			if more {
				break
			}
		}
		if !more {
			return nil
		}
	}
}

const blkResetZone = 0x40101283 // BLKRESETZONE
