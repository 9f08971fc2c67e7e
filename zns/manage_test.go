package zns

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestManagementOfEveryCondition(t *testing.T) {
	reach := map[Cond]func(r *rig){
		CondEmpty:    func(r *rig) {},
		CondImpOpen:  func(r *rig) { r.ok(r.write(1, 0, 8*kib, 1)) },
		CondExpOpen:  func(r *rig) { r.ok(r.manage(OpOpen, 1)); r.ok(r.write(1, 0, 8*kib, 1)) },
		CondClosed:   func(r *rig) { r.ok(r.write(1, 0, 8*kib, 1)); r.ok(r.manage(OpClose, 1)) },
		CondFull:     func(r *rig) { r.ok(r.write(1, 0, 16*kib, 1)) },
		CondReadOnly: func(r *rig) { r.ok(r.write(1, 0, 8*kib, 1)); r.ok(r.d.SetCond(1, CondReadOnly)) },
		CondOffline:  func(r *rig) { r.ok(r.d.SetCond(1, CondOffline)) },
	}
	for _, c := range []struct {
		op   Op
		want map[Cond]Cond // what is missing is refused
	}{
		{OpOpen, map[Cond]Cond{CondEmpty: CondExpOpen, CondImpOpen: CondExpOpen, CondExpOpen: CondExpOpen, CondClosed: CondExpOpen}},
		{OpClose, map[Cond]Cond{CondImpOpen: CondClosed, CondExpOpen: CondClosed, CondClosed: CondClosed}},
		{OpFinish, map[Cond]Cond{CondEmpty: CondFull, CondImpOpen: CondFull, CondExpOpen: CondFull, CondClosed: CondFull, CondFull: CondFull}},
		{OpReset, map[Cond]Cond{CondEmpty: CondEmpty, CondImpOpen: CondEmpty, CondExpOpen: CondEmpty, CondClosed: CondEmpty, CondFull: CondEmpty}},
		{OpResetAll, map[Cond]Cond{
			CondEmpty: CondEmpty, CondImpOpen: CondEmpty, CondExpOpen: CondEmpty, CondClosed: CondEmpty, CondFull: CondEmpty,
			CondReadOnly: CondReadOnly, CondOffline: CondOffline,
		}},
	} {
		for cond, setup := range reach {
			t.Run(c.op.String()+" "+cond.String(), func(t *testing.T) {
				r := newRig(t, Geometry{ZoneCapacity: 16 * kib, MaxOpen: 3})
				setup(r)
				before := r.d.Zone(1)
				r.is(1, cond, before.WP-before.Start)
				err := r.manage(c.op, 1)
				want, ok := c.want[cond]
				if !ok {
					if err == nil || r.d.Zone(1) != before {
						t.Errorf("error %v, zone %+v, before %+v", err, r.d.Zone(1), before)
					}
					return
				}
				r.ok(err)
				wp := before.WP - before.Start
				switch want {
				case CondEmpty:
					wp = 0
				case CondFull:
					wp = 16 * kib
				}
				r.is(1, want, wp)
				if want == CondEmpty && r.read(1, 0, 512)[0] != 0 {
					t.Error("a reset zone shows its old data")
				}
			})
		}
	}
}

func TestResetAllResetsWhatIsSequentialAndAlive(t *testing.T) {
	r := newRig(t, Geometry{NrZones: 7, Conventional: 1})
	r.ok(r.write(0, 0, 512, 1))
	r.ok(r.write(1, 0, 64*kib, 1))
	r.ok(r.write(2, 0, 512, 1))
	r.ok(r.manage(OpOpen, 3))
	r.ok(r.write(4, 0, 512, 1))
	r.ok(r.write(5, 0, 512, 1))
	r.ok(r.d.SetCond(4, CondReadOnly))
	r.ok(r.d.SetCond(5, CondOffline))
	before := r.m.calls["reset"]
	r.ok(r.manage(OpResetAll, 0))
	if n := r.m.calls["reset"] - before; n != 1 {
		t.Errorf("%d resets of the media, want 1", n)
	}
	for _, i := range []uint32{1, 2, 3, 6} {
		r.is(i, CondEmpty, 0)
	}
	r.is(0, CondNotWP, 0)
	r.is(4, CondReadOnly, 512)
	r.is(5, CondOffline, 512)
	if r.read(0, 0, 512)[0] != 1 || r.read(4, 0, 512)[0] != 1 {
		t.Error("data lost")
	}
	r.ok(r.manage(OpResetAll, 0)) // of nothing
	if n := r.m.calls["reset"] - before; n != 1 {
		t.Errorf("%d resets of the media after nothing was left, want 1", n)
	}
}

func TestAFailedResetOrFinishLeavesTheZoneAsItWas(t *testing.T) {
	failed := errors.New("sync failed")
	for _, op := range []Op{OpReset, OpResetAll, OpFinish} {
		r := newRig(t, Geometry{MaxOpen: 3})
		r.ok(r.write(0, 0, 4*kib, 1))
		r.ok(r.write(1, 0, 4*kib, 1))
		r.ok(r.manage(OpClose, 1))
		r.ok(r.manage(OpOpen, 2))
		before := r.snapshot()
		r.m.fail = func(string) error { return failed }
		for i := range uint32(4) {
			if err := r.manage(op, i); !errors.Is(err, failed) && (op == OpFinish || i < 3 && op == OpResetAll) {
				t.Errorf("%v of zone %d: %v", op, i, err)
			}
		}
		if after := r.snapshot(); after != before {
			t.Errorf("%v changed %v to %v", op, before, after)
		}
		r.counts()
		r.m.fail = nil
		r.ok(r.write(1, 4*kib, 4*kib, 1))
		r.ok(r.manage(op, 0))
	}
}

