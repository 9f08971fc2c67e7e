package ublk

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/zns"
)

// toy is a Target of naive zones: zone i lies in a plain file at the place it
// has on the device. It takes every way through a queue that there is: it cuts
// requests into many extents, flushes on a worker, and parks resets.
type toy struct {
	geometry zns.Geometry
	file     *os.File
	chunk    uint64 // extents end at multiples of it
	// block, unless nil, holds up Work of flushes until it is closed.
	block chan struct{}

	mu    sync.Mutex
	zones []toyZone
	calls [zns.OpResetAll + 1]int
	fua   int

	working, peak atomic.Int32 // flushes in Work
}

type toyZone struct {
	zns.Zone
	done uint64 // committed; WP is the reserved one
	busy int    // reservations in flight
}

// newToy makes zones of size bytes; the first conventional ones are such.
func newToy(t testing.TB, zones, conventional uint32, size, capacity uint64) *toy {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "data"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(int64(uint64(zones) * size)); err != nil {
		t.Fatal(err)
	}
	g := toyGeometry(zones, conventional, size, capacity)
	return &toy{file: f, chunk: 64 << 10, geometry: g, zones: newToyZones(g)}
}

func toyGeometry(zones, conventional uint32, size, capacity uint64) zns.Geometry {
	return zns.Geometry{
		Size: uint64(zones) * size, ZoneSize: size, ZoneCapacity: capacity,
		NrZones: zones, Conventional: conventional,
		MaxAppend: 1 << 20, BlockSize: 512,
	}
}

// newToyZones are empty.
func newToyZones(g zns.Geometry) (zones []toyZone) {
	for i := range g.NrZones {
		start := uint64(i) * g.ZoneSize
		z := toyZone{Zone: zns.Zone{
			Start: start, Len: g.ZoneSize, Capacity: g.ZoneCapacity, WP: start,
			Type: zns.TypeSeqWriteReq, Cond: zns.CondEmpty,
		}}
		if i < g.Conventional {
			z.Type, z.Cond, z.Capacity = zns.TypeConventional, zns.CondNotWP, g.ZoneSize
		}
		z.done = z.WP
		zones = append(zones, z)
	}
	return zones
}

func (x *toy) Geometry() zns.Geometry { return x.geometry }

func (x *toy) Zone(i uint32) zns.Zone {
	x.mu.Lock()
	defer x.mu.Unlock()
	z := x.zones[i].Zone
	z.WP = x.zones[i].done
	if z.Cond == zns.CondFull && z.WP != z.Start+z.Capacity {
		z.Cond = zns.CondImpOpen // reserved to the end, not there yet
	}
	return z
}

func refuse(r *zns.Request, err error) zns.Step {
	r.Err = err
	return zns.Answer
}

func (x *toy) Begin(r *zns.Request) zns.Step {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.calls[r.Op]++
	if r.FUA {
		x.fua++
	}
	r.At = r.Start
	switch r.Op {
	case zns.OpFlush, zns.OpWriteZeroes, zns.OpFinish:
		return zns.Work
	case zns.OpResetAll:
		return zns.Work
	}
	z := &x.zones[x.geometry.ZoneOf(r.Start)]
	switch r.Op {
	case zns.OpRead:
		return x.extents(r, z, z.Type == zns.TypeSeqWriteReq)
	case zns.OpWrite, zns.OpAppend:
		if err := x.reserve(r, z); err != nil {
			return refuse(r, err)
		}
		return x.extents(r, z, false)
	case zns.OpReset:
		go func() { // somebody else wakes it up
			r.Next = zns.Work
			r.Wake(r)
		}()
		return zns.Wait
	case zns.OpOpen, zns.OpClose:
		return refuse(r, x.openClose(r, z))
	}
	return refuse(r, zns.ErrUnsupported)
}

func (x *toy) openClose(r *zns.Request, z *toyZone) error {
	switch {
	case z.Type == zns.TypeConventional:
		return zns.ErrConventional
	case r.Op == zns.OpOpen && z.Cond != zns.CondFull:
		z.Cond = zns.CondExpOpen
	case r.Op == zns.OpClose && z.Cond.Open():
		z.Cond = zns.CondClosed
		if z.WP == z.Start {
			z.Cond = zns.CondEmpty
		}
	}
	return nil
}

