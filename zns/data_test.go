package zns

import (
	"bytes"
	"errors"
	"testing"
)

func (r *rig) extents(zone uint32, off, n uint64) []Extent {
	r.Helper()
	q := r.begin(OpRead, zone, off, n, 0).ready()
	defer q.end(nil)
	return append([]Extent(nil), q.Extents...)
}

func TestReadsSeeTheCommittedPointer(t *testing.T) {
	r := newRig(t, Geometry{ZoneCapacity: 48 * kib})
	r.ok(r.write(1, 0, 12*kib, 5))
	host := r.m.table[r.start(1)/r.m.cluster]
	for _, c := range []struct {
		name   string
		off, n uint64
		want   []Extent
	}{
		{"below", 0, 4 * kib, []Extent{{host, 4 * kib}}},
		{"up to", 8 * kib, 4 * kib, []Extent{{host + 8*kib, 4 * kib}}},
		{"across, inside a cluster", 8 * kib, 8 * kib, []Extent{{host + 8*kib, 4 * kib}, {Hole, 4 * kib}}},
		{"above, in an allocated cluster", 12 * kib, 4 * kib, []Extent{{Hole, 4 * kib}}},
		{"above the capacity", 40 * kib, 24 * kib, []Extent{{Hole, 24 * kib}}},
		{"everything", 0, 64 * kib, []Extent{{host, 12 * kib}, {Hole, 52 * kib}}},
	} {
		got := r.extents(1, c.off, c.n)
		if len(got) != len(c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: %v, want %v", c.name, got, c.want)
			}
		}
	}
	// Holes of the media and the hole above the pointer are one.
	r.ok(r.manage(OpFinish, 1))
	if got := r.extents(1, 24*kib, 40*kib); len(got) != 1 || got[0] != (Extent{Hole, 40 * kib}) {
		t.Errorf("finished zone: %v", got)
	}
	// What is in flight is not there yet.
	q := r.begin(OpWrite, 1, 0, 512, 1)
	q.answered(ErrFull)
	q = r.begin(OpWrite, 2, 0, 4*kib, 1).ready()
	if got := r.read(2, 0, 4*kib); !bytes.Equal(got, make([]byte, 4*kib)) {
		t.Error("a read saw what is in flight")
	}
	q.end(nil)
	q.answered(nil)
	if got := r.read(2, 0, 4*kib); !bytes.Equal(got, fill(4*kib, 1)) {
		t.Error("a read does not see what was answered")
	}
}

func TestConventionalZonesTakeAnyRange(t *testing.T) {
	r := newRig(t, Geometry{Conventional: 2})
	r.ok(r.write(0, 32*kib, 4*kib, 1))
	r.ok(r.write(0, 34*kib, 1*kib, 2))
	r.ok(r.zeroes(0, 33*kib, 512))
	r.ok(r.write(1, 64*kib-512, 512, 3))
	want := fill(4*kib, 1)
	copy(want[2*kib:3*kib], fill(kib, 2))
	clear(want[kib : kib+512])
	if !bytes.Equal(r.read(0, 32*kib, 4*kib), want) || r.read(1, 64*kib-512, 512)[0] != 3 {
		t.Error("a conventional zone lost data")
	}
	r.is(0, CondNotWP, 0)
	r.is(1, CondNotWP, 0)
	r.refused(r.write(0, 63*kib, 2*kib, 1), ErrBoundary)
	failed := errors.New("no space")
	r.m.fail = func(string) error { return failed }
	r.refused(r.write(0, 0, 512, 1), failed)
	r.refused(r.zeroes(0, 0, 512), failed)
}

