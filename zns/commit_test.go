package zns

import (
	"errors"
	"testing"
)

var errDisk = errors.New("disk error")

func TestAppendsInFlightAreAnsweredInRangeOrder(t *testing.T) {
	r := newRig(t, Geometry{})
	var q [3]*manual
	for i := range q {
		q[i] = r.begin(OpAppend, 2, 0, 4*kib, byte(i+1)).ready()
		if want := r.start(2) + uint64(i)*4*kib; q[i].At != want {
			t.Fatalf("append %d placed at %#x, want %#x", i, q[i].At, want)
		}
	}
	r.is(2, CondImpOpen, 0)
	q[2].end(nil)
	q[2].waits()
	q[1].end(nil)
	q[1].waits()
	r.is(2, CondImpOpen, 0)
	q[0].end(nil)
	for i := range q {
		q[i].answered(nil)
	}
	r.is(2, CondImpOpen, 12*kib)
	if p := r.read(2, 0, 12*kib); p[0] != 1 || p[4*kib] != 2 || p[8*kib] != 3 {
		t.Error("data in the wrong place")
	}
}

func TestThreeWritesInFlightToOneZone(t *testing.T) {
	r := newRig(t, Geometry{})
	a := r.begin(OpWrite, 0, 0, 4*kib, 1).ready()
	b := r.begin(OpWrite, 0, 4*kib, 4*kib, 2).ready()
	r.begin(OpWrite, 0, 4*kib, 4*kib, 9).answered(ErrNotAtWP)
	c := r.begin(OpWrite, 0, 8*kib, 4*kib, 3).ready()
	b.end(nil)
	a.end(nil)
	b.answered(nil)
	c.end(nil)
	c.answered(nil)
	r.is(0, CondImpOpen, 12*kib)
}

func TestAFUARequestThatWaitedIsWokenForItsRound(t *testing.T) {
	r := newRig(t, Geometry{})
	a := r.begin(OpAppend, 0, 0, 4*kib, 1).ready()
	b := r.begin(OpAppend, 0, 0, 4*kib, 2)
	b.FUA = true
	b.ready().end(nil)
	b.waits()
	a.end(nil)
	a.answered(nil)
	if b.step != Work || r.m.rounds != 0 {
		t.Fatalf("step %d, %d rounds", b.step, r.m.rounds)
	}
	b.step = r.d.Work(&b.Request)
	b.answered(nil)
	if r.m.rounds != 1 || r.m.synced[0] != 8*kib {
		t.Errorf("%d rounds, synced %#x", r.m.rounds, r.m.synced[0])
	}
}

func TestAFailureTakesThoseAboveAlong(t *testing.T) {
	r := newRig(t, Geometry{})
	r.ok(r.write(0, 0, 4*kib, 8))
	var q [5]*manual
	for i := range q {
		q[i] = r.begin(OpAppend, 0, 0, 4*kib, byte(i+1)).ready()
	}
	q[4].end(nil)
	q[1].end(errDisk)
	q[1].waits() // answers keep the order
	late := r.begin(OpAppend, 0, 0, 4*kib, 7)
	if late.step != Work {
		t.Fatalf("a new append while the zone drains: step %d, error %v", late.step, late.Err)
	}
	q[0].end(nil)
	q[0].answered(nil)
	q[1].answered(errDisk)
	r.is(0, CondImpOpen, 8*kib)
	q[3].end(errDisk)
	q[3].waits()
	q[2].end(nil)
	q[2].answered(ErrAborted)
	q[3].answered(ErrAborted)
	q[4].answered(ErrAborted)
	r.is(0, CondImpOpen, 8*kib)

	late.ready()
	if late.At != 8*kib {
		t.Errorf("the append after the failure was placed at %#x", late.At)
	}
	late.end(nil)
	late.answered(nil)
	r.is(0, CondImpOpen, 12*kib)
	if p := r.read(0, 0, 16*kib); p[4*kib] != 1 || p[8*kib] != 7 || p[12*kib] != 0 {
		t.Errorf("read %d %d %d", p[4*kib], p[8*kib], p[12*kib])
	}
}

func TestReadsPassWhileAFailureDrains(t *testing.T) {
	r := newRig(t, Geometry{})
	r.ok(r.write(0, 0, 4*kib, 8))
	a := r.begin(OpAppend, 0, 0, 4*kib, 1).ready()
	b := r.begin(OpAppend, 0, 0, 4*kib, 2).ready()
	a.end(errDisk)
	if r.read(0, 0, 4*kib)[0] != 8 {
		t.Error("wrong data")
	}
	b.end(nil)
	b.answered(ErrAborted)
}

