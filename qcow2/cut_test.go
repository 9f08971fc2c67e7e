package qcow2

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

var (
	seedFlag = flag.Uint64("qcow2.seed", 0, "run only this seed of the random tests")
	cutsFlag = flag.Int("qcow2.cuts", 30, "seeds per geometry of the random tests")
)

// modelZone is what a zone must contain. A sector is a stamp, 0 for zeros.
type modelZone struct {
	data []uint64 // sequential: up to the pointer; conventional: all of it
	// Pointers, in sectors, that a cut may leave: the last one that is known
	// to be durable and all that were staged since.
	maybe []int
	// Conventional: what a cut may leave in each sector beside data.
	older map[int][]uint64
	// A reset that has not been answered may have happened or not.
	resetting bool
}

// world is an image and what it must contain.
type world struct {
	t     testing.TB
	rnd   *rand.Rand
	s     spec
	f     *memFile
	im    *Image
	zones []modelZone
	stamp uint64
	log   []string
}

func (w *world) note(format string, a ...any) { w.log = append(w.log, fmt.Sprintf(format, a...)) }

func (w *world) fatalf(format string, a ...any) {
	w.t.Helper()
	k := max(0, len(w.log)-60)
	for _, l := range w.log[k:] {
		w.t.Log(l)
	}
	w.t.Fatalf(format, a...)
}

func (w *world) conv(z int) bool { return uint32(z) < w.s.conventional }

// capacity is in sectors.
func (w *world) capacity(z int) int {
	return int((w.im.zoneEnd(uint32(z)) - w.im.zoneStart(uint32(z))) / 512)
}

func (w *world) start(z int) uint64 { return w.im.zoneStart(uint32(z)) }

func (w *world) stamps(n int) ([]byte, []uint64) {
	p, s := make([]byte, n*512), make([]uint64, n)
	for i := range s {
		w.stamp++
		s[i] = w.stamp
		for k := 0; k < 512; k += 8 {
			binary.BigEndian.PutUint64(p[i*512+k:], w.stamp)
		}
	}
	return p, s
}

// step does one random thing. An error is one of the file.
func (w *world) step() error {
	z := w.rnd.IntN(len(w.zones))
	m := &w.zones[z]
	zone := uint32(z)
	k := w.rnd.IntN(100)
	if k >= 55 && w.f.offAt > w.f.ops+20 && w.rnd.IntN(12) == 0 {
		w.f.offAt = w.f.ops + 1 + w.rnd.IntN(16) // in the middle of this
	}
	switch {
	case k < 55 && w.conv(z), k < 8 && w.conv(z):
		at := w.rnd.IntN(w.capacity(z))
		n := 1 + w.rnd.IntN(min(40, w.capacity(z)-at))
		p, s := w.stamps(n)
		if w.rnd.IntN(5) == 0 {
			p, s = nil, make([]uint64, n)
		}
		w.note("conventional zone %d: %d sectors at %d, zeros %v", z, n, at, p == nil)
		for i, v := range s {
			if m.older[at+i] == nil {
				m.older[at+i] = []uint64{m.data[at+i]}
			}
			m.older[at+i] = append(m.older[at+i], v)
		}
		var err error
		if p == nil {
			err = w.im.Zero(w.start(z)+uint64(at)*512, uint64(n)*512)
		} else {
			err = put(w.im, p, w.start(z)+uint64(at)*512)
		}
		if err != nil {
			return err
		}
		copy(m.data[at:], s)
	case k < 55:
		room := w.capacity(z) - len(m.data)
		if room == 0 {
			return nil
		}
		n := 1 + w.rnd.IntN(min(60, room))
		if w.rnd.IntN(6) == 0 {
			n = room
		}
		at := len(m.data)
		p, s := w.stamps(n)
		off := w.start(z) + uint64(at)*512
		if w.rnd.IntN(6) == 0 {
			s = make([]uint64, n)
			w.note("zone %d: zero %d sectors at %d", z, n, at)
			if err := w.im.Zero(off, uint64(n)*512); err != nil {
				return err
			}
		} else {
			w.note("zone %d: write %d sectors at %d", z, n, at)
			if err := put(w.im, p, off); err != nil {
				return err
			}
			if w.rnd.IntN(10) == 0 {
				return nil // the request was aborted after its data was written
			}
		}
		m.data = append(m.data, s...)
		m.maybe = append(m.maybe, len(m.data))
		w.im.Stage(zone, w.start(z)+uint64(len(m.data))*512)
	case k < 65 && !w.conv(z):
		w.note("zone %d: reset", z)
		zones := []uint32{zone}
		if w.rnd.IntN(4) == 0 {
			for i := range w.zones {
				if !w.conv(i) && i != z {
					zones = append(zones, uint32(i))
				}
			}
		}
		for _, i := range zones {
			w.zones[i].resetting = true
		}
		if err := w.im.Reset(zones); err != nil {
			return err
		}
		for _, i := range zones {
			m := &w.zones[i]
			m.data, m.maybe, m.resetting = nil, []int{0}, false
		}
	case k < 70 && !w.conv(z):
		w.note("zone %d: finish at %d", z, len(m.data))
		if len(m.data) == w.capacity(z) {
			return nil
		}
		// The zeros may be there, and be durable, before the pointer says so.
		if err := w.im.Finish(zone, w.start(z)+uint64(len(m.data))*512); err != nil {
			return err
		}
		m.data = append(m.data, make([]uint64, w.capacity(z)-len(m.data))...)
		m.maybe = append(m.maybe, len(m.data))
	case k < 85:
		w.note("round")
		// A round whose quarantine is over when it returns, so that a seed
		// always gives the same sequence.
		round := w.im.Round
		if w.im.attached.Load() {
			round = w.im.syncer.drain
		}
		if err := round(); err != nil {
			return err
		}
		for i := range w.zones {
			w.settle(i)
		}
	case k < 90:
		return w.verify()
	case k < 93:
		w.note("close")
		if w.im.attached.Load() {
			if err := w.im.syncer.drain(); err != nil {
				return err
			}
		}
		if err := w.im.Close(); err != nil {
			return err
		}
		for i := range w.zones {
			w.settle(i)
		}
		wantClean(w.t, w.f)
		w.litter()
		return w.open()
	case k < 95:
		w.note("kill")
		w.im.Abandon()
		off := w.f.offAt - w.f.ops
		w.f = w.f.kill()
		w.f.offAt = off
		// Without a record of its own, a successor knows what is durable.
		return w.reopen()
	}
	return nil
}