// reserve takes the range at the write pointer. The caller holds mu.
func (x *toy) reserve(r *zns.Request, z *toyZone) error {
	if z.Type == zns.TypeConventional {
		return nil
	}
	if r.Op == zns.OpAppend {
		r.At = z.WP
	}
	end := z.Start + z.Capacity
	switch {
	case z.Cond == zns.CondFull:
		return zns.ErrFull
	case z.Cond == zns.CondReadOnly:
		return zns.ErrReadOnly
	case r.At != z.WP:
		return zns.ErrNotAtWP
	case r.At+r.Len > end:
		return zns.ErrBoundary
	case !z.Cond.Active() && x.geometry.MaxActive > 0 && x.active() >= x.geometry.MaxActive:
		return zns.ErrActiveLimit
	}
	if z.Cond != zns.CondExpOpen {
		z.Cond = zns.CondImpOpen
	}
	if z.WP += r.Len; z.WP == end {
		z.Cond = zns.CondFull
	}
	z.busy++
	return nil
}

func (x *toy) active() (n uint32) {
	for i := range x.zones {
		if x.zones[i].Cond.Active() {
			n++
		}
	}
	return n
}

// extents cuts [At, At+Len) at multiples of chunk; what lies at or above the
// committed pointer of a masked zone is a hole.
func (x *toy) extents(r *zns.Request, z *toyZone, masked bool) zns.Step {
	for at, end := r.At, r.At+r.Len; at < end; {
		next := min(end, (at/x.chunk+1)*x.chunk)
		off := int64(at)
		if masked && at >= z.done {
			off = zns.Hole
		} else if masked {
			next = min(next, z.done)
		}
		r.Extents = append(r.Extents, zns.Extent{Off: off, Len: int64(next - at)})
		at = next
	}
	return zns.IO
}

func (x *toy) End(r *zns.Request, err error) zns.Step {
	x.mu.Lock()
	defer x.mu.Unlock()
	z := &x.zones[x.geometry.ZoneOf(r.Start)]
	if r.Op != zns.OpRead && z.Type == zns.TypeSeqWriteReq {
		if z.busy--; z.busy == 0 {
			z.done = z.WP
		}
	}
	return refuse(r, err)
}

func (x *toy) Work(r *zns.Request) zns.Step {
	switch r.Op {
	case zns.OpFlush:
		x.peak.Store(max(x.peak.Load(), x.working.Add(1)))
		defer x.working.Add(-1)
		if x.block != nil {
			<-x.block
		}
		return refuse(r, unix.Fdatasync(int(x.file.Fd())))
	case zns.OpResetAll:
		x.mu.Lock()
		defer x.mu.Unlock()
		for i := range x.zones {
			if z := &x.zones[i]; z.Type == zns.TypeSeqWriteReq {
				z.reset()
			}
		}
		return refuse(r, nil)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	z := &x.zones[x.geometry.ZoneOf(r.Start)]
	switch r.Op {
	case zns.OpReset:
		z.reset()
	case zns.OpFinish:
		zeros := make([]byte, z.Start+z.Capacity-z.WP)
		if _, err := x.file.WriteAt(zeros, int64(z.WP)); err != nil {
			return refuse(r, err)
		}
		z.WP = z.Start + z.Capacity
		z.done, z.Cond = z.WP, zns.CondFull
	case zns.OpWriteZeroes:
		if err := x.reserve(r, z); err != nil {
			return refuse(r, err)
		}
		if _, err := x.file.WriteAt(make([]byte, r.Len), int64(r.At)); err != nil {
			return refuse(r, err)
		}
		if z.Type == zns.TypeSeqWriteReq {
			z.busy--
			z.done = z.WP
		}
	}
	return refuse(r, nil)
}

func (z *toyZone) reset() { z.WP, z.done, z.Cond = z.Start, z.Start, zns.CondEmpty }
