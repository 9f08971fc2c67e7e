package sim

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

// A history is what several clients asked of one device and what each heard,
// and when. Its media is slow and fails; nobody can say beforehand what comes
// out, but afterwards there must be an order of events that explains all of it.
type history struct {
	t     *testing.T
	g     zns.Geometry
	dev   *zns.Device
	rough *rough

	mu   sync.Mutex
	rng  *rand.Rand
	tick int
	ops  []*op
}

func TestEveryHistoryHasAnExplanationInMemory(t *testing.T) {
	overSeeds(t, 160, func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 1))
		g := drawGeometry(rng)
		media := newPlain(g)
		h := newHistory(t, rng, g, &rough{Media: media, file: media, sync: true})
		lines := h.explained()
		for i := range g.NrZones {
			if media.synced[i] != media.staged[i] {
				t.Errorf("zone %d: staged %#x, after a flush %#x is durable", i, media.staged[i], media.synced[i])
			}
		}
		dev, err := zns.New(g, media)
		if err != nil {
			t.Fatal(err)
		}
		lines.reopened(h, dev, media)
	})
}

func TestEveryHistoryHasAnExplanationInAnImage(t *testing.T) {
	overSeeds(t, 100, func(t *testing.T, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 1))
		g := drawGeometry(rng)
		s := spec{CreateOptions: qcow2.CreateOptions{
			ClusterSize: 512 << (3 * rng.IntN(2)), RefcountBits: 16, Size: g.Size, ZoneSize: g.ZoneSize, ZoneCapacity: g.ZoneCapacity,
			MaxOpen: uint64(g.MaxOpen), MaxActive: uint64(g.MaxActive), MaxAppend: g.MaxAppend,
		}}
		x := newHost(t, rng.IntN, s)
		x.disk.Pause(crashfile.Latency(rand.New(rand.NewPCG(seed, 2))))
		if err := x.open(); err != nil {
			t.Fatal(err)
		}
		defer func() { x.im.Abandon() }()
		h := newHistory(t, rng, x.g, &rough{Media: x.im, file: x.disk})
		lines := h.explained()
		if rng.IntN(2) == 0 {
			if err := x.im.Close(); err != nil {
				t.Fatal(err)
			}
			if rep, err := qcow2.Check(x.disk, nil); err != nil || rep.ExitCode() != 0 || rep.Ahead != 0 {
				t.Fatalf("after a clean close: %+v, %v", rep, err)
			}
		} else { // a flush was the last thing that happened
			x.disk = x.disk.Cut(rng)
			x.im.Abandon()
		}
		if err := x.open(); err != nil {
			t.Fatal(err)
		}
		lines.reopened(h, x.dev, x.disk)
	})
}

// overSeeds runs f in virtual time, for each seed. There is one processor, so
// that a seed says nearly everything.
func overSeeds(t *testing.T, n int, f func(t *testing.T, seed uint64)) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for seed := uint64(1); seed <= uint64(n/slow); seed++ {
		if *seedFlag != 0 {
			seed = *seedFlag
		}
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, seed) })
		})
		if *seedFlag != 0 || t.Failed() {
			break
		}
	}
}

// drawGeometry draws a few tiny zones.
func drawGeometry(rng *rand.Rand) zns.Geometry {
	g := zns.Geometry{ZoneSize: 16 << 10, NrZones: uint32(2 + rng.IntN(maxZones-1)), BlockSize: 512}
	g.Size = uint64(g.NrZones) * g.ZoneSize
	g.ZoneCapacity = 512 * uint64(5+rng.IntN(maxSectors-4))
	g.MaxAppend = 512 * uint64(2+rng.IntN(2))
	if most := int(g.NrZones) - 1; rng.IntN(4) != 0 {
		g.MaxActive = uint32(1 + rng.IntN(most))
		g.MaxOpen = uint32(1 + rng.IntN(int(g.MaxActive)))
	}
	return g
}

func newHistory(t *testing.T, rng *rand.Rand, g zns.Geometry, m *rough) *history {
	m.rng = rand.New(rand.NewPCG(rng.Uint64(), 3))
	dev, err := zns.New(g, m)
	if err != nil {
		t.Fatal(err)
	}
	return &history{t: t, g: g, dev: dev, rough: m, rng: rng}
}

func (h *history) n(n int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rng.IntN(n)
}

// explained lets the clients live and explains what they heard.
func (h *history) explained() *teller {
	h.t.Helper()
	first := newTeller(h.g, h.dev)
	var clients sync.WaitGroup
	for c := range maxClients - 1 {
		clients.Go(func() {
			for range 20 {
				h.rough.pause()
				h.do(h.draw(c))
			}
		})
	}
	clients.Wait()
	h.rough.beCalm()
	for i := range int(h.g.NrZones) {
		h.do(&op{zone: i, watch: report})
		h.do(&op{zone: i, what: zns.OpRead, n: maxSectors})
	}
	h.do(&op{watch: counts})
	h.do(&op{what: zns.OpFlush})
	return h.explain(first)
}

// explain walks through the history.
func (h *history) explain(t *teller) *teller {
	h.t.Helper()
	at := make([]*op, h.tick+1)
	for _, o := range h.ops {
		at[o.first], at[o.last] = o, o
	}
	for now, o := range at {
		if o == nil {
			continue
		}
		if o.first == now {
			t.begin(o)
			continue
		}
		if err := t.answer(o); err != nil {
			for _, p := range at[max(0, now-60):min(len(at), now+20)] {
				if p != nil && (p.last <= now || p.first <= now) {
					h.t.Log(p)
				}
			}
			h.t.Fatalf("%+v: %v", h.g, err)
		}
	}
	return t
}

