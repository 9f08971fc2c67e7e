package zns

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

// pair drives a Device and the model with the same operations and compares
// every answer, every report and every byte.
type pair struct {
	*rapid.T
	m      *model
	media  *memMedia
	d      *Device
	flight []*twin
	stamp  byte
	slow   bool
	failed error // what the media's next blocking call answers
}

// twin is a write in flight on both sides.
type twin struct {
	Request
	step  Step
	data  []byte
	model *modelWrite // nil in a conventional zone
}

func TestTheDeviceAgreesWithTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := Geometry{ZoneSize: 16 * kib, NrZones: 7, BlockSize: 512}
		g.Size = uint64(g.NrZones) * g.ZoneSize
		g.ZoneCapacity = 512 * rapid.Uint64Range(1, 32).Draw(t, "capacity")
		g.MaxAppend = 512 * rapid.Uint64Range(1, 16).Draw(t, "append")
		g.Conventional = rapid.Uint32Range(0, 2).Draw(t, "conventional")
		g.MaxActive = rapid.Uint32Range(0, 4).Draw(t, "active")
		g.MaxOpen = rapid.Uint32Range(0, 3).Draw(t, "open")
		if g.MaxActive != 0 {
			g.MaxOpen = min(g.MaxOpen, g.MaxActive)
		}
		p := &pair{T: t, m: newModel(g), media: newMemMedia(g, 4*kib)}
		p.media.slow = func() bool { return p.slow }
		p.media.fail = func(string) error { return p.failed }
		p.attach()
		t.Repeat(map[string]func(*rapid.T){
			"write":   func(t *rapid.T) { p.write(t, OpWrite) },
			"append":  func(t *rapid.T) { p.write(t, OpAppend) },
			"append2": func(t *rapid.T) { p.write(t, OpAppend) },
			"zeroes":  func(t *rapid.T) { p.write(t, OpWriteZeroes) },
			"advance": p.advance,
			"advanc2": p.advance,
			"advanc3": p.advance,
			"read":    p.read,
			"open":    func(t *rapid.T) { p.atOnce(t, OpOpen) },
			"close":   func(t *rapid.T) { p.atOnce(t, OpClose) },
			"finish":  func(t *rapid.T) { p.alone(t, OpFinish) },
			"reset":   func(t *rapid.T) { p.alone(t, OpReset) },
			"setcond": p.setCond,
			"rare":    p.rare,
			"slow":    func(*rapid.T) { p.slow = !p.slow },
			"":        p.check,
		})
	})
}

func (p *pair) attach() {
	d, err := New(p.m.g, p.media)
	if err != nil {
		p.Fatal(err)
	}
	p.d = d
}

func (p *pair) zone(t *rapid.T) uint32 { return rapid.Uint32Range(0, p.m.g.NrZones-1).Draw(t, "zone") }

func outcome(t *rapid.T) error {
	if rapid.IntRange(0, 5).Draw(t, "outcome") == 0 {
		return errDisk
	}
	return nil
}

// fresh returns data that no other request has.
func (p *pair) fresh(n uint64) []byte {
	p.stamp = p.stamp%250 + 1
	return bytes.Repeat([]byte{p.stamp}, int(n))
}

