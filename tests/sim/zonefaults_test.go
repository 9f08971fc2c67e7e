package sim

import (
	"errors"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

var errDisk = errors.New("the disk says no")

// What fails inside a zone, one thing at a time, over a real image: afterwards
// the condition, the counters, the pointer as it is staged and as it is after a
// new start, and the contents are as if it had never been asked, and the zone
// goes on.
func TestFailuresInsideAZone(t *testing.T) {
	for _, c := range []struct {
		name  string
		limit bool // of one open zone
		f     func(r *rig)
		cond  zns.Cond // of zone 1 afterwards
		n     uint64   // KiB written in it, each with its own number from 1 on
	}{
		{"the only write of an empty zone", false, func(r *rig) {
			q := r.begin(zns.OpWrite, 1, 0, kib, 9)
			q.end(errDisk)
			q.answered(errDisk)
		}, zns.CondEmpty, 0},
		{"the lowest of four appends, last to end", false, func(r *rig) {
			q := r.fourAppends(1)
			for _, k := range []int{3, 1, 2} {
				q[k].end(nil)
			}
			q[0].end(errDisk)
			q[0].answered(errDisk)
			for k := 1; k < 4; k++ {
				q[k].answered(zns.ErrAborted)
			}
		}, zns.CondEmpty, 0},
		{"the third of four appends", false, func(r *rig) {
			q := r.fourAppends(1)
			q[2].end(errDisk)
			if q[2].step != zns.Wait {
				r.Errorf("answered before what is below it: step %d", q[2].step)
			}
			q[0].end(nil)
			q[0].answered(nil)
			r.is(1, zns.CondImpOpen, kib)
			q[3].end(nil)
			q[1].end(nil)
			q[1].answered(nil)
			q[2].answered(errDisk)
			q[3].answered(zns.ErrAborted)
		}, zns.CondImpOpen, 2},
		{"two of four appends", false, func(r *rig) {
			q := r.fourAppends(1)
			for _, k := range []int{3, 1} {
				q[k].end(errDisk)
			}
			q[2].end(nil)
			q[0].end(nil)
			q[0].answered(nil)
			q[1].answered(errDisk)
			q[2].answered(zns.ErrAborted)
			q[3].answered(zns.ErrAborted)
		}, zns.CondImpOpen, 1},
		{"the last of four appends that would have filled the zone", false, func(r *rig) {
			for k := range uint64(6) {
				r.ok(r.write(1, k*kib, kib, byte(k+1)))
			}
			q := r.fourAppends(7)
			r.begin(zns.OpAppend, 1, 0, kib, 9).answered(zns.ErrFull)
			q[3].end(errDisk)
			for k := range 3 {
				q[k].end(nil)
				q[k].answered(nil)
			}
			q[3].answered(errDisk)
		}, zns.CondImpOpen, 9},
		{"a write-zeroes between appends", false, func(r *rig) {
			a := r.begin(zns.OpAppend, 1, 0, kib, 1)
			z := r.begin(zns.OpWriteZeroes, 1, kib, kib, 0)
			b := r.begin(zns.OpAppend, 1, 0, kib, 3)
			b.end(nil)
			r.fail(syscall.EIO, func(op crashfile.Op) bool { return op.Kind == crashfile.Punch })
			z.end(nil)
			r.mend()
			a.end(nil)
			a.answered(nil)
			z.answered(syscall.EIO)
			b.answered(zns.ErrAborted)
		}, zns.CondImpOpen, 1},
		{"no space on the disk", false, func(r *rig) {
			a := r.begin(zns.OpAppend, 1, 0, kib, 1)
			a.end(nil)
			r.disk.Fill(1)
			b := r.begin(zns.OpWrite, 2, 0, 8*kib, 1)
			b.end(nil)
			b.answered(syscall.ENOSPC)
			r.is(2, zns.CondEmpty, 0)
			r.disk.Fill(-1)
		}, zns.CondImpOpen, 1},
		{"a zone that was closed for another", true, func(r *rig) {
			q := r.fourAppends(1)
			r.ok(r.write(2, 0, kib, 1)) // closes zone 1
			r.is(1, zns.CondClosed, 0)
			q[0].end(nil)
			q[1].end(errDisk)
			q[2].end(nil)
			q[3].end(nil)
			q[0].answered(nil)
			q[3].answered(zns.ErrAborted)
		}, zns.CondClosed, 1},
		{"a closed zone that was opened in vain", true, func(r *rig) {
			r.ok(r.write(1, 0, kib, 1))
			r.ok(r.manage(zns.OpClose, 1))
			q := r.begin(zns.OpAppend, 1, 0, kib, 9)
			r.is(1, zns.CondImpOpen, kib)
			q.end(errDisk)
			q.answered(errDisk)
		}, zns.CondClosed, 1},
		{"a zone that the host has opened", false, func(r *rig) {
			r.ok(r.manage(zns.OpOpen, 1))
			q := r.begin(zns.OpAppend, 1, 0, kib, 9)
			q.end(errDisk)
			q.answered(errDisk)
		}, zns.CondExpOpen, 0},
		{"a reset that cannot read a table", false, func(r *rig) {
			r.ok(r.write(1, 0, kib, 1))
			r.fail(syscall.EIO, func(op crashfile.Op) bool { return op.Kind == crashfile.Read })
			r.refused(r.manage(zns.OpReset, 1), syscall.EIO)
			r.refused(r.manage(zns.OpResetAll, 1), syscall.EIO)
			r.mend()
		}, zns.CondImpOpen, 1},
		{"a finish that cannot write zeros", false, func(r *rig) {
			r.ok(r.write(1, 0, kib, 1))
			r.fail(syscall.EIO, func(op crashfile.Op) bool { return op.Kind == crashfile.Punch })
			r.refused(r.manage(zns.OpFinish, 1), syscall.EIO)
			r.mend()
		}, zns.CondImpOpen, 1},
		{"a finish of a closed zone that cannot write zeros", true, func(r *rig) {
			r.ok(r.write(1, 0, kib, 1))
			r.ok(r.manage(zns.OpClose, 1))
			r.fail(syscall.EIO, func(op crashfile.Op) bool { return op.Kind == crashfile.Punch })
			r.refused(r.manage(zns.OpFinish, 1), syscall.EIO)
			r.mend()
		}, zns.CondClosed, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := spec{CreateOptions: qcow2.CreateOptions{ClusterSize: 4 * kib, Size: 8 * 16 * kib, ZoneSize: 16 * kib, ZoneCapacity: 10 * kib, MaxActive: 4}}
			if c.limit {
				s.MaxOpen = 1
			}
			r := newRig(t, s)
			c.f(r)
			after := func(cond zns.Cond) {
				t.Helper()
				r.is(1, cond, c.n*kib)
				if wp := r.im.Pointer(1); wp != r.start(1)+c.n*kib {
					t.Errorf("pointer staged at %#x, want %#x", wp-r.start(1), c.n*kib)
				}
				for k := range c.n {
					r.holds(1, k*kib, kib, byte(k+1))
				}
				r.holds(1, c.n*kib, 16*kib-c.n*kib, 0) // nothing of what failed shines through
			}
			after(c.cond)
			r.flush()
			r.reopen()
			switch {
			case c.n == 0:
				c.cond = zns.CondEmpty
			case c.cond.Active():
				c.cond = zns.CondClosed
			}
			after(c.cond)
			at, err := r.append(1, kib, byte(c.n+1))
			r.ok(err)
			if at != c.n*kib {
				t.Errorf("the zone goes on at %#x, want %#x", at, c.n*kib)
			}
			for k := range c.n + 1 {
				r.holds(1, k*kib, kib, byte(k+1))
			}
			r.ok(r.manage(zns.OpFinish, 1))
			r.holds(1, c.n*kib+kib, 15*kib-c.n*kib, 0)
		})
	}
}

