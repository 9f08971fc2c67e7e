package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

func TestDevicesOfAnyShapeDoTheSame(t *testing.T) {
	for _, c := range []struct {
		name string
		s    spec
	}{
		{"one zone", spec{CreateOptions: qcow2.CreateOptions{Size: mib, ZoneSize: mib}}},
		{"two zones", spec{CreateOptions: qcow2.CreateOptions{Size: 2 * mib, ZoneSize: mib}}},
		{"two zones, one conventional", spec{CreateOptions: qcow2.CreateOptions{Size: 2 * mib, ZoneSize: mib, Conventional: 1}}},
		{"one zone of 4K", spec{CreateOptions: qcow2.CreateOptions{ClusterSize: 4 * kib, Size: 4 * kib, ZoneSize: 4 * kib}}},
		{"zones of 4K, clusters of 512", spec{CreateOptions: qcow2.CreateOptions{ClusterSize: 512, Size: 40 * kib, ZoneSize: 4 * kib}}},
		{"zones of one block of 4K", spec{CreateOptions: qcow2.CreateOptions{ClusterSize: 4 * kib, Size: 40 * kib, ZoneSize: 4 * kib}, block: 4096}},
		{"zones as large as a cluster", spec{CreateOptions: qcow2.CreateOptions{ClusterSize: 64 * kib, Size: 512 * kib, ZoneSize: 64 * kib}}},
		{"zones as large as a cluster of 2M", spec{CreateOptions: qcow2.CreateOptions{ClusterSize: 2 * mib, Size: 4 * mib, ZoneSize: 2 * mib}}},
		{"a capacity of 48M of 64M", spec{CreateOptions: qcow2.CreateOptions{Size: 128 * mib, ZoneSize: 64 * mib, ZoneCapacity: 48 * mib, MaxOpen: 1, MaxActive: 1}}},
		{"a capacity that ends inside a cluster", spec{CreateOptions: qcow2.CreateOptions{Size: mib, ZoneSize: 128 * kib, ZoneCapacity: 100*kib + 512}}},
		{"a capacity of one block", spec{CreateOptions: qcow2.CreateOptions{Size: mib, ZoneSize: 128 * kib, ZoneCapacity: 4 * kib}, block: 4096}},
		{"blocks of 4K", spec{CreateOptions: qcow2.CreateOptions{Size: mib, ZoneSize: 128 * kib, ZoneCapacity: 100 * kib, MaxOpen: 1, MaxActive: 1}, block: 4096}},
		{"limits of 1", spec{CreateOptions: qcow2.CreateOptions{Size: mib, ZoneSize: 128 * kib, MaxOpen: 1, MaxActive: 1}}},
		{"limits of as many zones as are sequential", spec{CreateOptions: qcow2.CreateOptions{Size: mib, ZoneSize: 128 * kib, Conventional: 2, MaxOpen: 6, MaxActive: 6}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.s)
			for i := range len(r.zones) {
				r.lifeOf(i)
			}
			r.reopen()
			for i := range len(r.zones) {
				if r.zones[i].conv {
					continue
				}
				r.is(i, zns.CondFull, r.g.ZoneCapacity)
				r.ok(r.manage(zns.OpReset, i))
				r.is(i, zns.CondEmpty, 0)
				r.holds(i, 0, r.g.ZoneSize, 0)
			}
		})
	}
}

