package zns

import "testing"

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