func (p *pair) write(t *rapid.T, op Op) {
	i := p.zone(t)
	z := &p.m.zones[i]
	if z.draining() {
		p.drain(t, i)
	}
	n := 512 * rapid.Uint64Range(1, 12).Draw(t, "blocks")
	var at uint64
	switch {
	case op == OpAppend:
	case z.cond == CondNotWP || rapid.IntRange(0, 9).Draw(t, "where") == 0:
		at = 512 * rapid.Uint64Range(0, 31).Draw(t, "at")
	default:
		at = min(z.reserved(), p.m.g.ZoneSize-512)
	}
	q := &twin{data: p.fresh(n)}
	if op == OpWriteZeroes {
		clear(q.data)
	}
	q.Op, q.Start, q.Len = op, uint64(i)*p.m.g.ZoneSize+at, n
	q.FUA = rapid.Bool().Draw(t, "fua")
	q.Wake = func(*Request) { q.step = q.Next }

	var want error
	switch {
	case at+n > p.m.g.ZoneSize:
		want = ErrBoundary
		if q.Start+n > p.m.g.Size {
			want = ErrInvalid
		}
	case z.cond == CondNotWP && op == OpAppend:
		want = ErrConventional
	case op == OpAppend && n > p.m.g.MaxAppend:
		want = ErrAppendSize
	case z.cond != CondNotWP:
		q.model, want = p.m.write(i, op == OpAppend, at, q.data)
	}
	q.step = p.d.Begin(&q.Request)
	if want != nil {
		if q.step != Answer || !errors.Is(q.Err, want) {
			t.Fatalf("%v: step %d, error %v, want %v", op, q.step, q.Err, want)
		}
		return
	}
	if q.step != IO && q.step != Work {
		t.Fatalf("%v: step %d, error %v", op, q.step, q.Err)
	}
	if q.model != nil && q.At != uint64(i)*p.m.g.ZoneSize+q.model.at {
		t.Fatalf("%v placed at %#x, want %#x in zone %d", op, q.At, q.model.at, i)
	}
	p.flight = append(p.flight, q)
}

// advance takes one step of one request that has one to take.
func (p *pair) advance(t *rapid.T) {
	var can []*twin
	for _, q := range p.flight {
		if q.step == IO || q.step == Work {
			can = append(can, q)
		}
	}
	if len(can) != 0 {
		p.step(t, can[rapid.IntRange(0, len(can)-1).Draw(t, "which")])
	}
}

func (p *pair) step(t *rapid.T, q *twin) {
	p.failed = outcome(t)
	defer func() { p.failed = nil }()
	phase := q.flight.phase
	if phase == rounding {
		p.failed = nil // FUA after a wait; failed rounds are tested elsewhere
	}
	ended, err := true, p.failed
	switch {
	case q.step == IO:
		if err == nil {
			err = Transfer(&q.Request, p.media, q.data)
		}
		q.step = p.d.End(&q.Request, err)
	case phase == rounding:
		ended = false
		q.step = p.d.Work(&q.Request)
	default:
		q.step = p.d.Work(&q.Request)
		ended = phase == zeroing || err != nil
	}
	if q.step == Work && phase == moving {
		q.step = p.d.Work(&q.Request) // FUA
	}
	if ended {
		answered := []*twin{q}
		if q.model != nil {
			answered = nil
			for _, w := range p.m.end(q.model, err) {
				for _, a := range p.flight {
					if a.model == w {
						answered = append(answered, a)
					}
				}
			}
		} else {
			q.model = &modelWrite{err: err}
			if err == nil {
				i := p.m.g.ZoneOf(q.At)
				copy(p.m.zones[i].data[q.At%p.m.g.ZoneSize:], q.data)
			}
		}
		for _, a := range answered {
			if a.step == Work && a.flight.phase == rounding {
				continue // it is not answered yet, but has been committed
			}
			if a.step != Answer || !errors.Is(a.Err, a.model.err) {
				t.Fatalf("%v at %#x: step %d, error %v, want the answer %v", a.Op, a.At, a.step, a.Err, a.model.err)
			}
		}
	}
	left := p.flight[:0]
	for _, a := range p.flight {
		if a.step != Answer {
			left = append(left, a)
			continue
		}
		if a.model == nil || a.model.at+uint64(len(a.model.data)) > p.m.zones[a.model.zone].wp && a.Err == nil {
			t.Fatalf("%v at %#x answered too early", a.Op, a.At)
		}
	}
	p.flight = left
}

// drain ends everything in flight in zone i.
func (p *pair) drain(t *rapid.T, i uint32) {
	for {
		var q *twin
		for _, c := range p.flight {
			if p.m.g.ZoneOf(c.At) == i && (c.step == IO || c.step == Work) {
				q = c
			}
		}
		if q == nil {
			break
		}
		p.step(t, q)
	}
	for _, q := range p.flight {
		if p.m.g.ZoneOf(q.At) == i {
			t.Fatalf("%v at %#x is stuck: step %d", q.Op, q.At, q.step)
		}
	}
}