func TestAZoneActivatedInVainIsEmptyAgain(t *testing.T) {
	r := newRig(t, Geometry{MaxOpen: 1, MaxActive: 2})
	a := r.begin(OpAppend, 0, 0, 4*kib, 1).ready()
	b := r.begin(OpAppend, 0, 0, 4*kib, 2).ready()
	r.ok(r.write(1, 0, 512, 1)) // evicts zone 0
	r.is(0, CondClosed, 0)
	c := r.begin(OpAppend, 0, 0, 4*kib, 3).ready() // and comes back
	r.is(0, CondImpOpen, 0)
	a.end(errDisk)
	b.end(nil)
	r.is(0, CondImpOpen, 0)
	c.end(nil)
	c.answered(ErrAborted)
	r.is(0, CondEmpty, 0)

	// Closed explicitly in between.
	r.ok(r.manage(OpOpen, 0))
	a = r.begin(OpWrite, 0, 0, 4*kib, 1).ready()
	r.ok(r.manage(OpClose, 0))
	r.is(0, CondClosed, 0)
	a.end(errDisk)
	r.is(0, CondEmpty, 0)

	// Opened explicitly in between: that stays.
	a = r.begin(OpWrite, 0, 0, 4*kib, 1).ready()
	r.ok(r.manage(OpOpen, 0))
	a.end(errDisk)
	r.is(0, CondExpOpen, 0)
}

func TestAFailureOfTheOpenerClosesTheZoneAgainAfterTheDrain(t *testing.T) {
	r := newRig(t, Geometry{})
	r.ok(r.write(0, 0, 4*kib, 8))
	r.ok(r.manage(OpClose, 0))
	a := r.begin(OpAppend, 0, 0, 4*kib, 1).ready()
	b := r.begin(OpAppend, 0, 0, 4*kib, 2).ready()
	a.end(errDisk)
	a.answered(errDisk)
	r.is(0, CondImpOpen, 4*kib)
	b.end(nil)
	r.is(0, CondClosed, 4*kib)
}

func TestTheLastOfSeveralMakesTheZoneFull(t *testing.T) {
	r := newRig(t, Geometry{ZoneCapacity: 12 * kib})
	var q [3]*manual
	for i := range q {
		q[i] = r.begin(OpAppend, 1, 0, 4*kib, byte(i+1)).ready()
	}
	r.begin(OpAppend, 1, 0, 4*kib, 9).answered(ErrFull)
	q[1].end(nil)
	q[2].end(nil)
	r.is(1, CondImpOpen, 0)
	q[0].end(nil)
	r.is(1, CondFull, 12*kib)
	r.begin(OpAppend, 1, 0, 4*kib, 9).answered(ErrFull)
}

func TestWriteZeroesWaitsLikeAWrite(t *testing.T) {
	r := newRig(t, Geometry{})
	a := r.begin(OpWrite, 0, 0, 4*kib, 1).ready()
	z := r.begin(OpWriteZeroes, 0, 4*kib, 4*kib, 0)
	if z.step != Work {
		t.Fatalf("step %d", z.step)
	}
	b := r.begin(OpWrite, 0, 8*kib, 4*kib, 2).ready()
	z.step = r.d.Work(&z.Request)
	z.waits()
	b.end(nil)
	a.end(nil)
	z.answered(nil)
	b.answered(nil)
	r.is(0, CondImpOpen, 12*kib)
	if p := r.read(0, 0, 12*kib); p[0] != 1 || p[4*kib] != 0 || p[8*kib] != 2 {
		t.Error("wrong data")
	}
}

func TestDataAboveAFailedWriteNeverShows(t *testing.T) { // I2, I6
	r := newRig(t, Geometry{ZoneCapacity: 16 * kib})
	for zone, after := range []func(zone uint32){
		func(zone uint32) { r.ok(r.manage(OpFinish, zone)) },
		func(zone uint32) { r.ok(r.zeroes(zone, 0, 16*kib)) },
		func(zone uint32) {},
	} {
		i := uint32(zone)
		a := r.begin(OpAppend, i, 0, 4*kib, 1).ready()
		b := r.begin(OpAppend, i, 0, 4*kib, 2).ready()
		b.end(nil) // its data is in the file
		a.end(errDisk)
		after(i)
		for _, c := range r.read(i, 0, 16*kib) {
			if c != 0 {
				t.Fatalf("zone %d shows what was aborted", i)
			}
		}
	}
}
