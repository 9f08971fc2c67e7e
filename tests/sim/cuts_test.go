package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
)

var (
	cutsFlag = flag.Int("cuts", 2000/slow, "power cuts of the test of those")
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
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 512, RefcountBits: 64, Size: 5 << 20, ZoneSize: 1 << 20, Conventional: 1}, narrow: true},
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 4096, RefcountBits: 16, Size: 256 << 10, ZoneSize: 32 << 10, ZoneCapacity: 20<<10 + 512, Conventional: 1, Preallocation: qcow2.PreallocationMetadata}},
	// An L2 table for every zone, most of which are conventional.
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 512, RefcountBits: 16, Size: 640 << 10, ZoneSize: 32 << 10, Conventional: 17}},
}

const cutsPerSeed = 10

// enoughCuts is how many are known to meet everything that the census wants.
const enoughCuts = 2000

func TestPowerCutsKeepThePromises(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // there is much garbage, and memory for it
	seen := new(census)
	if *seedFlag != 0 {
		synctest.Test(t, func(t *testing.T) { liveAndDie(t, *seedFlag, seen) })
		seen.report(t, nil)
		return
	}
	t.Cleanup(func() {
		if t.Failed() || *cutsFlag < enoughCuts {
			seen.report(t, nil)
		} else {
			seen.report(t, mustMeet)
		}
	})
	last := *firstFlag + uint64((*cutsFlag+cutsPerSeed-1)/cutsPerSeed)
	lanes := runtime.GOMAXPROCS(0)
	for lane := range lanes {
		t.Run(fmt.Sprint("lane=", lane), func(t *testing.T) {
			t.Parallel()
			for seed := *firstFlag + uint64(lane); seed < last && !t.Failed(); seed += uint64(lanes) {
				t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { liveAndDie(t, seed, seen) })
				})
			}
		})
	}
}

// liveAndDie drives one image through several lives. Time is virtual: disks
// are slow, and what runs at the same time meets in every order.
func liveAndDie(t *testing.T, seed uint64, seen *census) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("to repeat: make sim SEED=%d N=1", seed)
		}
	})
	rng := rand.New(rand.NewPCG(seed, 1))
	s := cutSpecs[seed%uint64(len(cutSpecs))]
	h := newHost(t, rng.IntN, s)
	h.seen = seen
	// One seed in three has a disk with troubles. What comes of them is known
	// only where one thing happens after the other.
	h.virtual = seed%3 != 0
	h.loose, h.wasteful = !h.virtual, !h.virtual
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
		if h.loose && rng.IntN(3) != 0 {
			h.trouble(rng)
		}
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
		phase := ""
		if rng.IntN(3) == 0 { // the power goes off while the image is closed
			phase = "while closing"
			h.drain()
			if h.powerOffWithin(1 + rng.IntN(10)); rng.IntN(3) != 0 {
				k := 1 + rng.IntN(3) // the pointers, or the dirty bit
				h.disk.CutIn(0)
				h.disk.CutInDurableWrite(k)
			}
			_ = h.im.Close()
		}
		failed := h.im.Failed() != nil && !errors.Is(h.im.Failed(), crashfile.ErrCut)
		killed := rng.IntN(6) == 0 && !failed
		h.mu.Lock()
		h.note("--- power cut (or killed: %v)", killed)
		h.mu.Unlock()
		if failed {
			seen.add("cuts after a failure")
		}
		if killed {
			seen.add("kills")
			seen.add(crashStates)
			h.disk = h.crash((*crashfile.File).Kill)
			h.disk.Fill(-1)
			h.recover(true, nil)
		} else {
			h.countCut(phase)
			h.disk = h.crash(func(d *crashfile.File) *crashfile.File { return d.Cut(rng) })
			h.disk.Fill(-1)
			h.recover(false, rng)
		}
		if rng.IntN(4) == 0 {
			if err := h.shut(); err != nil {
				h.fatalf("close: %v", err)
			}
			if h.wasteful {
				h.litter(rng)
			}
			if h.s.narrow && rng.IntN(2) == 0 {
				h.narrow()
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

// trouble makes operations of the disk fail, until it is cut off.
func (h *host) trouble(rng *rand.Rand) {
	dice := rand.New(rand.NewPCG(rng.Uint64(), 3)) // used with the disk's lock held
	once := func(kind crashfile.Kind, name string) func(crashfile.Op) error {
		left := dice.IntN(12)
		return func(op crashfile.Op) error {
			if op.Kind != kind {
				return nil
			}
			if left--; left != -1 {
				return nil
			}
			h.seen.add(name)
			return syscall.EIO
		}
	}
	var fault func(crashfile.Op) error
	switch rng.IntN(7) {
	case 0:
		fault = func(op crashfile.Op) error {
			if op.Kind != crashfile.Read || dice.IntN(10) != 0 {
				return nil
			}
			h.seen.add("failed reads")
			return syscall.EIO
		}
	case 1:
		fault = func(op crashfile.Op) error {
			more := op.Kind == crashfile.Truncate || op.Kind == crashfile.Punch || op.Kind == crashfile.Reserve || op.Kind == crashfile.Write && op.Hole
			if !more || dice.IntN(8) != 0 {
				return nil
			}
			if op.Kind == crashfile.Write && dice.IntN(2) == 0 {
				h.seen.add("short writes")
				return crashfile.ErrShortWrite
			}
			h.seen.add("failed writes")
			return syscall.ENOSPC
		}
	case 2: // whatever it is: metadata as well
		fault = once(crashfile.Write, "failed writes")
	case 3, 4:
		fault = once(crashfile.Sync, "failed syncs")
	case 5:
		fault = once(crashfile.WriteDurable, "failed durable writes")
	case 6:
		h.disk.Fill(rng.Int64N(int64(h.s.Size / 512)))
	}
	h.disk.Fault(fault)
}

// litter leaves rubbish in clusters that are free, as another program may have:
// old tables, or so it seems. There may be too little of it for a zone.
func (h *host) litter(rng *rand.Rand) {
	h.t.Helper()
	size, err := h.disk.Size()
	if err != nil {
		h.fatalf("%v", err)
	}
	cs := int64(h.s.ClusterSize)
	n := 1 + rng.Int64N(int64(h.s.ZoneSize)/cs)
	if rng.IntN(2) == 0 {
		n += 64 + int64(h.s.Size/8)/cs
	}
	sector := make([]byte, 0, 512)
	for len(sector) < 512 {
		// An entry with the copied flag, of some cluster of the file.
		sector = binary.BigEndian.AppendUint64(sector, 1<<63|uint64(rng.Int64N(size/cs)*cs))
	}
	if _, err := h.disk.WriteAt(bytes.Repeat(sector, int(n*cs/512)), size); err != nil {
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