func (p *pair) read(t *rapid.T) {
	i := p.zone(t)
	z := &p.m.zones[i]
	at := 512 * rapid.Uint64Range(0, 31).Draw(t, "at")
	n := 512 * rapid.Uint64Range(1, 32-at/512).Draw(t, "blocks")
	got := bytes.Repeat([]byte{0xaa}, int(n))
	err := Do(p.d, &Request{Op: OpRead, Start: uint64(i)*p.m.g.ZoneSize + at, Len: n}, p.media, got)
	if z.cond == CondOffline {
		if err != ErrOffline {
			t.Fatalf("read of an offline zone: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, z.data[at:at+n]) {
		t.Fatalf("zone %d at %#x: wrong data", i, at)
	}
}

func (p *pair) atOnce(t *rapid.T, op Op) {
	i := p.zone(t)
	if p.m.zones[i].draining() {
		p.drain(t, i)
	}
	want := p.m.open
	if op == OpClose {
		want = p.m.close
	}
	p.same(t, op, i, want(i))
}

func (p *pair) same(t *rapid.T, op Op, i uint32, want error) {
	err := Do(p.d, &Request{Op: op, Start: uint64(i) * p.m.g.ZoneSize}, p.media, nil)
	if !errors.Is(err, want) {
		t.Fatalf("%v of zone %d: %v, want %v", op, i, err, want)
	}
}

// alone runs an operation that waits for what is in flight.
func (p *pair) alone(t *rapid.T, op Op) {
	i := p.zone(t)
	p.drain(t, i)
	p.failed = outcome(t)
	defer func() { p.failed = nil }()
	want := p.m.reset
	if op == OpFinish {
		want = p.m.finish
	}
	p.same(t, op, i, want(i, p.failed))
}

func (p *pair) setCond(t *rapid.T) {
	if rapid.IntRange(0, 15).Draw(t, "really") != 0 {
		return
	}
	i := p.zone(t)
	z := &p.m.zones[i]
	c := rapid.SampledFrom([]Cond{CondReadOnly, CondOffline}).Draw(t, "cond")
	p.drain(t, i)
	var want error
	switch {
	case z.cond == CondNotWP:
		want = ErrConventional
	case z.cond == CondOffline && c == CondReadOnly:
		want = ErrOffline
	default:
		z.cond = c
	}
	if err := p.d.SetCond(i, c); !errors.Is(err, want) {
		t.Fatalf("SetCond(%d, %v): %v, want %v", i, c, err, want)
	}
}

// rare does what concerns the whole device.
func (p *pair) rare(t *rapid.T) {
	what := rapid.IntRange(0, 9).Draw(t, "what")
	if what > 2 {
		return
	}
	for i := range p.m.g.NrZones {
		p.drain(t, i)
	}
	switch what {
	case 0:
		p.failed = outcome(t)
		p.same(t, OpResetAll, 0, p.m.resetAll(p.failed))
		p.failed = nil
	case 1:
		p.same(t, OpFlush, 0, nil)
		for i := range p.m.g.NrZones {
			if z := p.m.report(i); p.media.synced[i] != z.WP {
				t.Fatalf("zone %d: flushed %#x, want %#x", i, p.media.synced[i], z.WP)
			}
		}
	case 2:
		p.m.reopen()
		p.attach()
	}
}

func (p *pair) check(t *rapid.T) {
	for i := range p.m.g.NrZones {
		if got, want := p.d.Zone(i), p.m.report(i); got != want {
			t.Fatalf("zone %d reported as\n%+v, want\n%+v", i, got, want)
		}
	}
	open, active := p.d.Counts()
	if open != p.m.count(Cond.Open) || active != p.m.count(Cond.Active) {
		t.Fatalf("%d open, %d active, want %d, %d", open, active, p.m.count(Cond.Open), p.m.count(Cond.Active))
	}
}
