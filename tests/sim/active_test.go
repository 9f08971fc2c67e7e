package sim

import (
	"math/rand/v2"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

// A host that always has as many active zones as there may be, in different
// sectors of zonedmeta: between two of its flushes some are filled and others
// begun, and the power goes off while the pointers are written.
func TestZonesLeaveTheActiveSetBeforeOthersEnter(t *testing.T) {
	seed := *firstFlag
	if *seedFlag != 0 {
		seed = *seedFlag
	}
	rng := rand.New(rand.NewPCG(seed, 1))
	s := spec{CreateOptions: qcow2.CreateOptions{ClusterSize: 512, RefcountBits: 16, Size: 192 * 4 << 10, ZoneSize: 4 << 10, ZoneCapacity: 2048, MaxActive: 3}}
	h := newHost(t, rng.IntN, s)
	h.loose = true
	h.seen = new(census)
	defer h.seen.report(t, nil)
	if err := h.open(); err != nil {
		t.Fatal(err)
	}
	defer func() { h.im.Abandon() }()
	for range max(*cutsFlag/10, 1) {
		for range 1 + rng.IntN(3) {
			h.turnOver(rng)
			if rng.IntN(2) == 0 {
				h.flush()
			}
		}
		k := 1 + rng.IntN(3)
		h.disk.CutInDurableWrite(k)
		h.begin(zns.OpFlush, 0, 0, 0, false)
		h.countCut("")
		h.disk = h.crash(func(d *crashfile.File) *crashfile.File { return d.Cut(rng) })
		h.recover(false, rng)
	}
	if err := h.reopen(); err != nil {
		h.fatalf("close and open: %v", err)
	}
}

// turnOver fills or finishes active zones and begins others instead.
func (h *host) turnOver(rng *rand.Rand) {
	h.t.Helper()
	var active, empty []int
	for z := range h.zones {
		switch n := len(h.zones[z].data); {
		case n == 0:
			empty = append(empty, z)
		case n < h.capacity(z):
			active = append(active, z)
		}
	}
	if len(empty) < 20 {
		h.resetAll()
		return
	}
	for _, z := range active {
		switch rng.IntN(4) {
		case 0:
			h.manage(zns.OpFinish, z)
		case 1, 2:
			h.fillZones(z)
		}
		if len(h.zones[z].data) < h.capacity(z) {
			continue
		}
		h.begin(zns.OpWrite, empty[0], 0, 1, false)
		h.drain()
		empty = empty[1:]
		rng.Shuffle(len(empty), func(i, k int) { empty[i], empty[k] = empty[k], empty[i] })
	}
	for len(active) < int(h.g.MaxActive) {
		z := empty[rng.IntN(len(empty)-1)+1]
		active = append(active, z)
		if len(h.zones[z].data) == 0 {
			h.begin(zns.OpWrite, z, 0, 1, false)
			h.drain()
		}
	}
	h.check()
}