// fourAppends begins appends to zone 1 whose data counts from b on.
func (r *rig) fourAppends(b byte) (q [4]*manual) {
	for k := range q {
		q[k] = r.begin(zns.OpAppend, 1, 0, kib, b+byte(k))
	}
	return q
}

// A round that fails: what was written is there and is reported, but nothing
// more is taken, and a new start has what an earlier flush covered or more.
func TestAFailedRoundKeepsTheZonesAsTheyAreReported(t *testing.T) {
	for _, kind := range []crashfile.Kind{crashfile.Sync, crashfile.WriteDurable} {
		r := newRig(t, tight())
		r.ok(r.write(1, 0, 4*kib, 1))
		r.flush()
		r.ok(r.write(1, 4*kib, 4*kib, 2))
		r.ok(r.write(2, 0, 4*kib, 3))
		r.fail(errDisk, func(op crashfile.Op) bool { return op.Kind == kind })
		r.refused(r.manage(zns.OpFlush, 0), qcow2.ErrFailed)
		r.mend()
		for _, err := range []error{
			r.write(3, 0, kib, 4), r.manage(zns.OpReset, 1), r.manage(zns.OpFinish, 2), r.manage(zns.OpResetAll, 0),
			r.manage(zns.OpFlush, 0), r.zeroes(0, 0, kib),
		} {
			r.refused(err, qcow2.ErrFailed)
		}
		r.is(1, zns.CondImpOpen, 8*kib)
		r.is(2, zns.CondImpOpen, 4*kib)
		r.is(3, zns.CondEmpty, 0)
		r.holds(1, 0, 4*kib, 1)
		if kind == crashfile.Sync { // what is below may be lost
			_, err := r.do(zns.OpRead, r.start(1)+4*kib, kib, make([]byte, kib))
			r.refused(err, qcow2.ErrFailed)
		} else {
			r.holds(1, 4*kib, 4*kib, 2)
		}
		r.kill()
		if at := r.at(1); at != 4*kib && at != 8*kib {
			t.Errorf("zone 1 is at %#x after a new start", at)
		}
		r.holds(1, 0, 4*kib, 1)
		r.holds(1, r.at(1), 16*kib, 0)
		r.ok(r.manage(zns.OpResetAll, 0))
	}
}

