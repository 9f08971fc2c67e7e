package zns

import "testing"

// What the founding series' own test asks for, and what the series itself got
// wrong where it is about zones. Sectors have 512 bytes.

func series(t *testing.T) *rig {
	return newRig(t, Geometry{
		ZoneSize: 64 * mib, NrZones: 12, MaxAppend: 32 * mib, MaxOpen: 6, MaxActive: 8,
	})
}

func TestSeries1AFreshImageIsEmpty(t *testing.T) {
	r := series(t)
	for i := range uint32(12) {
		r.is(i, CondEmpty, 0)
	}
}

func TestSeries2OpenCloseFinishReset(t *testing.T) {
	r := series(t)
	for _, i := range []uint32{0, 1, 11} {
		r.ok(r.manage(OpOpen, i))
		r.is(i, CondExpOpen, 0)
	}
	for _, i := range []uint32{0, 1, 11} {
		r.ok(r.manage(OpClose, i))
		r.is(i, CondEmpty, 0)
	}
	for _, i := range []uint32{0, 1, 11} {
		r.ok(r.manage(OpFinish, i))
		r.is(i, CondFull, 64*mib)
		r.is((i+2)%12, CondEmpty, 0)
		r.ok(r.manage(OpReset, i))
		r.is(i, CondEmpty, 0)
	}
}

func TestSeries3Append(t *testing.T) {
	r := series(t)
	for zone := range uint32(2) {
		for k, n := range []uint64{0x1000, 0x2000, 0x1000, 0x2000} {
			at, err := r.append(zone, n, byte(k+1))
			r.ok(err)
			if want := [...]uint64{0, 8, 0x18, 0x20}[k] * 512; at != want {
				t.Errorf("append %d of zone %d placed at %#x, want %#x", k, zone, at, want)
			}
			r.is(zone, CondImpOpen, at+n)
		}
	}
	r.is(1, CondImpOpen, 0x30*512)
	if p := r.read(1, 0x18*512, 0x2000); p[0] != 3 || p[8*512] != 4 {
		t.Error("appended data in the wrong place")
	}
	r.reopen()
	r.is(0, CondClosed, 0x30*512)
	r.is(1, CondClosed, 0x30*512)
	for i := uint32(2); i < 12; i++ {
		r.is(i, CondEmpty, 0)
	}
	r.ok(r.manage(OpResetAll, 0))
	for i := range uint32(12) {
		r.is(i, CondEmpty, 0)
	}
}

func TestSeries4AppendLimitAndCapacity(t *testing.T) {
	r := series(t)
	if at, err := r.append(0, 32*mib+512, 1); err != ErrAppendSize {
		t.Errorf("append above the limit: %#x, %v", at, err)
	}
	r.is(0, CondEmpty, 0)
	for _, n := range []uint64{0x1000, 0x1ffd000, 0x1fff000, 0x3000} {
		_, err := r.append(0, n, 1)
		r.ok(err)
	}
	r.is(0, CondFull, 64*mib)
	_, err := r.append(0, 0x1000, 1)
	r.refused(err, ErrFull)
	r.ok(r.manage(OpReset, 0))
	r.is(0, CondEmpty, 0)
}

func TestSeries5ClosedAfterReopenAndByClose(t *testing.T) {
	r := series(t)
	for _, i := range []uint32{0, 3, 8} {
		_, err := r.append(i, 0x1000, 1)
		r.ok(err)
		r.is(i, CondImpOpen, 0x1000)
	}
	r.reopen()
	for _, i := range []uint32{0, 3, 8} {
		r.is(i, CondClosed, 0x1000)
	}
	r.ok(r.manage(OpResetAll, 0))
	for i := range uint32(3) {
		_, err := r.append(i, 0x1000, 1)
		r.ok(err)
	}
	for i := range uint32(3) {
		r.ok(r.manage(OpClose, i))
		r.is(i, CondClosed, 0x1000)
	}
}

func TestRegressions(t *testing.T) {
	for name, f := range map[string]func(r *rig){
		"an I/O error moves no write pointer": func(r *rig) {
			r.begin(OpWrite, 1, 0, 512, 1).ready().end(errDisk)
			r.is(1, CondEmpty, 0)
		},
		"opening a full zone leaves it full": func(r *rig) {
			r.ok(r.manage(OpFinish, 1))
			r.refused(r.manage(OpOpen, 1), ErrFull)
			r.is(1, CondFull, 48*kib)
		},
		"capacity is not the zone size": func(r *rig) {
			if z := r.d.Zone(1); z.Capacity != 48*kib || z.Len != 64*kib {
				r.Errorf("%+v", z)
			}
		},
		"full at a capacity that is no power of two": func(r *rig) {
			r.ok(r.write(1, 0, 40*kib, 1))
			r.is(1, CondImpOpen, 40*kib)
			r.refused(r.write(1, 40*kib, 16*kib, 1), ErrBoundary)
			r.ok(r.write(1, 40*kib, 8*kib, 1))
			r.is(1, CondFull, 48*kib)
			r.refused(r.write(1, 48*kib, 512, 1), ErrFull)
		},
		"the last zone is full and reset like any other": func(r *rig) {
			r.ok(r.write(7, 0, 48*kib, 1))
			r.is(7, CondFull, 48*kib)
			r.ok(r.manage(OpReset, 7))
			r.is(7, CondEmpty, 0)
		},
		"append to a conventional zone": func(r *rig) {
			_, err := r.append(0, 512, 1)
			r.refused(err, ErrConventional)
		},
		"write-zeroes obeys the zone": func(r *rig) {
			r.refused(r.zeroes(1, 512, 512), ErrNotAtWP)
			r.ok(r.zeroes(1, 0, 512))
			r.is(1, CondImpOpen, 512)
			r.refused(r.zeroes(1, 512, 48*kib), ErrBoundary)
			r.ok(r.zeroes(1, 512, 48*kib-512))
			r.is(1, CondFull, 48*kib)
			r.refused(r.zeroes(1, 0, 512), ErrFull)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f(newRig(t, Geometry{Conventional: 1, ZoneCapacity: 48 * kib, MaxOpen: 3, MaxActive: 4}))
		})
	}
}

// Zones of 2 GiB and more must not overflow anything.
func TestHugeZones(t *testing.T) {
	for _, size := range []uint64{2 * gib, 4 * gib, 8 * gib, 1 << 45} {
		r := newRig(t, Geometry{ZoneSize: size, NrZones: 5, MaxOpen: 2, MaxAppend: mib})
		last := uint32(4)
		r.m.wp[last] = r.start(last) + size - 8*kib
		r.reopen()
		r.is(last, CondClosed, size-8*kib)
		at, err := r.append(last, 4*kib, 1)
		r.ok(err)
		if at != size-8*kib {
			t.Errorf("zone size %d: appended at %#x", size, at)
		}
		r.ok(r.write(last, size-4*kib, 4*kib, 2))
		r.is(last, CondFull, size)
		if p := r.read(last, size-8*kib, 8*kib); p[0] != 1 || p[4*kib] != 2 {
			t.Errorf("zone size %d: wrong data", size)
		}
		r.m.drop(r.start(last)+size-8*kib, r.start(last)+size) // or Reset walks every cluster
		r.m.fail = func(what string) error {
			r.m.wp[last] = r.start(last)
			return nil
		}
		if size <= 4*gib {
			r.ok(r.manage(OpReset, last))
			r.is(last, CondEmpty, 0)
		}
	}
}
