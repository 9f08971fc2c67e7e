// Package crashfile is an image file in memory that loses power: a page cache
// over a disk, as package qcow2 sees one.
//
// A 512-byte sector is written whole or not at all. Until a sync has covered it
// the disk may have any of its versions since the last one, and the file any of
// its lengths: lost, kept or reordered, never invented. A durable write covers
// its own range only. The power can be made to go off in any operation, and any
// operation can be made to fail. What a failed sync has not written stays in the
// page cache and counts as written, as Linux has it: no later sync covers it
// before it is written again.
//
// A File does the same whenever it is asked the same. All chance is in the
// *rand.Rand that Cut and Latency are given, so a test that seeds them, and
// prints the seed, can be repeated.
package crashfile

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"time"
)

// SectorSize is what a disk writes whole or not at all, in bytes.
const SectorSize = 512

// ErrCut is what a file without power answers.
var ErrCut = errors.New("the power is off")

// Kind is what an operation does.
type Kind uint8

// The operations of a file.
const (
	Read Kind = iota
	Write
	WriteDurable
	Sync
	Truncate
	Punch
	Reserve
)

// Op is an operation before it happens.
type Op struct {
	Kind   Kind
	Off, N int64 // bytes; of Truncate the new length is Off
	Hole   bool  // a write: nothing is allocated at Off
}

type sector [SectorSize]byte

// File is a qcow2.File. The zero value is not usable; see New.
type File struct {
	mu sync.Mutex // guards what follows; never held across a hook but the fault

	size int64
	// Sectors are never changed, only replaced; one that is nil is a hole.
	cur   map[int64]*sector   // the page cache
	old   map[int64][]*sector // sectors with unsynced versions: the durable one and all but the newest since
	sizes []int64             // the durable length and all but the newest since
	lost  map[int64]bool      // of old: those that a failed sync has taken for written

	ops   int  // changes and syncs so far
	offAt int  // the power goes off in this one; 0: never
	offIn int  // or in the durable write that is so many from here
	dead  bool // the power is off
	cutOp *Op  // it went off in this one

	pause func(Kind)       // before an operation, without any lock
	fault func(Op) error   // may refuse an operation
	watch func(Op, []byte) // is told of changes and syncs
	room  int64            // sectors that may be allocated; 0: no limit
}

// New returns an empty file with power.
func New() *File {
	return &File{cur: map[int64]*sector{}, old: map[int64][]*sector{}, lost: map[int64]bool{}}
}

// Pause calls f before every operation, without any lock.
func (f *File) Pause(pause func(Kind)) { f.with(func() { f.pause = pause }) }

// Fault lets f refuse operations; nil refuses none. It is called with the
// file's lock held. ErrShortWrite makes half of a write happen.
func (f *File) Fault(fault func(Op) error) { f.with(func() { f.fault = fault }) }

// Watch tells f of every change and sync that begins and is not refused, with
// what is written. The file's lock is held.
func (f *File) Watch(watch func(Op, []byte)) { f.with(func() { f.watch = watch }) }

// ErrShortWrite is what a fault returns for a write that stops in the middle
// and answers ENOSPC.
var ErrShortWrite = errors.New("short write")

// Fill leaves room for so many more sectors; a negative number takes the limit
// away.
func (f *File) Fill(more int64) {
	f.with(func() {
		f.room = 0
		if more >= 0 {
			f.room = int64(len(f.cur)) + more
		}
	})
}

// CutIn makes the power go off in the n-th change or sync from here; 0 takes
// that back.
func (f *File) CutIn(n int) {
	f.with(func() {
		f.offAt = 0
		if n > 0 {
			f.offAt = f.ops + n
		}
	})
}

// CutInDurableWrite makes the power go off in the n-th durable write from
// here; 0 takes that back.
func (f *File) CutInDurableWrite(n int) { f.with(func() { f.offIn = n }) }

// Dead reports whether the power is off.
func (f *File) Dead() (dead bool) {
	f.with(func() { dead = f.dead })
	return dead
}

// CutOp returns the operation in which the power went off; ok is false if it was
// in none.
func (f *File) CutOp() (op Op, ok bool) {
	f.with(func() {
		if ok = f.cutOp != nil; ok {
			op = *f.cutOp
		}
	})
	return op, ok
}

// Ops is the number of changes and syncs so far.
func (f *File) Ops() (n int) {
	f.with(func() { n = f.ops })
	return n
}

// Allocated returns how many bytes the file takes.
func (f *File) Allocated() (n int64) {
	f.with(func() { n = int64(len(f.cur)) * SectorSize })
	return n
}