// draw draws what client c does next.
func (h *history) draw(c int) *op {
	o := &op{client: c, zone: h.n(int(h.g.NrZones)), n: 1 + h.n(3)}
	if h.n(2) == 0 {
		o.zone = 0 // where most of it happens
	}
	switch k := h.n(40); {
	case k < 14:
		o.what, o.n = zns.OpAppend, min(o.n, int(h.g.MaxAppend/512))
	case k < 20:
		o.what = zns.OpWrite
	case k < 23:
		o.what = zns.OpWriteZeroes
	case k < 27:
		o.what, o.at = zns.OpRead, h.n(maxSectors-3)
	case k < 29:
		o.watch = report
	case k < 30:
		o.watch = counts
	case k < 32:
		o.what = zns.OpOpen
	case k < 34:
		o.what = zns.OpClose
	case k < 36:
		o.what = zns.OpFinish
	case k < 38:
		o.what = zns.OpReset
	case k < 39:
		o.what = zns.OpResetAll
	default:
		o.what = zns.OpFlush
	}
	if o.what == zns.OpWrite || o.what == zns.OpWriteZeroes {
		z := h.dev.Zone(uint32(o.zone))
		o.at = min(int(z.WP-z.Start)/512, int(h.g.ZoneSize/512)-o.n)
	}
	return o
}

// do does an operation and notes when and how it ended.
func (h *history) do(o *op) {
	h.mu.Lock()
	h.tick++
	o.first = h.tick
	h.ops = append(h.ops, o)
	if o.what != zns.OpWriteZeroes {
		o.id = uint16(len(h.ops))
	}
	fua := h.rng.IntN(12) == 0
	h.mu.Unlock()
	switch o.watch {
	case report:
		o.seen = h.dev.Zone(uint32(o.zone))
	case counts:
		o.open, o.active = h.dev.Counts()
	default:
		h.request(o, fua)
	}
	h.mu.Lock()
	h.tick++
	o.last = h.tick
	h.mu.Unlock()
}

func (h *history) request(o *op, fua bool) {
	start := uint64(o.zone) * h.g.ZoneSize
	r := &zns.Request{Op: o.what, Start: start, Len: uint64(o.n) * 512, FUA: fua}
	data := make([]byte, r.Len)
	switch o.what {
	case zns.OpWrite, zns.OpWriteZeroes, zns.OpRead:
		r.Start += uint64(o.at) * 512
	}
	if o.what == zns.OpWrite || o.what == zns.OpAppend {
		for i := range len(data) / 2 {
			binary.LittleEndian.PutUint16(data[2*i:], o.id)
		}
	}
	o.err = zns.Do(h.dev, r, h.rough, data)
	if o.what == zns.OpAppend {
		o.at = int(r.At-start) / 512
	}
	if o.what == zns.OpRead {
		o.data = ids(data)
		if o.err != nil || slices.Contains(o.data, ^uint16(0)) {
			h.t.Errorf("read of zone %d at %d: %v, %v", o.zone, o.at, o.data, o.err)
		}
	}
}

// ids tells who wrote each sector; 0 is nobody, and of a torn one all bits are
// set.
func ids(p []byte) []uint16 {
	out := make([]uint16, len(p)/512)
	for i := range out {
		s := p[i*512 : i*512+512]
		out[i] = binary.LittleEndian.Uint16(s)
		for k := 2; k < 512; k += 2 {
			if binary.LittleEndian.Uint16(s[k:]) != out[i] {
				out[i] = ^uint16(0)
			}
		}
	}
	return out
}

// reopened says that the device has what one of the states has, after a
// detach and attach.
func (t *teller) reopened(h *history, dev *zns.Device, file zns.ExtentIO) {
	h.t.Helper()
	var got line
	active := uint32(0)
	for i := range h.g.NrZones {
		rep := dev.Zone(i)
		r := &zns.Request{Op: zns.OpRead, Start: rep.Start, Len: maxSectors * 512}
		data := make([]byte, r.Len)
		if err := zns.Do(dev, r, file, data); err != nil {
			h.t.Fatal(err)
		}
		z := &got.zones[i]
		z.cond, z.wp = rep.Cond, uint8((rep.WP-rep.Start)/512)
		copy(z.data[:], ids(data))
		if z.cond.Active() {
			active++
		}
	}
	if _, n := dev.Counts(); n != active {
		h.t.Errorf("%d active zones counted, there are %d", n, active)
	}
	for l := range t.lines {
		want := line{}
		for i := range h.g.NrZones {
			z := l.zones[i]
			switch {
			case z.cond.Active() && z.wp == 0:
				z.cond = zns.CondEmpty
			case z.cond.Active():
				z.cond = zns.CondClosed
			}
			want.zones[i] = lineZone{cond: z.cond, wp: z.wp, data: z.data}
		}
		if got == want {
			return
		}
	}
	h.t.Errorf("after a new start the zones are %+v", got.zones[:h.g.NrZones])
	for l := range t.lines {
		h.t.Logf("want %+v", l.zones[:h.g.NrZones])
	}
}
