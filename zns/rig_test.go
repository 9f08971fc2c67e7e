package zns

import (
	"bytes"
	"errors"
	"testing"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// rig is a Device over a memMedia with the operations as one-liners.
type rig struct {
	testing.TB
	g Geometry
	m *memMedia
	d *Device
}

// newRig fills what g leaves open: zones of 64 KiB, one conventional zone per
// g.Conventional, no limits.
func newRig(t testing.TB, g Geometry) *rig {
	t.Helper()
	if g.ZoneSize == 0 {
		g.ZoneSize = 64 * kib
	}
	if g.ZoneCapacity == 0 {
		g.ZoneCapacity = g.ZoneSize
	}
	if g.NrZones == 0 {
		g.NrZones = 8
	}
	if g.MaxAppend == 0 {
		g.MaxAppend = g.ZoneCapacity
	}
	if g.BlockSize == 0 {
		g.BlockSize = 512
	}
	g.Size = uint64(g.NrZones) * g.ZoneSize
	r := &rig{TB: t, g: g, m: newMemMedia(g, min(8*kib, g.ZoneSize))}
	r.reopen()
	return r
}

// reopen makes a new Device on what the media has.
func (r *rig) reopen(opts ...Option) {
	r.Helper()
	d, err := New(r.g, r.m, opts...)
	if err != nil {
		r.Fatal(err)
	}
	r.d = d
}

func (r *rig) start(zone uint32) uint64 { return uint64(zone) * r.g.ZoneSize }

func fill(n uint64, b byte) []byte { return bytes.Repeat([]byte{b}, int(n)) }

func (r *rig) do(op Op, at, n uint64, data []byte) (uint64, error) {
	req := &Request{Op: op, Start: at, Len: n}
	err := Do(r.d, req, r.m, data)
	return req.At, err
}

// write writes n bytes of b at byte off of a zone.
func (r *rig) write(zone uint32, off, n uint64, b byte) error {
	_, err := r.do(OpWrite, r.start(zone)+off, n, fill(n, b))
	return err
}

// append returns where the data went, in bytes from the zone's start.
func (r *rig) append(zone uint32, n uint64, b byte) (uint64, error) {
	at, err := r.do(OpAppend, r.start(zone), n, fill(n, b))
	return at - r.start(zone), err
}

func (r *rig) zeroes(zone uint32, off, n uint64) error {
	_, err := r.do(OpWriteZeroes, r.start(zone)+off, n, nil)
	return err
}

func (r *rig) manage(op Op, zone uint32) error {
	_, err := r.do(op, r.start(zone), 0, nil)
	return err
}

func (r *rig) read(zone uint32, off, n uint64) []byte {
	r.Helper()
	p := fill(n, 0xaa)
	if _, err := r.do(OpRead, r.start(zone)+off, n, p); err != nil {
		r.Fatalf("read zone %d at %#x: %v", zone, off, err)
	}
	return p
}

func (r *rig) ok(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) refused(err, want error) {
	r.Helper()
	if !errors.Is(err, want) {
		r.Fatalf("answer %v, want %v", err, want)
	}
}

// is checks a zone's report: wp is in bytes from the zone's start.
func (r *rig) is(zone uint32, c Cond, wp uint64) {
	r.Helper()
	z := r.d.Zone(zone)
	if z.Cond != c || z.WP != z.Start+wp {
		r.Fatalf("zone %d is %v at %#x, want %v at %#x", zone, z.Cond, z.WP-z.Start, c, wp)
	}
	if z.Start != r.start(zone) || z.Len != r.g.ZoneSize {
		r.Fatalf("zone %d reported as %+v", zone, z)
	}
	r.counts()
}

// counts checks the counters against the conditions.
func (r *rig) counts() {
	r.Helper()
	var open, active uint32
	for i := range r.g.NrZones {
		c := r.d.Zone(i).Cond
		if c.Open() {
			open++
		}
		if c.Active() {
			active++
		}
	}
	if o, a := r.d.Counts(); o != open || a != active {
		r.Fatalf("counted %d open and %d active zones, there are %d and %d", o, a, open, active)
	}
}

// manual is a request whose steps the test takes one by one.
type manual struct {
	Request
	r    *rig
	step Step
	data []byte
}

// begin starts a request of n bytes of b.
func (r *rig) begin(op Op, zone uint32, off, n uint64, b byte) *manual {
	q := &manual{r: r, data: fill(n, b)}
	q.Op, q.Start, q.Len = op, r.start(zone)+off, n
	q.Wake = func(*Request) { q.step = q.Next }
	q.step = r.d.Begin(&q.Request)
	return q
}

// ready takes the steps up to the I/O.
func (q *manual) ready() *manual {
	q.r.Helper()
	if q.step == Work {
		q.step = q.r.d.Work(&q.Request)
	}
	if q.step != IO {
		q.r.Fatalf("%v: step %d, error %v, want IO", q.Op, q.step, q.Err)
	}
	return q
}

// end does the I/O, or fails it.
func (q *manual) end(err error) {
	if err == nil {
		err = Transfer(&q.Request, q.r.m, q.data)
	}
	q.step = q.r.d.End(&q.Request, err)
}

// answered checks that q has been answered with err.
func (q *manual) answered(err error) {
	q.r.Helper()
	if q.step != Answer || !errors.Is(q.Err, err) {
		q.r.Fatalf("%v at %#x: step %d, error %v, want the answer %v", q.Op, q.At, q.step, q.Err, err)
	}
}

func (q *manual) waits() {
	q.r.Helper()
	if q.step != Wait {
		q.r.Fatalf("%v at %#x: step %d, error %v, want Wait", q.Op, q.At, q.step, q.Err)
	}
}

// watchConds is a Watch for changes of conditions alone.
func watchConds(f func(zone uint32, from, to Cond)) Option {
	return Watch(func(e Event) {
		if e.From != e.To {
			f(e.Zone, e.From, e.To)
		}
	})
}
