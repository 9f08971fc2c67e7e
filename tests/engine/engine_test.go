package engine

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

const (
	kib      = 1 << 10
	mib      = 1 << 20
	zoneSize = 64 * mib
	zones    = 4 // the first half are conventional
)

// engine is a device over an image of its own.
type engine struct {
	*zns.Device
	fd int
}

func open(tb testing.TB) engine {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "z.qcow2")
	if err := qcow2.Create(path, qcow2.CreateOptions{Size: zones * zoneSize, ZoneSize: zoneSize, Conventional: zones / 2}); err != nil {
		tb.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	f := qcow2.NewOSFile(file)
	im, err := qcow2.Open(f, qcow2.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := im.Close(); err != nil {
			tb.Error(err)
		}
	})
	z := im.Header().Zoned
	d, err := zns.New(zns.Geometry{
		Size: im.Header().Size, ZoneSize: z.ZoneSize, ZoneCapacity: z.ZoneCapacity,
		NrZones: z.NrZones, Conventional: z.Conventional, MaxAppend: mib, BlockSize: 512,
	}, im)
	if err != nil {
		tb.Fatal(err)
	}
	return engine{d, f.DataFD()}
}

// run carries r through without moving its data. worked says that it took Work.
func (e engine) run(tb testing.TB, r *zns.Request) (worked bool) {
	step := e.Begin(r)
	for step == zns.Work {
		worked = true
		step = e.Work(r)
	}
	if step == zns.IO {
		step = e.End(r, nil)
	}
	if step != zns.Answer || r.Err != nil {
		tb.Fatalf("%v at %d: step %d, %v", r.Op, r.Start, step, r.Err)
	}
	return worked
}

// way is a way of going through zones, request by request.
type way struct {
	name   string
	op     zns.Op
	zone   uint64
	mapped bool // beforehand
}

var ways = []way{
	{"read", zns.OpRead, 0, true},
	{"overwrite", zns.OpWrite, 0, true},
	{"write", zns.OpWrite, zones / 2, false},
}

// load is so many requests of 4K; without a step it stays in the zone.
func (w way) load(count uint64) ublk.Workload {
	return ublk.Workload{Write: w.op == zns.OpWrite, Size: 4 * kib, Count: count, Offset: w.zone * zoneSize}
}

// loop returns a function that carries through the next 4K of a zone.
func (e engine) loop(tb testing.TB, w way) (next func() (worked bool)) {
	start := w.zone * zoneSize
	r := &zns.Request{Wake: func(*zns.Request) {}, Extents: make([]zns.Extent, 0, 8)}
	if w.mapped {
		for at := uint64(0); at < zoneSize; at += mib {
			r.Op, r.Start, r.Len = zns.OpWrite, start+at, mib
			e.run(tb, r)
		}
	}
	at := uint64(0)
	return func() bool {
		if at == zoneSize {
			at = 0
			if !w.mapped {
				r.Op, r.Start, r.Len = zns.OpReset, start, 0
				e.run(tb, r)
			}
		}
		r.Op, r.Start, r.Len = w.op, start+at, 4*kib
		at += 4 * kib
		return e.run(tb, r)
	}
}

func TestARequestAllocatesNothing(t *testing.T) {
	for _, w := range ways {
		next := open(t).loop(t, w)
		next()
		// Not so far that more has to be mapped.
		if n := testing.AllocsPerRun(500, func() {
			if next() {
				t.Fatalf("%s: the mapping was not in memory", w.name)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations, want 0", w.name, n)
		}
	}
}

// The same behind a queue: what a run of requests allocates beyond one of a single
// request is much less than one object for each.
func TestAServedRequestAllocatesNothing(t *testing.T) {
	const count = 1000 // so few that at most one of them maps what is ahead
	for _, w := range ways {
		e := open(t)
		if w.mapped {
			e.loop(t, w)
		}
		objects := func(count uint64) uint64 {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if _, err := ublk.Bench(t.Context(), ublk.Config{DataFD: e.fd, Depth: 16}, e, w.load(count)); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			return after.Mallocs - before.Mallocs
		}
		if one, all := objects(1), objects(count); all > one+count/10 {
			t.Errorf("%s: %d objects for %d requests, %d for one", w.name, all, count, one)
		}
	}
}

// Reserve, map and commit, without I/O. A write maps what is ahead of it now and
// then, and resets its zone.
func BenchmarkPlan4k(b *testing.B) {
	for _, w := range ways {
		b.Run(w.name, func(b *testing.B) {
			next := open(b).loop(b, w)
			b.ReportAllocs()
			for b.Loop() {
				next()
			}
		})
	}
}

// The same behind a queue: the descriptor is decoded, the data goes to or comes
// from the image, by the ring or, of an image in memory, at once.
func BenchmarkServe4k(b *testing.B) {
	for _, w := range ways {
		b.Run(w.name, func(b *testing.B) {
			e := open(b)
			if w.mapped {
				e.loop(b, w)
			}
			b.ReportAllocs()
			b.ResetTimer()
			res, err := ublk.Bench(b.Context(), ublk.Config{DataFD: e.fd, Depth: 16}, e, w.load(uint64(b.N)))
			b.StopTimer()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64((res.User+res.System).Nanoseconds())/float64(b.N), "cpu-ns/op")
		})
	}
}