func TestWhatIsNotInMemoryGoesThroughWork(t *testing.T) {
	r := newRig(t, Geometry{Conventional: 1})
	r.ok(r.write(0, 0, 4*kib, 1))
	r.ok(r.write(1, 0, 4*kib, 2))
	r.m.slow = func() bool { return true }
	if r.read(0, 0, 512)[0] != 1 || r.read(1, 0, 512)[0] != 2 {
		t.Error("wrong data")
	}
	r.ok(r.write(1, 4*kib, 4*kib, 3))
	r.ok(r.manage(OpReset, 1)) // reads have left the count
	failed := errors.New("no such table")
	r.m.fail = func(what string) error { return failed }
	r.refused(func() error { _, err := r.do(OpRead, 0, 512, make([]byte, 512)); return err }(), failed)
	r.m.fail = nil
	r.ok(r.write(1, 0, 512, 3))
	r.m.fail = func(what string) error { return failed }
	r.refused(func() error { _, err := r.do(OpRead, r.start(1), 512, make([]byte, 512)); return err }(), failed)
	r.m.fail = nil
	r.ok(r.manage(OpReset, 1))
}

func TestAWriteWithoutSpaceHasChangedNothing(t *testing.T) { // I11
	failed := errors.New("no space")
	for _, c := range []struct {
		name  string
		setup func(r *rig)
		cond  Cond
		wp    uint64
	}{
		{"empty", func(r *rig) {}, CondEmpty, 0},
		{"implicitly open", func(r *rig) { r.ok(r.write(1, 0, 8*kib, 1)) }, CondImpOpen, 8 * kib},
		{"explicitly open, empty", func(r *rig) { r.ok(r.manage(OpOpen, 1)) }, CondExpOpen, 0},
		{"closed", func(r *rig) { r.ok(r.write(1, 0, 8*kib, 1)); r.ok(r.manage(OpClose, 1)) }, CondClosed, 8 * kib},
	} {
		for _, op := range []Op{OpWrite, OpAppend, OpWriteZeroes} {
			t.Run(c.name+" "+op.String(), func(t *testing.T) {
				r := newRig(t, Geometry{MaxOpen: 2, MaxActive: 3})
				c.setup(r)
				r.is(1, c.cond, c.wp)
				r.m.fail = func(string) error { return failed }
				at := r.start(1) + c.wp
				if op == OpAppend {
					at = r.start(1)
				}
				_, err := r.do(op, at, 4*kib, fill(4*kib, 9))
				r.refused(err, failed)
				r.is(1, c.cond, c.wp)
				r.m.fail = nil
				r.ok(r.write(1, c.wp, 4*kib, 2))
				after := CondImpOpen
				if c.cond == CondExpOpen {
					after = CondExpOpen
				}
				r.is(1, after, c.wp+4*kib)
			})
		}
	}
}

func TestFlushAndFUAMakeARound(t *testing.T) {
	r := newRig(t, Geometry{Conventional: 1})
	r.ok(r.write(1, 0, 4*kib, 1))
	if r.m.synced[1] != r.start(1) {
		t.Error("a write was made durable")
	}
	r.ok(r.manage(OpFlush, 0))
	if r.m.rounds != 1 || r.m.synced[1] != r.start(1)+4*kib {
		t.Errorf("after a flush: %d rounds, pointer %#x", r.m.rounds, r.m.synced[1])
	}
	for _, op := range []Op{OpWrite, OpAppend, OpWriteZeroes} {
		before, wp := r.m.rounds, r.m.wp[1]
		q := &Request{Op: op, FUA: true, Start: wp, Len: 512}
		if op == OpAppend {
			q.Start = r.start(1)
		}
		r.ok(Do(r.d, q, r.m, make([]byte, 512)))
		if r.m.rounds != before+1 || r.m.synced[1] != wp+512 {
			t.Errorf("after FUA %v: %d rounds, pointer %#x", op, r.m.rounds-before, r.m.synced[1])
		}
	}
	for _, op := range []Op{OpWrite, OpWriteZeroes} {
		before := r.m.rounds
		r.ok(Do(r.d, &Request{Op: op, FUA: true, Len: 512}, r.m, make([]byte, 512)))
		if r.m.rounds != before+1 {
			t.Errorf("FUA %v of a conventional zone: %d rounds", op, r.m.rounds-before)
		}
	}
	failed := errors.New("sync failed")
	r.m.fail = func(string) error { return failed }
	r.refused(r.manage(OpFlush, 0), failed)
}
