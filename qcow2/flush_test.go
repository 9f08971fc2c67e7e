package qcow2

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
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

// forgetful is a file whose host forgets what it could not write: the page
// cache goes on showing it, calls it clean, and tells of it once.
type forgetful struct {
	*memFile
	disk  *memFile // what a reader of the disk finds
	owed  error    // the error that nobody has been told yet
	drops int
}

func (f *forgetful) Sync() error {
	if err := f.owed; err != nil {
		f.owed = nil
		return err
	}
	return f.memFile.Sync()
}

func (f *forgetful) dropCache() {
	f.drops++
	f.memFile = f.disk
}

func TestWhatTheHostCouldNotWriteIsNotBelieved(t *testing.T) {
	for _, c := range []struct {
		name  string
		owed  error
		dirty bool
		want  []string // words of the warnings
	}{
		{"closed in order", nil, false, nil},
		{"not closed", nil, true, []string{"not closed"}},
		{"not closed, and nobody was told of the error", syscall.EIO, true, []string{"input/output error", "not closed"}},
		{"closed in order, and an error since", syscall.EIO, false, []string{"input/output error"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, im := fresh(t, small, Options{})
			grow(t, im, 1, 8192, 4096)
			must(t, im.Round())
			if c.dirty {
				im.Abandon()
			} else {
				must(t, im.Close())
			}
			disk := f.cut(nil)
			// Pointers that were written through the cache and never reached
			// the disk.
			h, _ := stored(t, f)
			var e [8]byte
			h.encodeEntry(e[:], 2, h.ZoneStart(2)+4096)
			if c.want != nil {
				_, err := f.WriteAt(e[:], h.Zoned.MetaOffset+16)
				must(t, err)
			}
			ff := &forgetful{memFile: f.kill(), disk: disk, owed: c.owed}
			var said []string
			im = open(t, ff, Options{Warn: func(s string) { said = append(said, s) }})
			defer im.Abandon()
			if wp := im.Pointer(2); wp != im.zoneStart(2) {
				t.Errorf("the write pointer of zone 2 is %#x, which is not on the disk", wp)
			}
			if wp := im.Pointer(1); wp != im.zoneStart(1)+8192 {
				t.Errorf("the write pointer of zone 1 is %#x", wp)
			}
			if (ff.drops != 0) != (c.want != nil) {
				t.Errorf("the page cache was dropped %d times", ff.drops)
			}
			if len(said) != len(c.want) {
				t.Fatalf("warnings %q, want %q", said, c.want)
			}
			for i, s := range said {
				if !strings.Contains(s, c.want[i]) || !strings.Contains(s, "may be lost") {
					t.Errorf("warning %q, want %q", s, c.want[i])
				}
			}
		})
	}
}

// Pointers of a process that was killed are worth nothing without the data below
// them.
func TestAnImageThatHasLostWritesIsNotOpenedWhereTheyHadGotTo(t *testing.T) {
	f, im := fresh(t, small, Options{})
	grow(t, im, 1, 8192, 4096)
	must(t, im.Round())
	im.Abandon()
	disk := f.cut(nil)
	ff := &forgetful{memFile: f.kill(), disk: disk, owed: syscall.EIO}
	reached := func(zone uint32) (uint64, bool) { return im.zoneStart(zone) + 4096, zone == 2 }
	if _, err := Open(ff, Options{Pointers: reached}); !errors.Is(err, ErrLost) || !errors.Is(err, syscall.EIO) {
		t.Errorf("open: %v", err)
	}
	im = open(t, ff, Options{})
	defer im.Abandon()
	if wp := im.Pointer(1); wp != im.zoneStart(1)+8192 {
		t.Errorf("the write pointer of zone 1 is %#x", wp)
	}
}

func TestADiskThatStillFailsIsNotOpened(t *testing.T) {
	f, im := fresh(t, small, Options{})
	must(t, im.Close())
	f.onOp = func(op string, off, n int64) error {
		if op == "sync" {
			return syscall.EIO
		}
		return nil
	}
	if _, err := Open(f, Options{}); !errors.Is(err, syscall.EIO) {
		t.Errorf("open: %v", err)
	}
}

