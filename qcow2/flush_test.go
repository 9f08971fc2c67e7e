package qcow2

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// operations records what is done to the file from here on: "sync", or the kind
// of a write and its length.
func operations(f *memFile) (since func() []string) {
	var ops []string
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onOp = func(op string, off, n int64) error {
		if op != "sync" {
			op = fmt.Sprint(op, " ", n)
		}
		ops = append(ops, op)
		return nil
	}
	return func() []string {
		f.mu.Lock()
		defer f.mu.Unlock()
		last := ops
		ops = nil
		return last
	}
}

func TestAFlushCostsWhatIsDirtyNotWhatThereIs(t *testing.T) {
	const most = 16384
	s := spec{clusterBits: 12, refOrder: 4, size: most << 12, zoneSize: 4096}
	for _, c := range []struct {
		name      string
		maxActive uint32
		before    []uint32 // active on disk, and full with the flush
		zones     []uint32 // that get their first sector
		want      []string
	}{
		{"nothing", 0, nil, nil, []string{"sync"}},
		{"one zone", 0, nil, []uint32{9000}, []string{"sync", "durable 512"}},
		{"the last zone", 0, nil, []uint32{most - 1}, []string{"sync", "durable 512"}},
		{"neighbours in one sector", 0, nil, []uint32{64, 70, 127}, []string{"sync", "durable 512"}},
		{"neighbours in two sectors", 0, nil, []uint32{127, 128}, []string{"sync", "durable 1024"}},
		{"two zones far apart", 0, nil, []uint32{1, most - 1}, []string{"sync", "durable 131072"}},
		{"many", 0, nil, []uint32{6400, 6500, 6600, 6700}, []string{"sync", "durable 2560"}},
		{"a limit, nobody leaves", 9, nil, []uint32{9000, 9030}, []string{"sync", "durable 1024"}},
		{"a limit, one leaves and another enters", 9, []uint32{100}, []uint32{9000}, []string{"sync", "durable 512", "durable 512"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := s
			s.maxActive = c.maxActive
			f, im := fresh(t, s, Options{})
			grow(t, im, 300, 512, 512)
			for _, z := range c.before {
				grow(t, im, z, 512, 512)
			}
			must(t, im.Round())
			for _, z := range c.before {
				grow(t, im, z, 4096-512, 4096)
			}
			for _, z := range c.zones {
				grow(t, im, z, 512, 512)
			}
			since := operations(f)
			must(t, im.Round())
			if ops := since(); !slices.Equal(ops, c.want) {
				t.Errorf("the flush did %v, want %v", ops, c.want)
			}
			// A drive syncs whenever it is asked.
			must(t, im.Round())
			if ops := since(); !slices.Equal(ops, []string{"sync"}) {
				t.Errorf("the next flush did %v, want a sync", ops)
			}
			im.Abandon()
			_, wps := stored(t, f.cut(nil))
			for _, z := range c.zones {
				if wps[z] != uint64(z)*4096+512 {
					t.Errorf("zone %d is durable up to %#x", z, wps[z])
				}
			}
		})
	}
}

// durable is the zone's write pointer after a power cut now, in bytes from its
// start.
func durable(t *testing.T, f *memFile, zone int) int {
	t.Helper()
	h, wps := stored(t, f.cut(nil))
	return int(wps[zone] - h.ZoneStart(uint32(zone)))
}

func TestWhatNobodyFlushesIsDurableInTime(t *testing.T) {
	const interval = 5 * time.Second
	synctest.Test(t, func(t *testing.T) {
		f, im := fresh(t, small, Options{SyncInterval: interval})

		// At idle.
		grow(t, im, 1, 4096, 512)
		synctest.Wait()
		if n := durable(t, f, 1); n != 0 {
			t.Errorf("%d bytes were durable at once", n)
		}
		time.Sleep(2 * idleTime)
		synctest.Wait()
		if n := durable(t, f, 1); n != 4096 {
			t.Errorf("%d bytes are durable after %v without a write", n, 2*idleTime)
		}

		// What is reset gives its clusters back, too.
		must(t, im.Reset([]uint32{1}))
		time.Sleep(4 * idleTime)
		synctest.Wait()
		if im.alloc.waiting() {
			t.Error("clusters of a reset zone are still in quarantine")
		}

		// Busy: never idle, and never flushed.
		begin := time.Now()
		f.mu.Lock()
		syncs := f.syncs
		f.mu.Unlock()
		for n := 0; time.Since(begin) < 4*interval; n += 512 {
			grow(t, im, 2, 512, 512)
			time.Sleep(idleTime / 2)
			synctest.Wait()
			staged := map[bool]int{true: n - int(interval/(idleTime/2))*512, false: 0}[time.Since(begin) > interval]
			if d := durable(t, f, 2); d < staged {
				t.Fatalf("after %v %d bytes are durable, %d were written %v ago", time.Since(begin), d, staged, interval)
			}
		}
		f.mu.Lock()
		syncs = f.syncs - syncs
		f.mu.Unlock()
		if syncs > 5 {
			t.Errorf("%d syncs in 4 intervals", syncs)
		}
		must(t, im.Close())
		wantClean(t, f)
	})
}

// A device that nobody uses wakes nobody, and one that is flushed all the time
// starts no timer for each write.
func TestBackgroundRoundsCostNothingWhenThereIsNothingToDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, im := fresh(t, small, Options{SyncInterval: time.Second})
		if im.syncer.watching.Load() {
			t.Error("the timer of an unused image runs")
		}
		since := operations(f)
		grow(t, im, 1, 512, 512)
		must(t, im.Round())
		for range 9 {
			if !im.syncer.watching.Load() {
				t.Error("between two flushes the timer has to be started again")
			}
			grow(t, im, 1, 512, 512)
			must(t, im.Round())
		}
		synctest.Wait()
		since()
		time.Sleep(2 * idleTime)
		synctest.Wait()
		if im.syncer.watching.Load() {
			t.Error("the timer of an idle image runs on")
		}
		time.Sleep(time.Hour)
		if ops := since(); len(ops) != 0 {
			t.Errorf("an idle image without changes did %v", ops)
		}
		if n := testing.AllocsPerRun(100, im.syncer.changed); n != 0 {
			t.Errorf("%v allocations per change", n)
		}
	})
}

func TestAnIntervalOfZeroTurnsBackgroundRoundsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, im := fresh(t, small, Options{})
		grow(t, im, 1, 512, 512)
		since := operations(f)
		time.Sleep(time.Hour)
		synctest.Wait()
		if ops := since(); len(ops) != 0 {
			t.Errorf("without an interval: %v", ops)
		}
	})
}
