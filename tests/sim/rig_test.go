package sim

import (
	"bytes"
	"errors"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// rig is a device over an image with the operations as one-liners, for tests
// that say themselves what must come out. Offsets are bytes from the start of a
// zone.
type rig struct {
	testing.TB
	*host
	end bool // the image has been closed for good
}

// newRig makes an image. Left open, its clusters have 64 KiB and there are no
// limits.
func newRig(t testing.TB, s spec) *rig {
	t.Helper()
	r := &rig{TB: t, host: newHost(t, func(int) int { return 0 }, s)}
	r.open()
	t.Cleanup(func() {
		if r.end {
			return
		}
		r.close()
	})
	return r
}

func (r *rig) open() {
	r.TB.Helper()
	r.ok(r.host.open())
}

// close closes the image in order and checks the file.
func (r *rig) close() {
	r.TB.Helper()
	r.ok(r.im.Close())
	r.end = true
	rep, err := qcow2.Check(r.disk, nil)
	if err != nil || rep.ExitCode() != 0 || rep.Dirty || rep.Ahead != 0 {
		r.Fatalf("check after a clean close: %+v, %v", rep, err)
	}
}

// reopen is a detach and attach.
func (r *rig) reopen() {
	r.TB.Helper()
	r.close()
	r.open()
	r.end = false
}

// kill is the death of the process that has the image open, and an attach.
func (r *rig) kill() {
	r.TB.Helper()
	r.disk = r.disk.Kill()
	r.im.Abandon()
	r.open()
}

func (r *rig) ok(err error) {
	r.TB.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) refused(err, want error) {
	r.TB.Helper()
	if !errors.Is(err, want) {
		r.Fatalf("answer %v, want %v", err, want)
	}
}

func (r *rig) do(op zns.Op, at, n uint64, data []byte) (uint64, error) {
	q := &zns.Request{Op: op, Start: at, Len: n}
	err := zns.Do(r.dev, q, r.disk, data)
	return q.At, err
}

func (r *rig) write(zone int, off, n uint64, b byte) error {
	_, err := r.do(zns.OpWrite, r.start(zone)+off, n, bytes.Repeat([]byte{b}, int(n)))
	return err
}

// append returns where the data went.
func (r *rig) append(zone int, n uint64, b byte) (uint64, error) {
	at, err := r.do(zns.OpAppend, r.start(zone), n, bytes.Repeat([]byte{b}, int(n)))
	return at - r.start(zone), err
}

func (r *rig) zeroes(zone int, off, n uint64) error {
	_, err := r.do(zns.OpWriteZeroes, r.start(zone)+off, n, nil)
	return err
}

func (r *rig) manage(op zns.Op, zone int) error {
	_, err := r.do(op, r.start(zone), 0, nil)
	return err
}

func (r *rig) flush() {
	r.TB.Helper()
	r.ok(r.manage(zns.OpFlush, 0))
}

// holds says that n bytes read as b.
func (r *rig) holds(zone int, off, n uint64, b byte) {
	r.TB.Helper()
	for end := off + n; off < end; {
		p := make([]byte, min(end-off, mib))
		if _, err := r.do(zns.OpRead, r.start(zone)+off, uint64(len(p)), p); err != nil {
			r.Fatalf("read of zone %d at %#x: %v", zone, off, err)
		}
		if n := bytes.Count(p, []byte{b}); n != len(p) {
			r.Fatalf("zone %d: %d bytes of %d at %#x are not %#x", zone, len(p)-n, len(p), off, b)
		}
		off += uint64(len(p))
	}
}

// is checks a zone's report and the counters.
func (r *rig) is(zone int, c zns.Cond, wp uint64) {
	r.TB.Helper()
	z := r.dev.Zone(uint32(zone))
	if z.Cond != c || z.WP != z.Start+wp {
		r.Fatalf("zone %d is %v at %#x, want %v at %#x", zone, z.Cond, z.WP-z.Start, c, wp)
	}
	if z.Start != r.start(zone) || z.Len != r.g.ZoneSize {
		r.Fatalf("zone %d is reported as %+v", zone, z)
	}
	var open, active uint32
	for i := range r.g.NrZones {
		c := r.dev.Zone(i).Cond
		if c.Open() {
			open++
		}
		if c.Active() {
			active++
		}
	}
	if o, a := r.dev.Counts(); o != open || a != active {
		r.Fatalf("%d open and %d active zones counted, there are %d and %d", o, a, open, active)
	}
}

// fail makes operations of the file fail that f picks.
func (r *rig) fail(err error, f func(crashfile.Op) bool) {
	r.disk.Fault(func(op crashfile.Op) error {
		if f(op) {
			return err
		}
		return nil
	})
}

func (r *rig) mend() { r.disk.Fault(nil) }

// manual is a request whose steps the test takes one by one.
type manual struct {
	zns.Request
	r    *rig
	step zns.Step
	data []byte
}

// begin starts a request of n bytes of b and takes the steps up to its I/O.
func (r *rig) begin(op zns.Op, zone int, off, n uint64, b byte) *manual {
	r.TB.Helper()
	q := &manual{r: r, data: bytes.Repeat([]byte{b}, int(n))}
	q.Op, q.Start, q.Len = op, r.start(zone)+off, n
	q.Wake = func(*zns.Request) { q.step = q.Next }
	if q.step = r.dev.Begin(&q.Request); q.step == zns.Work && op != zns.OpWriteZeroes {
		q.step = r.dev.Work(&q.Request)
	}
	return q
}

// end does the I/O or fails it.
func (q *manual) end(err error) {
	q.r.TB.Helper()
	switch {
	case q.step == zns.Work:
		q.step = q.r.dev.Work(&q.Request)
		return
	case q.step != zns.IO:
		q.r.Fatalf("%v at %#x: step %d, error %v, want IO", q.Op, q.At, q.step, q.Err)
	case err == nil:
		err = zns.Transfer(&q.Request, q.r.disk, q.data)
	}
	q.step = q.r.dev.End(&q.Request, err)
}

// answered checks that q has been answered with err.
func (q *manual) answered(err error) {
	q.r.TB.Helper()
	if q.step != zns.Answer || !errors.Is(q.Err, err) {
		q.r.Fatalf("%v at %#x: step %d, error %v, want the answer %v", q.Op, q.At, q.step, q.Err, err)
	}
}