func (f *File) with(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// begin admits an operation. last says that the power goes off in it. f.mu is
// held if there is no error.
func (f *File) begin(op Op, p []byte) (last bool, err error) {
	f.mu.Lock()
	if pause := f.pause; pause != nil {
		f.mu.Unlock()
		pause(op.Kind)
		f.mu.Lock()
	}
	switch {
	case f.dead:
		err = ErrCut
	case f.fault != nil:
		op.Hole = f.cur[op.Off/SectorSize] == nil
		err = f.fault(op)
	}
	if err != nil && !errors.Is(err, ErrShortWrite) {
		if !f.dead {
			f.refuse(op, p)
		}
		f.mu.Unlock()
		return false, err
	}
	if op.Kind == Read {
		return false, nil
	}
	f.ops++
	f.dead = f.ops == f.offAt
	if op.Kind == WriteDurable && f.offIn > 0 {
		f.offIn--
		f.dead = f.dead || f.offIn == 0
	}
	if f.dead {
		f.cutOp = &op
	}
	if f.watch != nil {
		f.watch(op, p)
	}
	return f.dead, err
}

// refuse leaves what a sync or a durable write leaves that fails: the page cache
// calls clean what has not been written.
func (f *File) refuse(op Op, p []byte) {
	switch op.Kind {
	case Sync:
		for s := range f.old {
			f.lost[s] = true
		}
	case WriteDurable:
		if f.put(p, op.Off) != nil {
			return
		}
		for s := op.Off / SectorSize; s*SectorSize < op.Off+op.N; s++ {
			f.lost[s] = true
		}
	}
}

// end is what an operation answers that the power may have gone off in.
func end(last bool) error {
	if last {
		return ErrCut
	}
	return nil
}

// ReadAt reads the page cache.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if _, err := f.begin(Op{Kind: Read, Off: off, N: int64(len(p))}, nil); err != nil {
		return 0, err
	}
	defer f.mu.Unlock()
	n := 0
	for n < len(p) && off < f.size {
		in := off % SectorSize
		k := int(min(SectorSize-in, int64(len(p)-n), f.size-off))
		if s := f.cur[off/SectorSize]; s != nil {
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

// WriteAt writes to the page cache.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	last, err := f.begin(Op{Kind: Write, Off: off, N: int64(len(p))}, p)
	switch {
	case errors.Is(err, ErrShortWrite):
		defer f.mu.Unlock()
		n := len(p) / 2 &^ (SectorSize - 1)
		if err := f.put(p[:n], off); err != nil {
			return 0, err
		}
		return n, syscall.ENOSPC
	case err != nil:
		return 0, err
	}
	defer f.mu.Unlock()
	if err := f.put(p, off); err != nil {
		return 0, err
	}
	if last {
		return 0, ErrCut
	}
	return len(p), nil
}

// WriteDurable writes and makes exactly that durable.
func (f *File) WriteDurable(p []byte, off int64) error {
	last, err := f.begin(Op{Kind: WriteDurable, Off: off, N: int64(len(p))}, p)
	if err != nil {
		if errors.Is(err, ErrShortWrite) {
			f.mu.Unlock()
		}
		return err
	}
	defer f.mu.Unlock()
	if err := f.put(p, off); err != nil {
		return err
	}
	if !last {
		for s := off / SectorSize; s*SectorSize < off+int64(len(p)); s++ {
			delete(f.old, s)
		}
	}
	return end(last)
}

// Sync makes everything durable.
func (f *File) Sync() error {
	last, err := f.begin(Op{Kind: Sync}, nil)
	if err != nil {
		return err
	}
	defer f.mu.Unlock()
	if !last {
		f.sizes = f.sizes[:0]
		if len(f.lost) == 0 {
			clear(f.old)
		}
		for s := range f.old {
			if !f.lost[s] {
				delete(f.old, s)
			}
		}
	}
	return end(last)
}

// Truncate sets the length in bytes.
func (f *File) Truncate(size int64) error {
	last, err := f.begin(Op{Kind: Truncate, Off: size}, nil)
	if err != nil {
		return err
	}
	defer f.mu.Unlock()
	for s := range f.cur {
		if s*SectorSize >= size {
			f.replace(s, nil)
		}
	}
	f.resize(size)
	return end(last)
}

// Punch frees whole sectors.
func (f *File) Punch(off, n int64) error {
	last, err := f.begin(Op{Kind: Punch, Off: off, N: n}, nil)
	if err != nil {
		return err
	}
	defer f.mu.Unlock()
	if off%SectorSize != 0 || n%SectorSize != 0 {
		return fmt.Errorf("punch of %d bytes at %d", n, off)
	}
	first, behind := off/SectorSize, (off+n)/SectorSize
	if behind-first > int64(len(f.cur)) { // a long file that is mostly a hole
		for s := range f.cur {
			if s >= first && s < behind {
				f.replace(s, nil)
			}
		}
		return end(last)
	}
	for s := first; s < behind; s++ {
		if f.cur[s] != nil {
			f.replace(s, nil)
		}
	}
	return end(last)
}

// Reserve allocates whole sectors.
func (f *File) Reserve(off, n int64) error {
	last, err := f.begin(Op{Kind: Reserve, Off: off, N: n}, nil)
	if err != nil {
		return err
	}
	defer f.mu.Unlock()
	var holes []int64
	for s := off / SectorSize; s*SectorSize < min(off+n, f.size); s++ {
		if f.cur[s] == nil {
			holes = append(holes, s)
		}
	}
	if f.room != 0 && f.room < int64(len(f.cur)+len(holes)) {
		return syscall.ENOSPC
	}
	for _, s := range holes {
		f.replace(s, new(sector))
	}
	return end(last)
}

// Sparse gives the space of zeros back, as a sparse copy does.
func (f *File) Sparse() {
	f.with(func() {
		for s, v := range f.cur {
			if *v == (sector{}) {
				f.replace(s, nil)
			}
		}
	})
}

// Size returns the length in bytes.
func (f *File) Size() (int64, error) {
	if _, err := f.begin(Op{Kind: Read}, nil); err != nil {
		return 0, err
	}
	defer f.mu.Unlock()
	return f.size, nil
}

// Close does nothing.
func (f *File) Close() error { return nil }

func (f *File) resize(size int64) {
	f.sizes = append(f.sizes, f.size)
	f.size = size
}

// replace gives a sector a new version.
func (f *File) replace(s int64, v *sector) {
	f.old[s] = append(f.old[s], f.cur[s])
	delete(f.lost, s)
	f.set(s, v)
}

// put writes to the page cache, all or nothing.
func (f *File) put(p []byte, off int64) error {
	if f.room != 0 {
		free := f.room - int64(len(f.cur))
		for s := off / SectorSize; s*SectorSize < off+int64(len(p)); s++ {
			if f.cur[s] == nil {
				free--
			}
		}
		if free < 0 {
			return syscall.ENOSPC
		}
	}
	if end := off + int64(len(p)); end > f.size {
		f.resize(end)
	}
	for len(p) > 0 {
		v := new(sector)
		if old := f.cur[off/SectorSize]; old != nil {
			*v = *old
		}
		k := copy(v[off%SectorSize:], p)
		f.replace(off/SectorSize, v)
		p, off = p[k:], off+int64(k)
	}
	return nil
}

// Kill returns the file for a successor of a process that was killed: the page
// cache has survived, and what the dead process still does goes nowhere. Of what
// a failed sync has not written, the successor finds what the disk has: whoever
// knows of the failure drops the page cache. The fault and planned cuts are not
// taken over.
func (f *File) Kill() *File {
	n := f.turnOff()
	for s := range n.lost {
		n.set(s, n.old[s][0])
		delete(n.old, s)
	}
	clear(n.lost)
	return n
}

func (f *File) turnOff() *File {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	return &File{size: f.size, cur: f.cur, old: f.old, sizes: f.sizes, lost: f.lost, pause: f.pause, watch: f.watch, room: f.room}
}

func (f *File) set(s int64, v *sector) {
	if v == nil {
		delete(f.cur, s)
	} else {
		f.cur[s] = v
	}
}

// Cut is Kill after a power cut: every sector has any of its versions since the
// last sync, and the file any of its lengths.
func (f *File) Cut(rng *rand.Rand) *File {
	n := f.turnOff()
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
		n.set(s, versions[i])
	}
	clear(n.old)
	clear(n.lost)
	sizes := append(n.sizes, n.size)
	n.size, n.sizes = sizes[rng.IntN(len(sizes))], nil
	for s := range n.cur {
		if s*SectorSize >= n.size {
			delete(n.cur, s)
		}
	}
	return n
}

// sorted walks a map's keys in order, so that a seed says everything.
func sorted[V any](m map[int64]V) iter.Seq[int64] {
	return slices.Values(slices.Sorted(maps.Keys(m)))
}

// Latency is a Pause that makes a file slow in virtual time (testing/synctest),
// so that operations of several goroutines meet in a random order.
func Latency(rng *rand.Rand) func(Kind) {
	var mu sync.Mutex
	return func(k Kind) {
		mu.Lock()
		d := time.Duration(1 + rng.IntN(1000))
		mu.Unlock()
		if k == Sync {
			d *= 10
		}
		time.Sleep(d)
	}
}