// settle notes that what zone z has is durable.
func (w *world) settle(z int) {
	m := &w.zones[z]
	m.maybe = []int{len(m.data)}
	if m.older != nil {
		clear(m.older)
	}
}

// litter fills what is free in the file, as a program could that knows only
// refcounts.
func (w *world) litter() {
	h, refs, err := references(w.f)
	must(w.t, err)
	size, _ := w.f.Size()
	for c := range size >> h.ClusterBits {
		if refs[c] == 0 {
			_, _ = w.f.WriteAt(fill(int(h.ClusterSize()), 0xee), c<<h.ClusterBits)
		}
	}
	_ = w.f.Sync()
}

func (w *world) open() (err error) {
	w.im, err = Open(w.f, Options{CacheBytes: 1})
	return err
}

// reopen opens the image after a cut or a kill and takes over which of the
// allowed states it is in.
func (w *world) reopen() error {
	if err := w.open(); err != nil {
		return err
	}
	if form := w.im.Header().Zoned.Form; w.s.form != 0 && form != w.s.form {
		w.fatalf("after recovery: entries are read in form %d", form)
	}
	if err := checkSound(w.f); errors.Is(err, errCut) {
		return err
	} else if err != nil {
		w.fatalf("after recovery: %v", err)
	}
	for z := range w.zones {
		m := &w.zones[z]
		if w.conv(z) {
			got, err := w.contents(z)
			if err != nil {
				return err
			}
			for i, v := range got {
				if older := m.older[i]; v != m.data[i] && !slices.Contains(older, v) {
					w.fatalf("conventional zone %d sector %d: %d, want %d or one of %d", z, i, v, m.data[i], older)
				}
				m.data[i] = v
			}
			// What was read is in the page cache of the new life and durable.
			clear(m.older)
			continue
		}
		wp := int(w.im.Pointer(uint32(z))-w.start(z)) / 512
		switch {
		case m.resetting && wp == 0:
			m.data = nil
		case slices.Contains(m.maybe, wp):
			if wp > len(m.data) {
				w.fatalf("zone %d: pointer %d beyond %d", z, wp, len(m.data))
			}
			m.data = m.data[:wp]
		case wp == w.capacity(z): // a finish that was not answered
			w.fatalf("zone %d is full after a finish that was not flushed", z)
		default:
			w.fatalf("zone %d: pointer %d, want one of %v (reset in flight: %v)", z, wp, m.maybe, m.resetting)
		}
		m.data = slices.Clone(m.data)
		m.maybe, m.resetting = []int{wp}, false
	}
	return w.verify()
}

