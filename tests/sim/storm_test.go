package sim

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/zns"
)

var stormTime = flag.Duration("storm", time.Second, "how long a storm lasts")

// A storm is many hosts at once, in real time and on a real file. Every sector
// says who wrote it, so that the zones can be held against what was answered.
type storm struct {
	t    *testing.T
	s    spec
	file *os.File
	im   *qcow2.Image
	dev  *zns.Device
	stop atomic.Bool
	next atomic.Uint64
	mu   sync.Mutex
	got  map[int][]placed // answered in each zone since the last reset of it
}

type placed struct {
	at     uint64
	stamps []uint64
}

func TestManyHostsAtOnceLoseNothing(t *testing.T) {
	for _, s := range []spec{
		{CreateOptions: qcow2.CreateOptions{ClusterSize: 4096, RefcountBits: 16, Size: 16 << 20, ZoneSize: 512 << 10, ZoneCapacity: 500 << 10, Conventional: 2}, block: 512},
		{CreateOptions: qcow2.CreateOptions{ClusterSize: 512, RefcountBits: 1, Size: 4 << 20, ZoneSize: 128 << 10, Conventional: 1, MaxActive: 6, MaxOpen: 4}, block: 512},
		{CreateOptions: qcow2.CreateOptions{ClusterSize: 64 << 10, RefcountBits: 64, Size: 16 << 20, ZoneSize: 1 << 20}, block: 4096},
	} {
		t.Run(s.String(), func(t *testing.T) { runStorm(t, s) })
	}
}

func runStorm(t *testing.T, s spec) {
	seed := rand.Uint64()
	if *seedFlag != 0 {
		seed = *seedFlag
	}
	t.Logf("-seed=%d", seed)
	path := filepath.Join(t.TempDir(), "image")
	if err := qcow2.Create(path, s.CreateOptions); err != nil {
		t.Fatal(err)
	}
	st := &storm{t: t, s: s, got: map[int][]placed{}}
	st.open(path)
	var wg sync.WaitGroup
	start := func(i int, f func(*rand.Rand) error) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			for !st.stop.Load() {
				if err := f(rng); err != nil {
					t.Errorf("%v", err)
					return
				}
			}
		})
	}
	zones := int(s.Size / s.ZoneSize)
	first := int(s.Conventional)
	half := first + (zones-first)/2
	for i := range 6 { // everybody appends to the same few zones, which are never reset
		start(i, func(rng *rand.Rand) error { return st.append(rng, first+rng.IntN(min(3, half-first))) })
	}
	for i := range 4 { // everybody has zones of their own, and resets them
		z := half + i
		start(10+i, func(rng *rand.Rand) error { return st.own(rng, z) })
	}
	for i := range 2 {
		start(20+i, func(rng *rand.Rand) error {
			time.Sleep(time.Duration(rng.IntN(int(3 * time.Millisecond))))
			return st.do(&zns.Request{Op: zns.OpFlush}, nil)
		})
	}
	for z := range first {
		start(30+z, func(rng *rand.Rand) error { return st.overwrite(rng, z) })
	}
	start(40, func(rng *rand.Rand) error { return st.readAnything(rng) })
	time.Sleep(*stormTime)
	st.stop.Store(true)
	wg.Wait()
	st.verify("after the storm")
	if err := st.im.Close(); err != nil {
		t.Fatal(err)
	}
	st.open(path)
	st.verify("after opening")
	rep, err := qcow2.Check(qcow2.NewOSFile(st.file), nil)
	if err != nil || rep.ExitCode() != 0 || rep.Ahead != 0 || rep.Dirty {
		t.Errorf("check: %+v, %v", rep, err)
	}
	if err := st.im.Close(); err != nil {
		t.Fatal(err)
	}
}

func (st *storm) open(path string) {
	st.t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		st.t.Fatal(err)
	}
	im, err := qcow2.Open(qcow2.NewOSFile(f), qcow2.Options{SyncInterval: 2 * time.Millisecond, CacheBytes: 64 << 10})
	if err != nil {
		st.t.Fatal(err)
	}
	z := im.Header().Zoned
	dev, err := zns.New(zns.Geometry{
		Size: st.s.Size, ZoneSize: z.ZoneSize, ZoneCapacity: z.ZoneCapacity, NrZones: z.NrZones, Conventional: z.Conventional,
		MaxOpen: z.MaxOpen, MaxActive: z.MaxActive, MaxAppend: 64 << 10, BlockSize: st.s.block,
	}, im)
	if err != nil {
		st.t.Fatal(err)
	}
	st.file, st.im, st.dev = f, im, dev
}

func (st *storm) do(r *zns.Request, data []byte) error {
	if err := zns.Do(st.dev, r, st.file, data); err != nil {
		return fmt.Errorf("%v at %#x: %w", r.Op, r.Start, err)
	}
	return nil
}

func (st *storm) stamps(n int) []uint64 {
	s := make([]uint64, n)
	for i := range s {
		s[i] = st.next.Add(1)
	}
	return s
}

func (st *storm) sectors(rng *rand.Rand, most int) int {
	b := int(st.s.block / 512)
	return b * (1 + rng.IntN(most/b))
}

