package zns

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func TestNewReadsTheConditionFromTheWritePointer(t *testing.T) {
	r := newRig(t, Geometry{NrZones: 6, Conventional: 1, ZoneCapacity: 48 * kib})
	r.m.wp[2] = r.start(2) + 512
	r.m.wp[3] = r.start(3) + 48*kib - 512
	r.m.wp[4] = r.start(4) + 48*kib
	r.m.wp[5] = r.start(5) + 64*kib // how layout v9 stores a finished zone
	r.reopen()
	r.is(0, CondNotWP, 0)
	r.is(1, CondEmpty, 0)
	r.is(2, CondClosed, 512)
	r.is(3, CondClosed, 48*kib-512)
	r.is(4, CondFull, 48*kib)
	r.is(5, CondFull, 48*kib)
	if z := r.d.Zone(0); z.Type != TypeConventional || z.Capacity != z.Len {
		t.Errorf("conventional zone reported as %+v", z)
	}
	if z := r.d.Zone(1); z.Type != TypeSeqWriteReq || z.Capacity != 48*kib {
		t.Errorf("sequential zone reported as %+v", z)
	}
}

func TestNewRefusesBadGeometry(t *testing.T) {
	good := Geometry{
		Size: 512 * kib, ZoneSize: 64 * kib, ZoneCapacity: 64 * kib, NrZones: 8,
		MaxAppend: 4096, BlockSize: 512,
	}
	m := newMemMedia(good, 8*kib)
	if _, err := New(good, m); err != nil {
		t.Fatal(err)
	}
	for names, spoil := range map[string]func(*Geometry){
		"block size 1024":  func(g *Geometry) { g.BlockSize = 1024 },
		"zone size 0":      func(g *Geometry) { g.ZoneSize = 0 },
		"zone size 98304":  func(g *Geometry) { g.ZoneSize = 96 * kib },
		"zone size 256":    func(g *Geometry) { g.ZoneSize = 256 },
		"capacity 0":       func(g *Geometry) { g.ZoneCapacity = 0 },
		"capacity 65537":   func(g *Geometry) { g.ZoneCapacity = 64*kib + 1 },
		"capacity 1000":    func(g *Geometry) { g.ZoneCapacity = 1000 },
		"8 conventional":   func(g *Geometry) { g.Conventional = 8 },
		"size 524800":      func(g *Geometry) { g.Size += 512 },
		"size 458752":      func(g *Geometry) { g.Size -= 64 * kib },
		"max open zones 5": func(g *Geometry) { g.MaxOpen, g.MaxActive = 5, 4 },
		"max append":       func(g *Geometry) { g.MaxAppend = 0 },
	} {
		g := good
		spoil(&g)
		if _, err := New(g, m); err == nil || !strings.Contains(err.Error(), names) {
			t.Errorf("%s: %v", names, err)
		}
	}
}

func TestNewRefusesAPointerOutsideItsZone(t *testing.T) {
	r := newRig(t, Geometry{})
	for _, wp := range []uint64{0, r.start(2) - 512, r.start(2) + 100, r.start(3) + 512} {
		r.m.wp[2] = wp
		if _, err := New(r.g, r.m); err == nil || !strings.Contains(err.Error(), "zone 2") {
			t.Errorf("pointer %#x: %v", wp, err)
		}
	}
}

