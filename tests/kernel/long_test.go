//go:build kernel && long

package kernel

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

// longTime is how long a long test shall go on.
func longTime(t *testing.T) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(os.Getenv("QZBD_LONGTIME"))
	if err != nil || d <= 0 {
		t.Fatalf("QZBD_LONGTIME=%q: want a duration above zero, for example 30m", os.Getenv("QZBD_LONGTIME"))
	}
	return d
}

// The mix in any order, again and again on one image, which is detached and
// checked after every few rows and attached in another way.
func TestLongFioMix(t *testing.T) {
	h := begin(t)
	h.onExt4()
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 2))
	t.Logf("seed %d", seed)
	im := h.create("a.qcow2", mixImage)
	rows, attached := 0, 0
	for end := time.Now().Add(longTime(t)); time.Now().Before(end) && !t.Failed(); {
		flags := append([]string{"--queues", queues()}, attaching[rnd.IntN(len(attaching))].flags...)
		d := im.attach(flags...)
		attached++
		for range 1 + rnd.IntN(8) {
			h.run("blkzone", "reset", d.node)
			mix[rnd.IntN(len(mix))].do(d, engines[rnd.IntN(len(engines))], rnd.Uint32())
			if rows++; time.Now().After(end) || t.Failed() {
				break
			}
		}
		d.detach()
		im.check()
	}
	t.Logf("%d rows, attached %d times", rows, attached)
}
