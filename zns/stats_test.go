package zns

import (
	"maps"
	"testing"
)

func TestStatsCountTheZonesByCondition(t *testing.T) {
	r := newRig(t, Geometry{Conventional: 2, MaxOpen: 3, MaxActive: 5})
	r.ok(r.write(2, 0, 512, 1))
	r.ok(r.manage(OpOpen, 3))
	r.ok(r.write(4, 0, 512, 1))
	r.ok(r.manage(OpClose, 4))
	r.ok(r.manage(OpFinish, 5))
	if err := r.d.SetCond(6, CondOffline); err != nil {
		t.Fatal(err)
	}
	s := r.d.Stats()
	want := map[Cond]uint32{CondNotWP: 2, CondImpOpen: 1, CondExpOpen: 1, CondClosed: 1, CondFull: 1, CondOffline: 1, CondEmpty: 1}
	if !maps.Equal(s.Conds, want) || s.Open != 2 || s.Active != 3 || s.MaxOpen != 3 || s.MaxActive != 5 {
		t.Errorf("%+v", s)
	}
}

func TestARequestSaysThatItsMappingTookWork(t *testing.T) {
	r := newRig(t, Geometry{})
	for i, want := range []bool{true, false} { // the second finds what the first has mapped
		q := &Request{Op: OpWrite, Start: r.start(1) + uint64(i)*512, Len: 512}
		r.ok(Do(r.d, q, r.m, fill(512, 1)))
		if q.Unmapped != want {
			t.Errorf("write %d: unmapped is %v", i, q.Unmapped)
		}
	}
}