// Management waits for what is in flight and excludes what comes meanwhile,
// also when that has failed.
func TestManagementWaitsForWhatIsInFlight(t *testing.T) {
	for _, op := range []zns.Op{zns.OpReset, zns.OpFinish, zns.OpResetAll} {
		for _, bad := range []error{nil, errDisk} {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, tight())
				r.ok(r.write(1, 0, kib, 1))
				a := r.begin(zns.OpAppend, 1, 0, kib, 2)
				b := r.begin(zns.OpAppend, 1, 0, kib, 3)
				rd := r.begin(zns.OpRead, 1, 0, kib, 0)
				answered := make(chan error, 1)
				go func() { answered <- r.manage(op, 1) }()
				synctest.Wait()
				late := &manual{r: r, data: make([]byte, kib)}
				late.Op, late.Start, late.Len = zns.OpAppend, r.start(1), kib
				late.Wake = func(*zns.Request) {}
				if late.step = r.dev.Begin(&late.Request); late.step != zns.Work {
					t.Fatalf("%v: an append during it: step %d, error %v", op, late.step, late.Err)
				}
				parked := make(chan zns.Step, 1)
				go func() { parked <- r.dev.Work(&late.Request) }()
				for _, end := range []func(){
					func() { b.end(nil) },
					func() { a.end(bad) },
				} {
					r.is(1, zns.CondImpOpen, kib) // a report goes on, and shows what is committed
					end()
					synctest.Wait()
				}
				a.answered(bad)
				if bad != nil {
					b.answered(zns.ErrAborted)
				}
				select {
				case err := <-answered:
					t.Fatalf("%v did not wait for a read: %v", op, err)
				case <-parked:
					t.Fatalf("an append overtook %v", op)
				default:
				}
				rd.end(nil)
				rd.answered(nil)
				if rd.data[0] != 1 {
					t.Errorf("the read got %d", rd.data[0])
				}
				r.ok(<-answered)
				late.step = <-parked
				if op == zns.OpFinish {
					late.answered(zns.ErrFull)
					r.is(1, zns.CondFull, 48*kib)
					return
				}
				late.end(nil)
				late.answered(nil)
				r.is(1, zns.CondImpOpen, kib)
				if late.At != r.start(1) {
					t.Errorf("appended at %#x", late.At)
				}
			})
		}
	}
}

// A zone that becomes read-only while a reset of everything waits for it is
// passed by like one that was.
func TestAResetOfEverythingPassesByWhatBecomesReadOnlyMeanwhile(t *testing.T) {
	for _, c := range []zns.Cond{zns.CondReadOnly, zns.CondOffline} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, tight())
			r.ok(r.write(1, 0, kib, 1))
			r.ok(r.write(2, 0, kib, 2))
			rd := r.begin(zns.OpRead, 1, 0, kib, 0)
			set, reset := make(chan error, 1), make(chan error, 1)
			go func() { set <- r.dev.SetCond(1, c) }()
			synctest.Wait()
			go func() { reset <- r.manage(zns.OpResetAll, 0) }()
			synctest.Wait()
			r.is(1, zns.CondImpOpen, kib)
			rd.end(nil)
			r.ok(<-set)
			r.ok(<-reset)
			r.is(1, c, kib)
			r.is(2, zns.CondEmpty, 0)
			r.reopen()
			r.is(1, zns.CondClosed, kib)
			r.holds(1, 0, kib, 1)
		})
	}
}
