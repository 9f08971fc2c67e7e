package sim

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
)

var (
	cutsFlag = flag.Int("cuts", 4000/slow, "power cuts of the test of those")
	seedFlag = flag.Uint64("seed", 0, "run only this seed of the tests that have seeds")
	// To explore is to go where nobody has been.
	firstFlag = flag.Uint64("first", 1, "first seed of the power cuts")
)

// cutSpecs are images that are small, so that many cuts find many states.
var cutSpecs = []spec{
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 512, RefcountBits: 16, Size: 128 << 10, ZoneSize: 16 << 10, ZoneCapacity: 12<<10 + 512, Conventional: 1}},
	// Zones in two sectors of zonedmeta and a limit that is always reached.
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 512, RefcountBits: 64, Size: 70 * 4 << 10, ZoneSize: 4 << 10, ZoneCapacity: 1024, Conventional: 58, MaxActive: 2}},
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 4096, RefcountBits: 1, Size: 256 << 10, ZoneSize: 32 << 10, ZoneCapacity: 20<<10 + 512, Conventional: 1, MaxActive: 3, MaxOpen: 2}},
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 64 << 10, RefcountBits: 16, Size: 384 << 10, ZoneSize: 64 << 10, Conventional: 2}},
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 4096, RefcountBits: 8, Size: 128 << 10, ZoneSize: 16 << 10, Conventional: 6, MaxActive: 1}, block: 4096},
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 512, RefcountBits: 64, Size: 2560 << 10, ZoneSize: 256 << 10, Conventional: 1}, narrow: true},
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 4096, RefcountBits: 16, Size: 256 << 10, ZoneSize: 32 << 10, ZoneCapacity: 20<<10 + 512, Conventional: 1, Preallocation: qcow2.PreallocationMetadata}},
}

const cutsPerSeed = 10

func TestPowerCutsKeepThePromises(t *testing.T) {
	if *seedFlag != 0 {
		synctest.Test(t, func(t *testing.T) { liveAndDie(t, *seedFlag) })
		return
	}
	last := *firstFlag + uint64((*cutsFlag+cutsPerSeed-1)/cutsPerSeed)
	lanes := runtime.GOMAXPROCS(0)
	for lane := range lanes {
		t.Run(fmt.Sprint("lane=", lane), func(t *testing.T) {
			t.Parallel()
			for seed := *firstFlag + uint64(lane); seed < last && !t.Failed(); seed += uint64(lanes) {
				t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { liveAndDie(t, seed) })
				})
			}
		})
	}
}

// liveAndDie drives one image through several lives. Time is virtual: disks
// are slow, and what runs at the same time meets in every order.
func liveAndDie(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	s := cutSpecs[seed%uint64(len(cutSpecs))]
	h := newHost(t, rng.IntN, s)
	h.virtual = true
	h.disk.Pause(crashfile.Latency(rand.New(rand.NewPCG(seed, 2))))
	if rng.IntN(2) == 0 {
		h.options.CacheBytes = 1
	}
	if rng.IntN(2) == 0 {
		h.wasteful = true // nobody has to clear up after others
		h.litter(rng)
	}
	if rng.IntN(2) == 0 {
		h.options.SyncInterval = 50_000
	}
	if err := h.open(); err != nil {
		h.fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		h.disk.Kill() // the power is off for whoever is left
		h.wg.Wait()
		h.im.Abandon()
	})
	for range cutsPerSeed {
		if h.powerOffWithin(1 + rng.IntN(500>>rng.IntN(6))); rng.IntN(3) == 0 {
			k := 1 + rng.IntN(12) // where the order of things shows
			h.disk.CutInDurableWrite(k)
		}
		for range 1 + rng.IntN(150) {
			if h.isDead() {
				break
			}
			h.step()
		}
		if rng.IntN(3) == 0 { // the power goes off while the image is closed
			h.drain()
			if h.powerOffWithin(1 + rng.IntN(10)); rng.IntN(3) != 0 {
				k := 1 + rng.IntN(3) // the pointers, or the dirty bit
				h.disk.CutIn(0)
				h.disk.CutInDurableWrite(k)
			}
			_ = h.im.Close()
		}
		killed := rng.IntN(6) == 0
		h.mu.Lock()
		h.note("--- power cut (or killed: %v)", killed)
		h.mu.Unlock()
		if killed {
			h.disk = h.crash((*crashfile.File).Kill)
			h.recover(true, nil)
		} else {
			h.disk = h.crash(func(d *crashfile.File) *crashfile.File { return d.Cut(rng) })
			h.recover(false, rng)
		}
		if rng.IntN(4) == 0 {
			if err := h.shut(); err != nil {
				h.fatalf("close: %v", err)
			}
			if h.wasteful {
				h.litter(rng)
			}
			if err := h.open(); err != nil {
				h.fatalf("open: %v", err)
			}
			h.verify()
		}
	}
	if err := h.reopen(); err != nil {
		h.fatalf("close and open: %v", err)
	}
	h.verify()
}

// litter leaves rubbish in clusters that are free, as another program may have:
// old tables, or so it seems.
func (h *host) litter(rng *rand.Rand) {
	h.t.Helper()
	size, err := h.disk.Size()
	if err != nil {
		h.fatalf("%v", err)
	}
	n := int64(h.s.Size/8) + 64*int64(h.s.ClusterSize)
	p := make([]byte, 0, n)
	for int64(len(p)) < n {
		// An entry with the copied flag, of some cluster of the file.
		p = binary.BigEndian.AppendUint64(p, 1<<63|rng.Uint64N(uint64(size)/h.s.ClusterSize)*h.s.ClusterSize)
	}
	if _, err := h.disk.WriteAt(p[:n&^(int64(h.s.ClusterSize)-1)], size); err != nil {
		h.fatalf("%v", err)
	}
	if err := h.disk.Sync(); err != nil {
		h.fatalf("%v", err)
	}
}

// powerOffWithin says that the power goes off in one of the next n operations.
func (h *host) powerOffWithin(n int) {
	k := 1 + h.pick(n)
	h.disk.CutIn(k)
}