// After a failure, what a sync has covered can be read, and nothing that may
// have been lost; also by who opens it after a death of the server.
func TestAFailedImageShowsOnlyWhatIsOnTheDisk(t *testing.T) {
	for _, op := range []string{"sync", "durable"} {
		t.Run(op, func(t *testing.T) {
			f, im := fresh(t, small, Options{})
			must(t, put(im, fill(4096, 9), 0)) // conventional
			grow(t, im, 1, 8192, 4096)
			grow(t, im, 2, 8192, 4096)
			must(t, im.Round())
			grow(t, im, 1, 4096, 4096)
			must(t, put(im, fill(4096, 8), 0))
			f.onOp = func(o string, off, n int64) error {
				if o == op {
					return syscall.ENOSPC
				}
				return nil
			}
			var err error
			if op == "sync" {
				err = im.Round()
			} else {
				err = im.Reset([]uint32{2})
			}
			if !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) || !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%v", err)
			}
			f.onOp = nil
			reached := make([]uint64, im.nrZones)
			for i := range reached {
				reached[i] = im.Pointer(uint32(i))
			}
			showsOnlyThat(t, im)
			ops := f.ops
			im, err = Open(f, Options{
				Failed: err.Error(), Pointers: func(zone uint32) (uint64, bool) { return reached[zone], true },
				OnFail: func(err error) { t.Errorf("told of the failure again: %v", err) },
			})
			must(t, err)
			for i := range reached {
				if wp := im.Pointer(uint32(i)); wp != reached[i] {
					t.Errorf("zone %d was written up to %d, now up to %d", i, reached[i], wp)
				}
			}
			showsOnlyThat(t, im)
			if f.ops != ops {
				t.Errorf("the failed image was changed %d times", f.ops-ops)
			}
			if n := strings.Count(im.Failed().Error(), ErrFailed.Error()); n != 1 {
				t.Errorf("failed with %q", im.Failed())
			}
		})
	}
}

// showsOnlyThat looks at a failed image, and closes it.
func showsOnlyThat(t *testing.T, im *Image) {
	t.Helper()
	for _, c := range []struct {
		zone    uint32
		at, n   uint64
		refused bool
	}{
		{0, 0, 8192, false},
		{1, 0, 8192, false}, {1, 4096, 8192, true}, {1, 8192, 4096, true},
		{2, 0, 8192, false},
	} {
		_, err := read(im, int(c.n), im.zoneStart(c.zone)+c.at)
		if (err != nil) != c.refused || err != nil && !errors.Is(err, syscall.EIO) {
			t.Errorf("read of %d bytes at %d of zone %d: %v", c.n, c.at, c.zone, err)
		}
	}
	for what, err := range map[string]error{
		"write": put(im, fill(4096, 1), im.zoneStart(1)+12288), "overwrite": put(im, fill(4096, 1), 0),
		"zero": im.Zero(0, 4096), "reset": im.Reset([]uint32{1}), "finish": im.Finish(1, im.zoneStart(1)+12288),
		"flush": im.Round(), "close": im.Close(),
	} {
		if !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// blindFile has a disk that cannot be read for a while.
type blindFile struct {
	*memFile
	blind bool
}

func (f *blindFile) ReadAt(p []byte, off int64) (int, error) {
	if f.blind {
		return 0, syscall.EIO
	}
	return f.memFile.ReadAt(p, off)
}

// The first change rewrites the header's sector, which has to be read for that.
// If it cannot be, nothing has happened.
func TestADiskThatCannotBeReadRefusesTheFirstChangeAlone(t *testing.T) {
	f := &blindFile{memFile: newMemFile()}
	build(t, f.memFile, small)
	im, err := Open(f, Options{})
	must(t, err)
	t.Cleanup(im.Abandon)
	before := f.ops
	f.blind = true
	if err := put(im, fill(4096, 1), im.zoneStart(1)); !errors.Is(err, syscall.EIO) {
		t.Errorf("write: %v", err)
	}
	if err := im.Failed(); err != nil {
		t.Errorf("the image has failed: %v", err)
	}
	if n := f.ops - before; n != 0 {
		t.Errorf("%d operations have changed the file", n)
	}
	f.blind = false
	grow(t, im, 1, 4096, 4096)
	must(t, im.Round())
}