// crowded reports whether a request was refused because others have all the
// zones that may be open or active.
func crowded(err error) bool {
	return errors.Is(err, zns.ErrOpenLimit) || errors.Is(err, zns.ErrActiveLimit)
}

func (st *storm) append(rng *rand.Rand, z int) error {
	s := st.stamps(st.sectors(rng, 64))
	r := zns.Request{Op: zns.OpAppend, Start: uint64(z) * st.s.ZoneSize, Len: uint64(len(s)) * 512, FUA: rng.IntN(50) == 0}
	err := st.do(&r, fill(s))
	switch {
	case err == nil:
		st.mu.Lock()
		st.got[z] = append(st.got[z], placed{r.At, s})
		st.mu.Unlock()
	case errors.Is(err, zns.ErrFull), errors.Is(err, zns.ErrBoundary), crowded(err):
		time.Sleep(100 * time.Microsecond)
		err = nil
	}
	return err
}

// own writes a zone that nobody else writes, sometimes to the end, and resets
// it while others are reading.
func (st *storm) own(rng *rand.Rand, z int) error {
	start := uint64(z) * st.s.ZoneSize
	var err error
	switch wp := st.dev.Zone(uint32(z)).WP; {
	case rng.IntN(30) == 0:
		if err = st.do(&zns.Request{Op: zns.OpFinish, Start: start}, nil); err == nil {
			rest := st.dev.Zone(uint32(z)).WP - wp
			st.mu.Lock()
			st.got[z] = append(st.got[z], placed{wp, make([]uint64, rest/512)})
			st.mu.Unlock()
		}
	case wp == start+st.dev.Geometry().ZoneCapacity || rng.IntN(30) == 0:
		if err = st.do(&zns.Request{Op: zns.OpReset, Start: start}, nil); err == nil {
			st.mu.Lock()
			st.got[z] = nil
			st.mu.Unlock()
		}
	default:
		rest := int(start+st.dev.Geometry().ZoneCapacity-wp) / 512
		s := st.stamps(st.sectors(rng, min(rest, 128)))
		r := zns.Request{Op: zns.OpWrite, Start: wp, Len: uint64(len(s)) * 512}
		if rng.IntN(5) == 0 {
			r.Op, s = zns.OpWriteZeroes, make([]uint64, len(s))
		}
		if err = st.do(&r, fill(s)); err == nil {
			st.mu.Lock()
			st.got[z] = append(st.got[z], placed{wp, s})
			st.mu.Unlock()
		}
	}
	if crowded(err) {
		// The zone may be what the others wait for.
		st.mu.Lock()
		st.got[z] = nil
		st.mu.Unlock()
		return st.do(&zns.Request{Op: zns.OpReset, Start: start}, nil)
	}
	return err
}

func (st *storm) overwrite(rng *rand.Rand, z int) error {
	n := st.sectors(rng, 32)
	b := int(st.s.block / 512)
	at := uint64(z)*st.s.ZoneSize + uint64(rng.IntN((int(st.s.ZoneSize/512)-n)/b)*b)*512
	s := st.stamps(n)
	r := zns.Request{Op: zns.OpWrite, Start: at, Len: uint64(n) * 512}
	if rng.IntN(5) == 0 {
		r.Op, s = zns.OpWriteZeroes, make([]uint64, n)
	}
	err := st.do(&r, fill(s))
	st.mu.Lock()
	defer st.mu.Unlock()
	st.got[z] = append(st.got[z], placed{at, s})
	return err
}

// readAnything reads anywhere; a sector must never be torn.
func (st *storm) readAnything(rng *rand.Rand) error {
	z := rng.IntN(int(st.s.Size / st.s.ZoneSize))
	n := st.sectors(rng, 128)
	p := make([]byte, n*512)
	r := zns.Request{Op: zns.OpRead, Start: uint64(z) * st.s.ZoneSize, Len: uint64(n) * 512}
	if err := st.do(&r, p); err != nil {
		return err
	}
	if uint64(z) >= st.s.Conventional && slices.Contains(stamps(p), ^uint64(0)) {
		return fmt.Errorf("zone %d: a torn sector below the write pointer", z)
	}
	return nil
}

// verify holds every zone against what was answered.
func (st *storm) verify(when string) {
	st.t.Helper()
	for z := range int(st.s.Size / st.s.ZoneSize) {
		want := make([]uint64, st.s.ZoneSize/512)
		start, end := uint64(z)*st.s.ZoneSize, uint64(0)
		for _, p := range st.got[z] {
			copy(want[(p.at-start)/512:], p.stamps)
			end = max(end, p.at-start+uint64(len(p.stamps))*512)
		}
		if wp := st.dev.Zone(uint32(z)).WP - start; uint64(z) >= st.s.Conventional && wp != end {
			st.t.Errorf("%s: zone %d has its write pointer at %d, want %d", when, z, wp, end)
		}
		p := make([]byte, st.s.ZoneSize)
		if err := st.do(&zns.Request{Op: zns.OpRead, Start: start, Len: st.s.ZoneSize}, p); err != nil {
			st.t.Fatal(err)
		}
		for i, s := range stamps(p) {
			if s != want[i] {
				st.t.Fatalf("%s: zone %d sector %d reads as %d, want %d", when, z, i, s, want[i])
			}
		}
	}
}