// lifeOf takes a zone through everything and leaves it full.
func (r *rig) lifeOf(i int) {
	r.TB.Helper()
	block, end := uint64(r.s.block), r.g.ZoneSize
	if r.zones[i].conv {
		r.ok(r.write(i, end-block, block, 1))
		r.ok(r.write(i, 0, block, 2))
		r.ok(r.write(i, end-block, block, 3))
		r.holds(i, 0, block, 2)
		r.holds(i, end-block, block, 3)
		return
	}
	capacity := r.g.ZoneCapacity
	if block > 512 { // half a block is nothing
		r.refused(r.write(i, 0, 512, 1), zns.ErrInvalid)
		_, err := r.append(i, 512, 1)
		r.refused(err, zns.ErrInvalid)
		_, err = r.do(zns.OpRead, r.start(i)+512, block, make([]byte, block))
		r.refused(err, zns.ErrInvalid)
	}
	tooMuch := zns.ErrBoundary
	if r.start(i)+capacity == r.g.Size {
		tooMuch = zns.ErrInvalid // there is nothing behind it
	}
	r.refused(r.write(i, 0, capacity+block, 1), tooMuch)
	r.is(i, zns.CondEmpty, 0)
	at, err := r.append(i, block, 1)
	r.ok(err)
	if at != 0 {
		r.Errorf("append to empty zone %d was placed at %#x", i, at)
	}
	if capacity > block {
		r.is(i, zns.CondImpOpen, block)
		r.refused(r.write(i, 0, block, 1), zns.ErrNotAtWP)
		if capacity > 2*block {
			r.ok(r.zeroes(i, block, capacity-2*block))
		}
		r.ok(r.write(i, capacity-block, block, 2))
	}
	r.is(i, zns.CondFull, capacity)
	r.holds(i, 0, block, 1)
	if capacity > 2*block {
		r.holds(i, block, capacity-2*block, 0)
		r.holds(i, capacity-block, block, 2)
	}
	r.holds(i, capacity, end-capacity, 0)
	r.refused(r.write(i, 0, block, 1), zns.ErrFull)
	r.ok(r.manage(zns.OpReset, i))
	r.is(i, zns.CondEmpty, 0)
	r.holds(i, 0, end, 0)
	r.ok(r.manage(zns.OpOpen, i))
	r.is(i, zns.CondExpOpen, 0)
	r.ok(r.manage(zns.OpClose, i))
	r.is(i, zns.CondEmpty, 0)
	r.ok(r.manage(zns.OpFinish, i))
	r.is(i, zns.CondFull, capacity)
	r.holds(i, 0, end, 0)
}

func TestLimitsOfOneLetOneZoneAfterTheOtherBeUsed(t *testing.T) {
	r := newRig(t, spec{CreateOptions: qcow2.CreateOptions{ClusterSize: 4 * kib, Size: 8 * 16 * kib, ZoneSize: 16 * kib, MaxOpen: 1, MaxActive: 1}})
	for i := range 7 {
		r.ok(r.write(i, 0, kib, 1))
		r.refused(r.write(i+1, 0, kib, 1), zns.ErrActiveLimit)
		r.refused(r.manage(zns.OpOpen, i+1), zns.ErrActiveLimit)
		r.refused(r.manage(zns.OpFinish, i+1), zns.ErrActiveLimit)
		r.reopen()
		r.is(i, zns.CondClosed, kib)
		r.refused(r.write(i+1, 0, kib, 1), zns.ErrActiveLimit)
		r.ok(r.manage(zns.OpOpen, i))
		switch i % 3 {
		case 0:
			r.ok(r.manage(zns.OpFinish, i))
		case 1:
			r.ok(r.manage(zns.OpReset, i))
		case 2:
			r.ok(r.write(i, kib, 15*kib, 1))
		}
	}
}

func TestLimitsOfAllSequentialZonesAreNone(t *testing.T) {
	r := newRig(t, spec{CreateOptions: qcow2.CreateOptions{ClusterSize: 4 * kib, Size: 8 * 16 * kib, ZoneSize: 16 * kib, Conventional: 2, MaxOpen: 6, MaxActive: 6}})
	for range 2 {
		for i := 2; i < 8; i++ {
			r.ok(r.manage(zns.OpOpen, i))
		}
		for i := 2; i < 8; i++ {
			r.ok(r.write(i, r.at(i), kib, 1))
			r.is(i, zns.CondExpOpen, r.at(i))
		}
		r.reopen()
	}
}

// WRITE_ZEROES gives space back where a cluster is whole, and is zeros
// everywhere.
func TestWriteZeroesInAConventionalZone(t *testing.T) {
	r := newRig(t, tight())
	r.ok(r.write(0, 0, 64*kib, 1))
	r.flush()
	before := r.disk.Allocated()
	r.ok(r.zeroes(0, 5*kib, 40*kib))
	for range 2 {
		r.holds(0, 0, 5*kib, 1)
		r.holds(0, 5*kib, 40*kib, 0)
		r.holds(0, 45*kib, 19*kib, 1)
		if n := r.disk.Allocated(); n > before-32*kib {
			r.Errorf("the file takes %d bytes, %d before the zeros", n, before)
		}
		r.reopen()
	}
	r.ok(r.write(0, 6*kib, kib, 2))
	r.holds(0, 5*kib, kib, 0)
	r.holds(0, 6*kib, kib, 2)
	r.holds(0, 7*kib, kib, 0)
	r.ok(r.zeroes(0, 0, 64*kib))
	r.holds(0, 0, 64*kib, 0)
	r.refused(r.zeroes(0, 60*kib, 8*kib), zns.ErrBoundary)
}