func TestARequestOutsideTheRulesIsRefusedAndChangesNothing(t *testing.T) { // I11
	r := newRig(t, Geometry{NrZones: 6, Conventional: 1, ZoneCapacity: 48 * kib, MaxAppend: 8 * kib, BlockSize: 4096})
	r.ok(r.write(1, 0, 8*kib, 1))
	r.ok(r.write(2, 0, 48*kib, 2))
	r.ok(r.write(3, 0, 4*kib, 3))
	r.ok(r.d.SetCond(3, CondReadOnly))
	r.ok(r.d.SetCond(4, CondOffline))
	end := r.g.Size
	before := r.snapshot()
	for _, c := range []struct {
		name  string
		op    Op
		start uint64
		n     uint64
		want  error
	}{
		{"read of nothing", OpRead, 0, 0, ErrInvalid},
		{"read of half a block", OpRead, 0, 2048, ErrInvalid},
		{"read between blocks", OpRead, 512, 4096, ErrInvalid},
		{"read past the device", OpRead, end - 4096, 8192, ErrInvalid},
		{"read beyond the device", OpRead, end, 4096, ErrInvalid},
		{"read that wraps", OpRead, 4096, ^uint64(0) &^ 4095, ErrInvalid},
		{"read across zones", OpRead, r.start(1) - 4096, 8192, ErrBoundary},
		{"read of an offline zone", OpRead, r.start(4), 4096, ErrOffline},
		{"write of a sector in a device of 4K blocks", OpWrite, r.start(1) + 8*kib, 512, ErrInvalid},
		{"write below the pointer", OpWrite, r.start(1) + 4*kib, 4096, ErrNotAtWP},
		{"write above the pointer", OpWrite, r.start(1) + 12*kib, 4096, ErrNotAtWP},
		{"write past the capacity", OpWrite, r.start(1) + 8*kib, 44 * kib, ErrBoundary},
		{"write across zones", OpWrite, r.start(1) + 8*kib, 60 * kib, ErrBoundary},
		{"write across conventional zones", OpWrite, r.start(1) - 4096, 8192, ErrBoundary},
		{"write to a full zone", OpWrite, r.start(2) + 48*kib, 4096, ErrFull},
		{"write to a read-only zone", OpWrite, r.start(3) + 4*kib, 4096, ErrReadOnly},
		{"write to an offline zone", OpWrite, r.start(4), 4096, ErrOffline},
		{"zeroes at the wrong place", OpWriteZeroes, r.start(1), 4096, ErrNotAtWP},
		{"zeroes past the capacity", OpWriteZeroes, r.start(1) + 8*kib, 44 * kib, ErrBoundary},
		{"zeroes in a full zone", OpWriteZeroes, r.start(2), 4096, ErrFull},
		{"append inside a zone", OpAppend, r.start(1) + 8*kib, 4096, ErrInvalid},
		{"append above the limit", OpAppend, r.start(1), 12 * kib, ErrAppendSize},
		{"append to a full zone", OpAppend, r.start(2), 4096, ErrFull},
		{"append to a read-only zone", OpAppend, r.start(3), 4096, ErrReadOnly},
		{"append to a conventional zone", OpAppend, 0, 4096, ErrConventional},
		{"open inside a zone", OpOpen, r.start(1) + 4096, 0, ErrInvalid},
		{"open beyond the device", OpOpen, end, 0, ErrInvalid},
		{"open of a conventional zone", OpOpen, 0, 0, ErrConventional},
		{"open of a full zone", OpOpen, r.start(2), 0, ErrFull},
		{"open of a read-only zone", OpOpen, r.start(3), 0, ErrReadOnly},
		{"close of an empty zone", OpClose, r.start(5), 0, ErrCond},
		{"close of a full zone", OpClose, r.start(2), 0, ErrCond},
		{"close of a conventional zone", OpClose, 0, 0, ErrConventional},
		{"finish of a conventional zone", OpFinish, 0, 0, ErrConventional},
		{"finish of an offline zone", OpFinish, r.start(4), 0, ErrOffline},
		{"reset of a conventional zone", OpReset, 0, 0, ErrConventional},
		{"reset inside a zone", OpReset, r.start(1) + 4096, 0, ErrInvalid},
		{"reset of a read-only zone", OpReset, r.start(3), 0, ErrReadOnly},
		{"reset of an offline zone", OpReset, r.start(4), 0, ErrOffline},
		{"an operation that does not exist", Op(99), 0, 0, ErrUnsupported},
	} {
		q := &Request{Op: c.op, Start: c.start, Len: c.n}
		if s := r.d.Begin(q); s != Answer || !errors.Is(q.Err, c.want) {
			t.Errorf("%s: step %d, error %v, want %v", c.name, s, q.Err, c.want)
		}
	}
	if after := r.snapshot(); after != before {
		t.Errorf("refused requests changed\n%v to\n%v", before, after)
	}
}