func TestAReadOnlyZoneStillReads(t *testing.T) {
	r := newRig(t, Geometry{Conventional: 1})
	r.ok(r.write(1, 0, 4*kib, 6))
	r.ok(r.d.SetCond(1, CondReadOnly))
	if p := r.read(1, 0, 8*kib); p[0] != 6 || p[4*kib] != 0 {
		t.Error("wrong data")
	}
	r.ok(r.d.SetCond(1, CondReadOnly))
	r.ok(r.d.SetCond(1, CondOffline))
	r.refused(r.d.SetCond(1, CondReadOnly), ErrOffline)
	r.refused(r.d.SetCond(0, CondOffline), ErrConventional)
	r.refused(r.d.SetCond(99, CondOffline), ErrInvalid)
}

// A reset waits for what is in flight, reads too; what comes meanwhile waits
// for the reset.
func TestAResetHasItsZoneForItself(t *testing.T) {
	for _, op := range []Op{OpReset, OpResetAll} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, Geometry{})
			r.ok(r.write(1, 0, 4*kib, 1))
			w := r.begin(OpAppend, 1, 0, 4*kib, 2).ready()
			rd := r.begin(OpRead, 1, 0, 4*kib, 0).ready()
			other := r.begin(OpAppend, 2, 0, 4*kib, 2).ready()

			reset := r.begin(op, 1, 0, 0, 0)
			if reset.step != Work {
				t.Fatalf("reset: step %d", reset.step)
			}
			go func() { reset.step = r.d.Work(&reset.Request) }()
			synctest.Wait()

			var parked [4]*manual
			for i, op := range [...]Op{OpAppend, OpRead, OpOpen, OpFinish} {
				parked[i] = r.begin(op, 1, 0, 4*kib, 3)
				if parked[i].step != Work {
					t.Fatalf("%v of a busy zone: step %d, error %v", op, parked[i].step, parked[i].Err)
				}
			}
			go func() {
				parked[0].ready().end(nil)
				parked[1].ready().end(nil)
			}()
			synctest.Wait()
			r.is(1, CondImpOpen, 4*kib)
			if reset.step != Work || parked[0].step != Work {
				t.Fatal("the reset did not wait for what was in flight")
			}
			w.end(nil)
			synctest.Wait()
			if r.m.calls["reset"] != 0 {
				t.Fatal("the reset did not wait for the read")
			}
			r.m.pause = func(what string) {
				if what == "reset" {
					time.Sleep(time.Second)
				}
			}
			rd.end(nil)
			if op == OpResetAll { // other zones are shut as well
				synctest.Wait()
				other.end(nil)
			}
			synctest.Wait()
			if parked[0].step != Work {
				t.Fatal("an append overtook the reset")
			}
			r.is(1, CondImpOpen, 8*kib)
			time.Sleep(2 * time.Second)
			synctest.Wait()
			reset.answered(nil)
			parked[0].answered(nil)
			if parked[0].At != r.start(1) {
				t.Errorf("appended at %#x", parked[0].At)
			}
			parked[1].answered(nil)
			parked[2].step = r.d.Work(&parked[2].Request)
			parked[2].answered(nil)
			r.is(1, CondExpOpen, 4*kib)
			parked[3].step = r.d.Work(&parked[3].Request)
			parked[3].answered(nil)
			r.is(1, CondFull, 64*kib)
			if op == OpReset {
				other.end(nil)
			}
			other.answered(nil)
		})
	}
}

func TestAResetWaitsForAFailureToDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Geometry{})
		r.ok(r.write(1, 0, 4*kib, 1))
		a := r.begin(OpAppend, 1, 0, 4*kib, 2).ready()
		b := r.begin(OpAppend, 1, 0, 4*kib, 3).ready()
		a.end(errDisk)
		reset := r.begin(OpReset, 1, 0, 0, 0)
		go func() { reset.step = r.d.Work(&reset.Request) }()
		synctest.Wait()
		r.is(1, CondImpOpen, 4*kib)
		b.end(nil)
		synctest.Wait()
		reset.answered(nil)
		r.is(1, CondEmpty, 0)
	})
}

func TestAFailureDuringAResetDrainsIntoIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Geometry{})
		r.ok(r.write(1, 0, 4*kib, 1))
		a := r.begin(OpAppend, 1, 0, 4*kib, 2).ready()
		b := r.begin(OpAppend, 1, 0, 4*kib, 3).ready()
		finish := r.begin(OpFinish, 1, 0, 0, 0)
		go func() { finish.step = r.d.Work(&finish.Request) }()
		synctest.Wait()
		a.end(errDisk)
		b.end(nil)
		synctest.Wait()
		finish.answered(nil)
		b.answered(ErrAborted)
		r.is(1, CondFull, 64*kib)
		if p := r.read(1, 4*kib, 60*kib); p[0] != 0 || p[4*kib] != 0 {
			t.Error("a finished zone shows what was aborted")
		}
	})
}
