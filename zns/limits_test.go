package zns

import "testing"

func TestTheLeastRecentlyUsedImplicitlyOpenZoneIsClosed(t *testing.T) {
	r := newRig(t, Geometry{MaxOpen: 3})
	r.ok(r.write(0, 0, 512, 1))
	r.ok(r.write(1, 0, 512, 1))
	r.ok(r.write(2, 0, 512, 1))
	r.ok(r.write(0, 512, 512, 1)) // 1 is the oldest now
	r.ok(r.write(3, 0, 512, 1))
	r.is(0, CondImpOpen, 1024)
	r.is(1, CondClosed, 512)
	r.is(2, CondImpOpen, 512)
	r.ok(r.manage(OpOpen, 2)) // explicit zones are never victims
	r.ok(r.write(4, 0, 512, 1))
	r.is(0, CondClosed, 1024)
	r.is(2, CondExpOpen, 512)
	r.ok(r.write(1, 512, 512, 1))
	r.is(3, CondClosed, 512)
	r.is(1, CondImpOpen, 1024)
	r.is(4, CondImpOpen, 512)
}

func TestAllOpenZonesExplicitPlusOneWrite(t *testing.T) {
	r := newRig(t, Geometry{MaxOpen: 2})
	r.ok(r.manage(OpOpen, 0))
	r.ok(r.manage(OpOpen, 1))
	r.refused(r.write(2, 0, 512, 1), ErrOpenLimit)
	_, err := r.append(2, 512, 1)
	r.refused(err, ErrOpenLimit)
	r.refused(r.zeroes(2, 0, 512), ErrOpenLimit)
	r.refused(r.manage(OpFinish, 2), ErrOpenLimit)
	r.is(2, CondEmpty, 0)
	r.ok(r.write(0, 0, 512, 1)) // the open ones go on
	r.ok(r.manage(OpClose, 1))
	r.ok(r.write(2, 0, 512, 1))
}

func TestExplicitOpenRespectsMaxOpen(t *testing.T) {
	r := newRig(t, Geometry{MaxOpen: 2})
	r.ok(r.manage(OpOpen, 0))
	r.ok(r.write(1, 0, 512, 1))
	r.ok(r.manage(OpOpen, 2)) // evicts 1
	r.is(1, CondClosed, 512)
	r.refused(r.manage(OpOpen, 3), ErrOpenLimit)
	r.is(3, CondEmpty, 0)
	r.refused(r.manage(OpOpen, 1), ErrOpenLimit)
	r.is(1, CondClosed, 512)
}

func TestOpeningTwiceCountsOnce(t *testing.T) {
	r := newRig(t, Geometry{MaxOpen: 2})
	r.ok(r.manage(OpOpen, 0))
	r.ok(r.manage(OpOpen, 0))
	r.is(0, CondExpOpen, 0)
	r.ok(r.write(1, 0, 512, 1))
	r.ok(r.manage(OpOpen, 1)) // implicit to explicit at the limit
	r.is(1, CondExpOpen, 512)
	r.ok(r.manage(OpClose, 0))
	r.is(0, CondEmpty, 0)
	r.ok(r.manage(OpOpen, 2))
}

func TestTheActiveLimitHolds(t *testing.T) {
	r := newRig(t, Geometry{MaxOpen: 2, MaxActive: 3})
	for i := range uint32(3) {
		r.ok(r.write(i, 0, 512, 1))
	}
	before := r.snapshot()
	r.refused(r.write(3, 0, 512, 1), ErrActiveLimit)
	r.refused(r.zeroes(3, 0, 512), ErrActiveLimit)
	r.refused(r.manage(OpOpen, 3), ErrActiveLimit)
	r.refused(r.manage(OpFinish, 3), ErrActiveLimit)
	if after := r.snapshot(); after != before {
		t.Errorf("refusals changed %v to %v", before, after)
	}
	r.ok(r.manage(OpClose, 1)) // closed is active still
	r.refused(r.write(3, 0, 512, 1), ErrActiveLimit)
	r.ok(r.manage(OpFinish, 1))
	r.ok(r.write(3, 0, 512, 1))
	r.ok(r.manage(OpReset, 2))
	r.ok(r.write(4, 0, 512, 1))
}

func TestAClosedZoneCanBeWrittenWhenActiveIsAtTheLimit(t *testing.T) {
	r := newRig(t, Geometry{MaxOpen: 2, MaxActive: 3})
	for i := range uint32(3) {
		r.ok(r.write(i, 0, 512, 1))
	}
	r.is(0, CondClosed, 512)
	r.ok(r.write(0, 512, 512, 1))
	r.is(0, CondImpOpen, 1024)
	r.is(1, CondClosed, 512)
	r.ok(r.manage(OpOpen, 1))
	r.is(1, CondExpOpen, 512)
	r.is(2, CondClosed, 512)
}

func TestTheActiveLimitHoldsAfterAReopen(t *testing.T) { // I15
	r := newRig(t, Geometry{MaxActive: 2})
	r.ok(r.write(0, 0, 512, 1))
	r.ok(r.write(1, 0, 512, 1))
	r.reopen()
	r.is(0, CondClosed, 512)
	r.is(1, CondClosed, 512)
	r.refused(r.write(2, 0, 512, 1), ErrActiveLimit)
	r.ok(r.write(0, 512, 512, 1))
}

func TestAnImageAboveItsActiveLimitOpens(t *testing.T) { // I15
	r := newRig(t, Geometry{MaxActive: 2, MaxOpen: 1})
	for i := range uint32(4) {
		r.m.wp[i] = r.start(i) + 512
	}
	r.reopen()
	if _, active := r.d.Counts(); active != 4 {
		t.Fatalf("%d active", active)
	}
	r.ok(r.write(3, 512, 512, 1))
	r.refused(r.write(4, 0, 512, 1), ErrActiveLimit)
	r.ok(r.manage(OpFinish, 0))
	r.ok(r.manage(OpReset, 1))
	r.refused(r.write(4, 0, 512, 1), ErrActiveLimit)
	r.ok(r.manage(OpFinish, 2))
	r.ok(r.write(4, 0, 512, 1))
}

func TestLimitsNotBelowTheSequentialZonesAreNone(t *testing.T) {
	r := newRig(t, Geometry{NrZones: 4, Conventional: 2, MaxOpen: 2, MaxActive: 2})
	r.ok(r.manage(OpOpen, 2))
	r.ok(r.manage(OpOpen, 3))
	if r.d.limits.maxOpen != 0 || r.d.limits.maxActive != 0 {
		t.Error("limits kept")
	}
	if g := r.d.Geometry(); g.MaxOpen != 2 {
		t.Errorf("Geometry changed to %+v", g)
	}
}

func TestAFullZoneLeavesTheLimits(t *testing.T) {
	r := newRig(t, Geometry{MaxOpen: 1, MaxActive: 1})
	r.ok(r.write(0, 0, 64*kib, 1))
	r.is(0, CondFull, 64*kib)
	r.ok(r.manage(OpOpen, 1))
	r.ok(r.write(1, 0, 64*kib, 1))
	r.is(1, CondFull, 64*kib)
	r.ok(r.write(2, 0, 512, 1))
	r.ok(r.d.SetCond(2, CondReadOnly))
	r.ok(r.write(3, 0, 512, 1))
	r.ok(r.d.SetCond(3, CondOffline))
	r.ok(r.write(4, 0, 512, 1))
}