// snapshot is everything a host can see of the conditions.
func (r *rig) snapshot() (s [8]Zone) {
	for i := range min(r.g.NrZones, 8) {
		s[i] = r.d.Zone(i)
	}
	return s
}

func TestAReadOnlyDeviceOnlyReads(t *testing.T) {
	r := newRig(t, Geometry{Conventional: 1})
	r.ok(r.write(1, 0, 4*kib, 7))
	r.reopen(ReadOnly())
	for _, op := range []Op{OpWrite, OpAppend, OpWriteZeroes, OpOpen, OpClose, OpFinish, OpReset, OpResetAll} {
		q := &Request{Op: op, Start: r.start(1), Len: 512}
		if s := r.d.Begin(q); s != Answer || q.Err != ErrDeviceRO {
			t.Errorf("%v: step %d, error %v", op, s, q.Err)
		}
	}
	r.ok(r.manage(OpFlush, 0))
	if got := r.read(1, 0, 4*kib); got[0] != 7 || r.m.rounds != 0 {
		t.Errorf("read %d, %d rounds", got[0], r.m.rounds)
	}
}

func TestAWatchSeesEveryChange(t *testing.T) {
	r := newRig(t, Geometry{MaxOpen: 1})
	var got []string
	r.reopen(watchConds(func(i uint32, from, to Cond) {
		got = append(got, string(rune('0'+i))+" "+from.String()+" "+to.String())
	}))
	r.ok(r.write(0, 0, 512, 1))
	r.ok(r.write(1, 0, 512, 1))
	r.ok(r.write(1, 512, 512, 1))
	r.ok(r.manage(OpFinish, 1))
	r.ok(r.manage(OpReset, 1))
	want := "0 empty implicit-open|0 implicit-open closed|1 empty implicit-open|1 implicit-open full|1 full empty"
	if s := strings.Join(got, "|"); s != want {
		t.Errorf("traced %s\nwant   %s", s, want)
	}
}

func TestARequestMisusedPanics(t *testing.T) {
	for name, f := range map[string]func(r *rig, q *manual){
		"Begin twice":     func(r *rig, q *manual) { r.d.Begin(&q.Request) },
		"Work without":    func(r *rig, q *manual) { r.d.Work(&q.Request) },
		"End twice":       func(r *rig, q *manual) { q.end(nil); q.end(nil) },
		"data too short":  func(r *rig, q *manual) { q.data = q.data[1:]; q.end(nil) },
		"SetCond to full": func(r *rig, q *manual) { _ = r.d.SetCond(1, CondFull) },
	} {
		r := newRig(t, Geometry{})
		q := r.begin(OpAppend, 0, 0, 512, 1).ready()
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s did not panic", name)
				}
			}()
			f(r, q)
		}()
	}
}

func TestAReportNeverShowsHalfAChange(t *testing.T) {
	const zone = 64 * kib
	g := Geometry{
		Size: 4 * zone, ZoneSize: zone, ZoneCapacity: 1024, NrZones: 4, MaxAppend: 512, BlockSize: 512,
	}
	d, err := New(g, flatMedia{zone})
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			z := d.Zone(1)
			if wp := z.WP - z.Start; (z.Cond == CondFull) != (wp == 1024) || z.Cond == CondEmpty && wp != 0 {
				t.Errorf("zone is %v at %#x", z.Cond, wp)
				return
			}
		}
	})
	var q Request
	for range 50_000 {
		for _, op := range [...]Op{OpAppend, OpAppend, OpReset} {
			q.Op, q.Start, q.Len = op, zone, 512
			step := d.Begin(&q)
			if step == Work {
				step = d.Work(&q)
			}
			if step == IO {
				step = d.End(&q, nil)
			}
			if step != Answer || q.Err != nil {
				t.Fatal(step, q.Err)
			}
		}
	}
	stop.Store(true)
	wg.Wait()
}
