package vm

import (
	"sync"
	"time"
)

// rdtsc reads the CPU's time stamp counter.
func rdtsc() uint64

// tscKHz measures the frequency of the time stamp counter, which qemu hands
// through to the guest. A guest that measures it itself while the host is busy
// gets it wrong by any factor, and with it every second of its life.
var tscKHz = sync.OnceValue(func() int64 {
	const window = 50 * time.Millisecond
	t0, c0 := tscSample()
	time.Sleep(window)
	t1, c1 := tscSample()
	return int64(float64(c1-c0) / float64(t1.Sub(t0)) * 1e6)
})

// tscSample reads the clock and the counter at the same instant: of many
// attempts the one that was interrupted least.
func tscSample() (t time.Time, counter uint64) {
	best := time.Duration(1<<63 - 1)
	for range 200 {
		before := time.Now()
		c := rdtsc()
		if d := time.Since(before); d < best {
			best, t, counter = d, before.Add(d/2), c
		}
	}
	return t, counter
}