// Writers that overwrite each other in a conventional zone: a sector that is
// read is one that somebody wrote and nobody had overwritten before the read
// began. After a flush, what was read last is what a power cut leaves.
func TestOverlappingOverwritesInAConventionalZone(t *testing.T) {
	for seed := uint64(1); seed <= uint64(max(24/slow, 4)); seed++ {
		if *seedFlag != 0 {
			seed = *seedFlag
		}
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { overwriteEachOther(t, seed) })
		})
		if *seedFlag != 0 || t.Failed() {
			break
		}
	}
}

// overwriter is the writers and readers of one conventional zone of 64 sectors.
type overwriter struct {
	r    *rig
	mu   sync.Mutex
	rng  *rand.Rand
	tick int
	past [64][]overwrite
}

type overwrite struct {
	stamp       uint64
	first, last int // when it began and was answered, 0: not yet
}

func overwriteEachOther(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	s := spec{CreateOptions: qcow2.CreateOptions{ClusterSize: 512 << (3 * rng.IntN(2)), Size: 96 * kib, ZoneSize: 32 * kib, Conventional: 1}}
	r := newRig(t, s)
	r.disk.Pause(crashfile.Latency(rand.New(rand.NewPCG(seed, 2))))
	o := &overwriter{r: r, rng: rng}
	for i := range o.past {
		o.past[i] = []overwrite{{last: -1}}
	}
	var hosts sync.WaitGroup
	for range 6 {
		hosts.Go(func() {
			for range 40 {
				o.overwrite()
			}
		})
	}
	for range 2 {
		hosts.Go(func() {
			for range 60 {
				at := o.n(60)
				o.look(at, 1+o.n(64-at))
			}
		})
	}
	hosts.Wait()
	last := o.look(0, 64)
	r.flush()
	r.disk = r.disk.Cut(rng)
	r.im.Abandon()
	r.open()
	if got := o.look(0, 64); !slices.Equal(got, last) {
		t.Errorf("after a power cut the zone reads as %v, before as %v", got, last)
	}
}

func (o *overwriter) n(n int) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.rng.IntN(n)
}

func (o *overwriter) overwrite() {
	at := o.n(60)
	n := 1 + o.n(min(20, 64-at))
	q := &zns.Request{Op: zns.OpWrite, Start: uint64(at) * 512, Len: uint64(n) * 512, FUA: o.n(20) == 0}
	s := make([]uint64, n)
	o.mu.Lock()
	o.tick++
	first := o.tick
	if o.rng.IntN(4) == 0 {
		q.Op = zns.OpWriteZeroes
	}
	for i := range s {
		if q.Op == zns.OpWrite {
			s[i] = uint64(first)<<8 | uint64(i) + 1
		}
		o.past[at+i] = append(o.past[at+i], overwrite{stamp: s[i], first: first})
	}
	o.mu.Unlock()
	time.Sleep(time.Duration(o.n(3000)))
	if err := zns.Do(o.r.dev, q, o.r.disk, fill(s)); err != nil {
		o.r.Errorf("%v at sector %d: %v", q.Op, at, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tick++
	for i := range s {
		for k := range o.past[at+i] {
			if p := &o.past[at+i][k]; p.first == first {
				p.last = o.tick
			}
		}
	}
}

// look reads sectors and says whether they may read so.
func (o *overwriter) look(at, n int) []uint64 {
	o.mu.Lock()
	o.tick++
	first := o.tick
	o.mu.Unlock()
	time.Sleep(time.Duration(o.n(3000)))
	p := make([]byte, n*512)
	if err := zns.Do(o.r.dev, &zns.Request{Start: uint64(at) * 512, Len: uint64(n) * 512}, o.r.disk, p); err != nil {
		o.r.Errorf("read at sector %d: %v", at, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	got := stamps(p)
	for i, s := range got {
		if !mayBeRead(o.past[at+i], s, first) {
			o.r.Errorf("sector %d reads as %#x at %d, of %v", at+i, s, first, o.past[at+i])
		}
	}
	return got
}

// mayBeRead says whether one of the overwrites with this stamp was not
// overwritten for certain before the read began.
func mayBeRead(past []overwrite, stamp uint64, began int) bool {
	return slices.ContainsFunc(past, func(w overwrite) bool {
		return w.stamp == stamp && !slices.ContainsFunc(past, func(later overwrite) bool {
			return w.last != 0 && later.first > w.last && later.last > 0 && later.last < began
		})
	})
}
