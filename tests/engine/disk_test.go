package engine

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"
)

// errCut is what a disk without power answers.
var errCut = errors.New("the power is off")

type sector [512]byte

// disk is a qcow2.File: a page cache over a disk, in memory. A sector that is
// nil is a hole. Sectors are never changed, only replaced.
type disk struct {
	mu    sync.Mutex
	size  int64
	cur   map[int64]*sector   // the page cache
	old   map[int64][]*sector // sectors with unsynced versions: the durable one and all but the newest since
	sizes []int64             // the durable length and all but the newest since

	ops   int  // changes and syncs so far
	offAt int  // the power goes off in this one; 0: never
	offIn int  // or in the durable write that is so many from here
	dead  bool // the power is off

	pause func(op string)                     // before an operation, without any lock
	fault func(op string, off, n int64) error // may refuse an operation
	room  int64                               // sectors that may be allocated; 0: no limit
}

func newDisk() *disk {
	return &disk{cur: map[int64]*sector{}, old: map[int64][]*sector{}}
}

// begin admits an operation. last says that the power goes off in it. d.mu is
// held if there is no error.
func (d *disk) begin(op string, off, n int64) (last bool, err error) {
	if d.pause != nil {
		d.pause(op)
	}
	d.mu.Lock()
	switch {
	case d.dead:
		err = errCut
	case d.fault != nil:
		err = d.fault(op, off, n)
	}
	if err != nil {
		d.mu.Unlock()
		return false, err
	}
	if op == "read" {
		return false, nil
	}
	d.ops++
	d.dead = d.ops == d.offAt
	if op == "write durably" && d.offIn > 0 {
		d.offIn--
		d.dead = d.dead || d.offIn == 0
	}
	return d.dead, nil
}

// end is what an operation answers that the power may have gone off in.
func end(last bool) error {
	if last {
		return errCut
	}
	return nil
}

func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if _, err := d.begin("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	defer d.mu.Unlock()
	n := 0
	for n < len(p) && off < d.size {
		in := off % 512
		k := int(min(512-in, int64(len(p)-n), d.size-off))
		if s := d.cur[off/512]; s != nil {
			copy(p[n:n+k], s[in:])
		} else {
			clear(p[n : n+k])
		}
		n, off = n+k, off+int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	last, err := d.begin("write", off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer d.mu.Unlock()
	if err := d.put(p, off); err != nil {
		return 0, err
	}
	if last {
		return 0, errCut
	}
	return len(p), nil
}

func (d *disk) WriteDurable(p []byte, off int64) error {
	last, err := d.begin("write durably", off, int64(len(p)))
	if err != nil {
		return err
	}
	defer d.mu.Unlock()
	if err := d.put(p, off); err != nil {
		return err
	}
	if !last {
		for s := off / 512; s*512 < off+int64(len(p)); s++ {
			delete(d.old, s)
		}
	}
	return end(last)
}

func (d *disk) Sync() error {
	last, err := d.begin("sync", 0, 0)
	if err != nil {
		return err
	}
	defer d.mu.Unlock()
	if !last {
		clear(d.old)
		d.sizes = d.sizes[:0]
	}
	return end(last)
}

func (d *disk) Truncate(size int64) error {
	last, err := d.begin("truncate", size, 0)
	if err != nil {
		return err
	}
	defer d.mu.Unlock()
	for s := range d.cur {
		if s*512 >= size {
			d.replace(s, nil)
		}
	}
	d.resize(size)
	return end(last)
}

// Punch frees sectors. A part of a sector is zeroed.
func (d *disk) Punch(off, n int64) error {
	last, err := d.begin("punch", off, n)
	if err != nil {
		return err
	}
	defer d.mu.Unlock()
	if off%512 != 0 || n%512 != 0 {
		return fmt.Errorf("punch of %d bytes at %d", n, off)
	}
	for s := off / 512; s*512 < min(off+n, d.size); s++ {
		if d.cur[s] != nil {
			d.replace(s, nil)
		}
	}
	return end(last)
}

func (d *disk) Size() (int64, error) {
	if _, err := d.begin("read", 0, 0); err != nil {
		return 0, err
	}
	defer d.mu.Unlock()
	return d.size, nil
}

func (d *disk) Close() error { return nil }

func (d *disk) resize(size int64) {
	d.sizes = append(d.sizes, d.size)
	d.size = size
}

// replace gives a sector a new version.
func (d *disk) replace(s int64, v *sector) {
	d.old[s] = append(d.old[s], d.cur[s])
	if v == nil {
		delete(d.cur, s)
	} else {
		d.cur[s] = v
	}
}

// put writes to the page cache, all or nothing.
func (d *disk) put(p []byte, off int64) error {
	if d.room != 0 {
		free := d.room - int64(len(d.cur))
		for s := off / 512; s*512 < off+int64(len(p)); s++ {
			if d.cur[s] == nil {
				free--
			}
		}
		if free < 0 {
			return syscall.ENOSPC
		}
	}
	if end := off + int64(len(p)); end > d.size {
		d.resize(end)
	}
	for len(p) > 0 {
		v := new(sector)
		if old := d.cur[off/512]; old != nil {
			*v = *old
		}
		k := copy(v[off%512:], p)
		d.replace(off/512, v)
		p, off = p[k:], off+int64(k)
	}
	return nil
}

// set changes a field while operations may be going on.
func (d *disk) set(f func(*disk)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
}

// allocated returns how many bytes the file takes.
func (d *disk) allocated() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return int64(len(d.cur)) * 512
}

// revive returns the disk for a successor of a process that was killed: the
// page cache has survived, and what the dead process still does goes nowhere.
func (d *disk) revive() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = true
	return &disk{size: d.size, cur: d.cur, old: d.old, sizes: d.sizes, pause: d.pause, room: d.room}
}

// cut is revive after a power cut: every sector has any of its versions since
// the last sync, and the file any of its lengths.
func (d *disk) cut(rng *rand.Rand) *disk {
	n := d.revive()
	// How likely is it that what was written has reached the disk? All or
	// nothing are the cases that an ordering mistake shows in most clearly.
	odds := [...]float64{0, 0.05, 0.5, 0.5, 0.95, 1}[rng.IntN(6)]
	// Neighbours often share their fate.
	var chunk int64 = 1 << rng.IntN(8)
	fate := map[int64]bool{}
	pick := func(s int64, versions int) int {
		kept, known := fate[s/chunk]
		if !known {
			kept = rng.Float64() < odds
			fate[s/chunk] = kept
		}
		switch {
		case rng.IntN(8) == 0:
			return rng.IntN(versions)
		case kept:
			return versions - 1
		}
		return 0
	}
	for s := range sorted(n.old) {
		versions := append(n.old[s], n.cur[s])
		i := pick(s, len(versions))
		if odds == 0 {
			i = 0
		} else if odds == 1 {
			i = len(versions) - 1
		}
		if v := versions[i]; v == nil {
			delete(n.cur, s)
		} else {
			n.cur[s] = v
		}
	}
	clear(n.old)
	sizes := append(n.sizes, n.size)
	n.size, n.sizes = sizes[rng.IntN(len(sizes))], nil
	for s := range n.cur {
		if s*512 >= n.size {
			delete(n.cur, s)
		}
	}
	return n
}

// latency makes a disk slow in virtual time, so that operations of several
// goroutines meet in a random order.
func latency(rng *rand.Rand) func(op string) {
	var mu sync.Mutex
	return func(op string) {
		mu.Lock()
		d := time.Duration(1 + rng.IntN(1000))
		mu.Unlock()
		if op == "sync" {
			d *= 10
		}
		time.Sleep(d)
	}
}
