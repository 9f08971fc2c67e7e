package qcow2

import (
	"fmt"
	"testing"
)

// silent is a file whose durable writes cost nothing.
type silent struct{ *memFile }

func (silent) WriteDurable([]byte, int64) error { return nil }

// planner makes an image of n zones, and a function that moves the pointers of k
// of them, one in every apart zones, and does of a round what is neither a sync
// nor a write.
func planner(t testing.TB, n, k, apart uint32) (plan func()) {
	f, im := fresh(t, spec{clusterBits: 16, refOrder: 4, size: uint64(n) << 20, zoneSize: 1 << 20}, Options{})
	im.f = silent{f}
	wp := uint64(512)
	plan = func() {
		for i := range k {
			im.pointers.stage(i*apart, im.zoneStart(i*apart)+wp)
		}
		wp ^= 1536
		s := &im.syncer
		s.moves = im.pointers.capture(s.moves)
		if len(s.moves) != int(k) {
			t.Fatalf("%d pointers have moved, want %d", len(s.moves), k)
		}
		must(t, s.publish(s.moves))
	}
	plan() // the buffers have grown
	return plan
}

func TestPlanningARoundAllocatesNothing(t *testing.T) {
	for _, k := range []uint32{1, 1000} {
		if allocs := testing.AllocsPerRun(100, planner(t, 16384, k, 16)); allocs != 0 {
			t.Errorf("%d dirty zones: %v allocations, want 0", k, allocs)
		}
	}
}

// The cost follows the dirty zones, or how far they are apart, and not how many
// zones there are.
func BenchmarkPlanRound(b *testing.B) {
	for _, n := range []uint32{1024, 16384} {
		for _, c := range []struct{ k, apart uint32 }{{1, 1}, {64, 1}, {64, n / 64}, {1000, 1}} {
			b.Run(fmt.Sprintf("zones=%d/dirty=%d/apart=%d", n, c.k, c.apart), func(b *testing.B) {
				plan := planner(b, n, c.k, c.apart)
				b.ReportAllocs()
				for b.Loop() {
					plan()
				}
			})
		}
	}
}