// contents reads what zone z has, up to its pointer.
func (w *world) contents(z int) ([]uint64, error) {
	n := len(w.zones[z].data)
	p, err := read(w.im, n*512, w.start(z))
	if err != nil {
		return nil, fmt.Errorf("read zone %d: %w", z, err)
	}
	s := make([]uint64, n)
	for i := range s {
		s[i] = binary.BigEndian.Uint64(p[i*512:])
	}
	return s, nil
}

func (w *world) verify() error {
	for z := range w.zones {
		got, err := w.contents(z)
		if err != nil {
			return err
		}
		for i, v := range got {
			if want := w.zones[z].data[i]; v != want {
				w.fatalf("zone %d sector %d: %d, want %d", z, i, v, want)
			}
		}
	}
	return nil
}

// runCuts drives one image through several lives, each of which ends in a cut
// at a random operation.
func runCuts(t *testing.T, s spec, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	w := &world{t: t, rnd: rnd, s: s, f: newMemFile()}
	build(t, w.f, s)
	must(t, w.open())
	w.zones = make([]modelZone, w.im.nrZones)
	for z := range w.zones {
		w.zones[z].maybe = []int{0}
		if w.conv(z) {
			w.zones[z].data = make([]uint64, w.capacity(z))
			w.zones[z].older = map[int][]uint64{}
		}
	}
	for life := range 6 {
		w.f.offAt = w.f.ops + 1 + rnd.IntN(400)
		var err error
		for range 120 {
			if err = w.step(); err != nil {
				break
			}
		}
		if err != nil && !errors.Is(err, errCut) {
			w.fatalf("seed %d life %d: %v", seed, life, err)
		}
		if w.im != nil {
			w.im.Abandon()
		}
		w.f.dead = true
		w.f = w.f.cut(rnd)
		w.note("--- cut")
		// The power may go off again while the image is being repaired.
		for w.f.offAt = 1 + rnd.IntN(30); ; {
			if err = w.reopen(); err == nil {
				break
			}
			if !errors.Is(err, errCut) {
				w.fatalf("seed %d life %d: open: %v", seed, life, err)
			}
			w.f.dead = true
			w.f = w.f.cut(rnd)
			w.note("--- cut while opening")
		}
		w.f.offAt = 0
	}
	must(t, w.im.Close())
	wantClean(t, w.f)
	must(t, w.open())
	must(t, w.verify())
	w.im.Abandon()
}

func TestCutsLoseNothingThatWasFlushed(t *testing.T) {
	for _, s := range []spec{
		{clusterBits: 9, refOrder: 4, size: 512 << 10, zoneSize: 64 << 10, conventional: 1},
		{clusterBits: 9, refOrder: 6, size: 600 << 10, zoneSize: 64 << 10, capacity: 40<<10 + 512, conventional: 2, maxActive: 3, layout: Layout2026b},
		{clusterBits: 9, refOrder: 5, size: 2 << 20, zoneSize: 128 << 10, conventional: 12, layout: LayoutV7, form: BigEndian59},
		{clusterBits: 12, refOrder: 4, size: 512 << 10, zoneSize: 64 << 10, capacity: 50<<10 + 512, conventional: 1},
		{clusterBits: 12, refOrder: 1, size: 2 << 20, zoneSize: 128 << 10, maxActive: 4, layout: Layout2026a, form: LittleEndian59},
		{clusterBits: 16, refOrder: 4, size: 1 << 20, zoneSize: 128 << 10, conventional: 1},
		{clusterBits: 9, refOrder: 4, size: 512 << 10, zoneSize: 64 << 10, capacity: 50<<10 + 512, conventional: 1, prealloc: PreallocationMetadata},
		{clusterBits: 12, refOrder: 1, size: 1 << 20, zoneSize: 128 << 10, conventional: 2, maxActive: 3, prealloc: PreallocationFull},
	} {
		t.Run(fmt.Sprintf("%+v", s), func(t *testing.T) {
			t.Parallel()
			n := *cutsFlag
			if testing.Short() {
				n /= 10
			}
			for seed := range uint64(n) {
				seed++
				if *seedFlag != 0 {
					seed = *seedFlag
				}
				t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { runCuts(t, s, seed) })
				if *seedFlag != 0 || t.Failed() {
					break
				}
			}
		})
	}
}
