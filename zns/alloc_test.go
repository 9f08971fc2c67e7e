package zns

import "testing"

// flatMedia has every byte of the device at the same offset of the file and
// does nothing else: what is left is the cost of the Device.
type flatMedia struct{ zoneSize uint64 }

func (flatMedia) Map(dst []Extent, off, n uint64, _ bool) ([]Extent, bool) {
	return append(dst, Extent{int64(off), int64(n)}), true
}
func (m flatMedia) MapSlow(dst []Extent, off, n uint64, write bool) ([]Extent, error) {
	dst, _ = m.Map(dst, off, n, write)
	return dst, nil
}
func (flatMedia) Zero(_, _ uint64) error             { return nil }
func (m flatMedia) Pointer(zone uint32) uint64       { return uint64(zone) * m.zoneSize }
func (flatMedia) Stage(zone uint32, wp uint64)       {}
func (flatMedia) Round() error                       { return nil }
func (flatMedia) Reset(zones []uint32) error         { return nil }
func (flatMedia) Finish(zone uint32, _ uint64) error { return nil }

func flatDevice(tb testing.TB, zones uint32, opts ...Option) *Device {
	g := Geometry{
		ZoneSize: 64 * mib, ZoneCapacity: 64 * mib, NrZones: zones, Conventional: 1,
		MaxOpen: 6, MaxActive: 8, MaxAppend: mib, BlockSize: 512,
	}
	g.Size = uint64(zones) * g.ZoneSize
	d, err := New(g, flatMedia{g.ZoneSize}, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

// loop returns a function that carries one request of op through, over and
// over along the zone, which is reset when it is full.
func loop(tb testing.TB, d *Device, op Op, zone uint32) func() {
	q := &Request{Wake: func(*Request) {}}
	start := uint64(zone) * d.g.ZoneSize
	var at uint64
	return func() {
		if at == d.g.ZoneSize {
			at = 0
			if d.Zone(zone).Cond == CondFull {
				*q = Request{Op: OpReset, Start: start, Extents: q.Extents}
				if d.Begin(q) != Work || d.Work(q) != Answer || q.Err != nil {
					tb.Fatal(q.Err)
				}
			}
		}
		q.Op, q.Start, q.Len = op, start+at, 4*kib
		if op == OpAppend {
			q.Start = start
		}
		at += 4 * kib
		if d.Begin(q) != IO || d.End(q, nil) != Answer || q.Err != nil {
			tb.Fatal(q.Err)
		}
	}
}

func TestTheHotPathAllocatesNothing(t *testing.T) {
	for _, op := range []Op{OpRead, OpWrite, OpAppend} {
		for zone := range uint32(2) {
			if zone == 0 && op == OpAppend {
				continue
			}
			d := flatDevice(t, 8)
			if n := testing.AllocsPerRun(1000, loop(t, d, op, zone)); n != 0 {
				t.Errorf("%v in zone %d: %v allocations, want 0", op, zone, n)
			}
		}
	}
	// A pair of appends that end in the other order: one waits and is woken.
	d := flatDevice(t, 8)
	var a, b Request
	a.Wake = func(*Request) {}
	b.Wake = a.Wake
	if n := testing.AllocsPerRun(1000, func() {
		for _, q := range [...]*Request{&a, &b} {
			q.Op, q.Start, q.Len = OpAppend, d.g.ZoneSize, 4*kib
			if d.Begin(q) != IO {
				t.Fatal(q.Err)
			}
		}
		if d.End(&b, nil) != Wait || d.End(&a, nil) != Answer || b.Next != Answer {
			t.Fatal("wrong steps")
		}
	}); n != 0 {
		t.Errorf("two appends: %v allocations, want 0", n)
	}
	// Opening a zone at the limit evicts another one.
	d = flatDevice(t, 8)
	var ws [7]func()
	for i := range ws {
		ws[i] = loop(t, d, OpAppend, uint32(i+1))
	}
	if n := testing.AllocsPerRun(100, func() {
		for _, w := range ws {
			w()
		}
	}); n != 0 {
		t.Errorf("appends with evictions: %v allocations, want 0", n)
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, op := range []Op{OpRead, OpWrite, OpAppend} {
		b.Run(op.String(), func(b *testing.B) {
			f := loop(b, flatDevice(b, 16), op, 1)
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
	b.Run("write-7-zones-6-open", func(b *testing.B) {
		d := flatDevice(b, 16)
		var fs [7]func()
		for i := range fs {
			fs[i] = loop(b, d, OpWrite, uint32(i+1))
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			fs[i%len(fs)]()
		}
	})
}

func BenchmarkReport16384(b *testing.B) {
	d := flatDevice(b, 16384)
	b.ReportAllocs()
	for b.Loop() {
		for i := range d.g.NrZones {
			if d.Zone(i).Len == 0 {
				b.Fatal("no zone")
			}
		}
	}
}

func BenchmarkNew16384(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		flatDevice(b, 16384)
	}
}
