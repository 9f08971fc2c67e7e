package qcow2

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

var small = spec{clusterBits: 12, refOrder: 4, size: 4 << 20, zoneSize: 512 << 10, conventional: 1}

func fresh(t testing.TB, s spec, o Options) (*memFile, *Image) {
	t.Helper()
	f := newMemFile()
	build(t, f, s)
	im := open(t, f, o)
	t.Cleanup(im.Abandon)
	return f, im
}

// grow appends n bytes to a zone in pieces and stages each.
func grow(t testing.TB, im *Image, zone uint32, n, piece int) {
	t.Helper()
	for n > 0 {
		k := min(n, piece)
		wp := im.Pointer(zone)
		must(t, put(im, fill(k, byte(zone+1)), wp))
		im.Stage(zone, wp+uint64(k))
		n -= k
	}
}

// hostRuns returns how many pieces of the file a range lies in.
func hostRuns(t testing.TB, im *Image, off, n uint64) int {
	t.Helper()
	ext, err := im.MapSlow(nil, off, n, false)
	must(t, err)
	return len(ext)
}

func TestAZoneIsOnePieceOfTheFileHoweverItIsWritten(t *testing.T) {
	_, im := fresh(t, small, Options{})
	for range 8 { // zones in turn, small pieces
		for z := uint32(1); z < 8; z++ {
			grow(t, im, z, 64<<10, 12<<10)
		}
	}
	for z := uint32(1); z < 8; z++ {
		if n := hostRuns(t, im, im.zoneStart(z), 512<<10); n != 1 {
			t.Errorf("zone %d lies in %d pieces", z, n)
		}
	}
}

// TestAZoneBeginsAtAMultipleOfAMiB of the file, so that no more of the host's
// large pieces are touched than must be.
func TestAZoneBeginsAtAMultipleOfAMiB(t *testing.T) {
	_, im := fresh(t, spec{clusterBits: 16, refOrder: 4, size: 64 * mib, zoneSize: 16 * mib}, Options{})
	for z := range uint32(4) {
		grow(t, im, z, 64<<10, 64<<10)
		ext, ok := im.Map(nil, im.zoneStart(z), 4096, false)
		if !ok || len(ext) != 1 || ext[0].Off%mib != 0 {
			t.Errorf("zone %d is at %v", z, ext)
		}
	}
}

// TestPlacesThatZonesHadAreUsedAsTheyAre: two zones that lay side by side, at no
// multiple of a MiB, leave room for two.
func TestPlacesThatZonesHadAreUsedAsTheyAre(t *testing.T) {
	_, im := fresh(t, spec{clusterBits: 16, refOrder: 4, size: 64 * mib, zoneSize: 4 * mib}, Options{})
	a := &im.alloc
	a.fileEnd.Store(1001)
	a.clean = runSet{}
	must(t, a.release(run{101, 128}))
	must(t, a.release(run{301, 700}))
	for _, want := range []run{{101, 64}, {165, 64}, {304, 64}, {368, 64}} {
		if got := im.takeClean(64, 64); got != want {
			t.Errorf("%v, want %v", got, want)
		}
	}
}

func TestAReopenedZoneGoesOnWhereItEnded(t *testing.T) {
	f, im := fresh(t, small, Options{})
	grow(t, im, 7, 100<<10, 50<<10)
	must(t, im.Close())
	im = open(t, f, Options{})
	grow(t, im, 7, 412<<10, 50<<10)
	if n := hostRuns(t, im, im.zoneStart(7), 512<<10); n != 1 {
		t.Errorf("the zone lies in %d pieces", n)
	}
	must(t, im.Close())
	wantClean(t, f)
}

func TestAReopenedZoneGoesOnAfterACut(t *testing.T) {
	f, im := fresh(t, small, Options{})
	grow(t, im, 7, 100<<10, 50<<10)
	must(t, im.Round())
	im.Abandon()
	f = f.cut(nil)
	im = open(t, f, Options{})
	grow(t, im, 7, 412<<10, 50<<10)
	if n := hostRuns(t, im, im.zoneStart(7), 512<<10); n != 1 {
		t.Errorf("the zone lies in %d pieces", n)
	}
	must(t, im.Close())
	wantClean(t, f)
}

func TestWhatARoundCosts(t *testing.T) {
	s := small
	s.size, s.zoneSize = 64<<20, 64<<10 // 1024 zones, 16 sectors of zonedmeta
	cost := func(f *memFile, do func() error) [2]int {
		syncs, durs := f.syncs, f.durs
		must(t, do())
		return [2]int{f.syncs - syncs, f.durs - durs}
	}
	t.Run("without limits", func(t *testing.T) {
		f, im := fresh(t, s, Options{})
		if c := cost(f, im.Round); c != [2]int{0, 0} {
			t.Errorf("nothing ever written: %v syncs and durable writes", c)
		}
		grow(t, im, 1, 4096, 4096)
		must(t, im.Round())
		if c := cost(f, im.Round); c != [2]int{1, 0} {
			t.Errorf("nothing dirty: %v syncs and durable writes, want 1 and 0", c)
		}
		for _, z := range []uint32{2, 3, 70, 127, 128} { // neighbouring sectors
			grow(t, im, z, 4096, 4096)
		}
		if c := cost(f, im.Round); c != [2]int{1, 1} {
			t.Errorf("dirty: %v syncs and durable writes, want 1 and 1", c)
		}
		grow(t, im, 1, 60<<10, 4096)
		grow(t, im, 500, 4096, 4096)
		if c := cost(f, im.Round); c != [2]int{1, 1} {
			t.Errorf("two places: %v syncs and durable writes, want 1 and 1", c)
		}
		if c := cost(f, func() error { return im.Reset([]uint32{1, 2, 3}) }); c != [2]int{0, 1} {
			t.Errorf("reset: %v syncs and durable writes, want 0 and 1", c)
		}
		if c := cost(f, func() error { return im.Reset([]uint32{1, 2, 3, 900}) }); c != [2]int{0, 0} {
			t.Errorf("reset of empty zones: %v syncs and durable writes", c)
		}
	})
	t.Run("active zones are limited", func(t *testing.T) {
		s := s
		s.maxActive = 4
		f, im := fresh(t, s, Options{})
		grow(t, im, 1, 4096, 4096)
		grow(t, im, 100, 4096, 4096)
		must(t, im.Round())
		grow(t, im, 1, 60<<10, 4096) // leaves
		grow(t, im, 2, 4096, 4096)   // enters, in the same sector
		if c := cost(f, im.Round); c != [2]int{1, 1} {
			t.Errorf("one sector: %v syncs and durable writes, want 1 and 1", c)
		}
		grow(t, im, 100, 60<<10, 4096) // leaves
		grow(t, im, 3, 4096, 4096)     // enters in a sector below
		var order []int64
		f.onOp = func(op string, off, n int64) error {
			if op == "durable" {
				order = append(order, (off-im.header().Zoned.MetaOffset)/512)
			}
			return nil
		}
		if c := cost(f, im.Round); c != [2]int{1, 2} || len(order) != 2 || order[0] != 1 || order[1] != 0 {
			t.Errorf("%v syncs and durable writes in sectors %v, want 1 and 2 in 1, 0 (I15)", c, order)
		}
		f.onOp = nil
	})
}

func TestConcurrentFlushesShareARound(t *testing.T) {
	f, im := fresh(t, small, Options{})
	grow(t, im, 1, 4096, 4096)
	must(t, im.Round())
	gate, entered := make(chan struct{}), make(chan struct{}, 10)
	f.mu.Lock()
	syncs := f.syncs
	f.mu.Unlock()
	slow := &slowSync{File: f, gate: gate, entered: entered}
	im.f = slow
	errs := make(chan error, 20)
	go func() { errs <- im.Round() }()
	<-entered
	for range 19 {
		go func() { errs <- im.Round() }()
	}
	for {
		im.syncer.mu.Lock()
		n := len(im.syncer.flushes)
		im.syncer.mu.Unlock()
		if n == 19 {
			break
		}
	}
	close(gate)
	for range 20 {
		must(t, <-errs)
	}
	if n := f.syncs - syncs; n != 2 {
		t.Errorf("20 flushes took %d syncs, want 2", n)
	}
}

type slowSync struct {
	File
	gate    chan struct{}
	entered chan struct{}
}

func (f *slowSync) Sync() error {
	f.entered <- struct{}{}
	<-f.gate
	return f.File.Sync()
}

func TestAFailedSyncFailsTheImage(t *testing.T) {
	cause := errors.New("disk on fire")
	for _, op := range []string{"sync", "durable"} {
		t.Run(op, func(t *testing.T) {
			told := 0
			f, im := fresh(t, small, Options{OnFail: func(err error) {
				if told++; !errors.Is(err, cause) {
					t.Errorf("told %v", err)
				}
			}})
			grow(t, im, 1, 8192, 4096)
			f.onOp = func(o string, off, n int64) error {
				if o == op {
					return cause
				}
				return nil
			}
			err := im.Round()
			if !errors.Is(err, ErrFailed) || !errors.Is(err, cause) {
				t.Fatalf("round: %v", err)
			}
			f.onOp = nil // the next one would succeed, and lie
			for what, err := range map[string]error{
				"round":  im.Round(),
				"reset":  im.Reset([]uint32{1}),
				"finish": im.Finish(1, im.zoneStart(1)+8192),
				"zero":   im.Zero(0, 4096),
				"write":  put(im, fill(512, 1), im.zoneStart(1)+8192),
				"failed": im.Failed(),
			} {
				if !errors.Is(err, ErrFailed) {
					t.Errorf("%s: %v", what, err)
				}
			}
			// A sync that went well has covered what the durable write is for.
			if p, err := read(im, 8192, im.zoneStart(1)); op == "sync" && !errors.Is(err, ErrFailed) || op != "sync" && (err != nil || !bytes.Equal(p, fill(8192, 2))) {
				t.Errorf("read: %v", err)
			}
			if err := im.Close(); !errors.Is(err, ErrFailed) {
				t.Errorf("close: %v", err)
			}
			if told != 1 {
				t.Errorf("told %d times", told)
			}
			h, err := ReadHeader(f)
			must(t, err)
			if !h.Dirty() {
				t.Error("the dirty bit of a failed image was cleared")
			}
			im = open(t, f, Options{})
			must(t, im.Close())
			wantClean(t, f)
		})
	}
}

func TestAFullFileSystemRefusesTheRequestAndNothingElse(t *testing.T) {
	for _, op := range []string{"truncate", "punch", "metadata"} {
		t.Run(op, func(t *testing.T) {
			f, im := fresh(t, small, Options{})
			if op == "punch" { // there is free space in the file
				grow(t, im, 1, 256<<10, 4096)
				grow(t, im, 2, 4096, 4096)
				must(t, im.Reset([]uint32{1}))
				must(t, im.Close())
				im = open(t, f, Options{})
			}
			f.onOp = func(o string, off, n int64) error {
				if o == op || op == "metadata" && o == "write" && n == 4096 {
					return syscall.ENOSPC
				}
				return nil
			}
			if err := put(im, fill(64<<10, 1), im.zoneStart(4)); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("write: %v", err)
			}
			must(t, im.Failed())
			f.onOp = nil
			grow(t, im, 4, 512<<10, 64<<10)
			must(t, im.Round())
			must(t, im.Close())
			wantClean(t, f)
		})
	}
}

func TestTheFileDoesNotGrowWithoutBound(t *testing.T) {
	s := spec{clusterBits: 12, refOrder: 4, size: 4 << 20, zoneSize: 512 << 10}
	f, im := fresh(t, s, Options{})
	for i := range 400 {
		z := uint32(i % 8)
		must(t, im.Reset([]uint32{z}))
		grow(t, im, z, 512<<10, 128<<10)
		if n := hostRuns(t, im, im.zoneStart(z), 512<<10); n != 1 {
			t.Errorf("write %d: zone %d lies in %d pieces", i, z, n)
		}
	}
	if size, limit := int64(len(f.cache)), im.alloc.limit<<im.clusterBits; size > limit {
		t.Errorf("the file has %d bytes, more than %d", size, limit)
	}
	must(t, im.Close())
	wantClean(t, f)
}

// TestWritersWaitForWhatARoundHasInItsHands rather than to make the file longer than
// a full device needs it.
func TestWritersWaitForWhatARoundHasInItsHands(t *testing.T) {
	s := spec{clusterBits: 12, refOrder: 4, size: 4 << 20, zoneSize: 512 << 10}
	f, im := fresh(t, s, Options{})
	fill := func() {
		for z := range uint32(8) {
			grow(t, im, z, 512<<10, 128<<10)
		}
	}
	fill()
	must(t, im.Round())
	must(t, im.Reset([]uint32{0, 1, 2, 3, 4, 5, 6, 7}))
	slow := &slowSync{File: f, gate: make(chan struct{}), entered: make(chan struct{}, 100)}
	im.f = slow
	round, written := make(chan error), make(chan struct{})
	go func() { round <- im.Round() }()
	<-slow.entered
	go func() { fill(); close(written) }()
	for waits := false; !waits; {
		im.syncer.mu.Lock()
		waits = len(im.syncer.drains) > 0 || len(slow.entered) > 0
		im.syncer.mu.Unlock()
	}
	close(slow.gate)
	<-written
	must(t, <-round)
	if have, limit := im.alloc.length(), im.alloc.limit; have > limit {
		t.Errorf("the file has %d clusters, more than %d", have, limit)
	}
}

func TestResetGivesSpaceBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	file, err := os.Create(path)
	must(t, err)
	defer file.Close()
	f := NewOSFile(file)
	build(t, f, spec{clusterBits: 16, refOrder: 4, size: 64 << 20, zoneSize: 8 << 20})
	im := open(t, f, Options{})
	blocks := func() int64 {
		st, err := os.Stat(path)
		must(t, err)
		return st.Sys().(*syscall.Stat_t).Blocks * 512
	}
	empty := blocks()
	for z := range uint32(4) {
		grow(t, im, z, 8<<20, 1<<20)
	}
	must(t, im.Round())
	full := blocks()
	if full < 32<<20 {
		t.Skipf("this file system counts %d bytes for 32 MiB", full)
	}
	must(t, im.Reset([]uint32{0, 1, 2, 3}))
	must(t, im.syncer.drain())
	if now := blocks(); now > empty+1<<20 {
		t.Errorf("%d bytes before, %d with data, %d after reset", empty, full, now)
	}
	must(t, im.Close())
}

func TestMappedAheadIsGivenBackAtClose(t *testing.T) {
	f, im := fresh(t, small, Options{})
	grow(t, im, 1, 512, 512)
	if n := hostRuns(t, im, im.zoneStart(1), 512<<10); n != 1 {
		t.Fatalf("the zone lies in %d pieces: it was not mapped ahead", n)
	}
	must(t, im.Close())
	wantClean(t, f)
	im = open(t, f, Options{ReadOnly: true})
	defer im.Close()
	ext, err := im.MapSlow(nil, im.zoneStart(1), 512<<10, false)
	must(t, err)
	if len(ext) != 2 || ext[0].Len != 4096 || ext[1].Off != Hole {
		t.Errorf("one sector was written: %v", ext)
	}
}

func TestANeverWrittenImageIsNotTouched(t *testing.T) {
	f := newMemFile()
	build(t, f, small)
	before := append([]byte(nil), f.cache...)
	im := open(t, f, Options{})
	if _, err := read(im, 4096, 0); err != nil {
		t.Error(err)
	}
	must(t, im.Reset([]uint32{1, 2, 3}))
	must(t, im.Zero(0, 64<<10))
	must(t, im.Round())
	must(t, im.Close())
	if !bytes.Equal(before, f.cache) {
		t.Error("the file has changed")
	}
}

func TestReadOnly(t *testing.T) {
	f, im := fresh(t, small, Options{})
	grow(t, im, 2, 10<<10, 2<<10)
	must(t, im.Round())
	im.Abandon() // the image stays dirty
	before := append([]byte(nil), f.cache...)
	ops := f.ops
	im = open(t, f, Options{ReadOnly: true})
	if p, err := read(im, 10<<10, im.zoneStart(2)); err != nil || !bytes.Equal(p, fill(10<<10, 3)) {
		t.Errorf("read: %v", err)
	}
	if wp := im.Pointer(2); wp != im.zoneStart(2)+10<<10 {
		t.Errorf("pointer %#x", wp)
	}
	for what, err := range map[string]error{
		"write":  put(im, fill(512, 1), 0),
		"reset":  im.Reset([]uint32{2}),
		"finish": im.Finish(2, im.zoneStart(2)),
		"zero":   im.Zero(0, 4096),
	} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, im.Round())
	must(t, im.Close())
	if f.ops != ops || !bytes.Equal(before, f.cache) {
		t.Error("the file has been touched")
	}
}

func TestFinishIsStoredAsFinish(t *testing.T) {
	s := small
	s.capacity = 300<<10 + 512
	f, im := fresh(t, s, Options{})
	grow(t, im, 1, 300<<10+512, 30<<10)
	grow(t, im, 2, 6<<10, 2<<10)
	must(t, im.Finish(2, im.zoneStart(2)+6<<10))
	must(t, im.Finish(3, im.zoneStart(3)))
	for z := uint32(1); z < 4; z++ {
		if wp := im.Pointer(z); wp != im.zoneStart(z)+s.capacity {
			t.Errorf("zone %d: pointer %#x", z, wp)
		}
	}
	must(t, im.Close())
	h, raw := stored(t, f)
	if raw[1] != h.ZoneStart(1)+s.capacity || raw[2] != h.ZoneStart(3) || raw[3] != h.ZoneStart(4) {
		t.Errorf("stored %#x", raw[:4])
	}
	im = open(t, f, Options{})
	p, err := read(im, int(s.capacity), im.zoneStart(2))
	must(t, err)
	if !bytes.Equal(p[:6<<10], fill(6<<10, 3)) || !bytes.Equal(p[6<<10:], make([]byte, int(s.capacity)-6<<10)) {
		t.Error("other data after finish")
	}
	grow(t, im, 4, 512, 512) // a neighbour of theirs in the sector
	must(t, im.Close())
	_, raw = stored(t, f)
	if raw[2] != h.ZoneStart(3) {
		t.Errorf("a neighbour's round changed the finished zone's entry to %#x", raw[2])
	}
}

func TestARefcountTableThatIsTooSmallMoves(t *testing.T) {
	// A table of 64 blocks for 64 clusters each: 2 MiB.
	s := spec{clusterBits: 9, refOrder: 6, size: 4 << 20, zoneSize: 256 << 10}
	f, im := fresh(t, s, Options{})
	old := im.Header()
	for z := range uint32(16) {
		grow(t, im, z, 256<<10, 32<<10)
		if z == 12 {
			must(t, im.Round())
			im.Abandon()
			f = f.cut(nil)
			im = open(t, f, Options{})
		}
	}
	if now := im.Header(); now.RefTableOffset == old.RefTableOffset || now.RefTableClusters <= old.RefTableClusters {
		t.Errorf("the table is still at %#x with %d clusters", now.RefTableOffset, now.RefTableClusters)
	}
	must(t, im.Close())
	wantClean(t, f)
	r, err := Check(f, nil)
	must(t, err)
	if r.ExitCode() != 0 {
		t.Errorf("check: %+v", r)
	}
}

func TestAClusterUsedTwiceIsRefusedWithItsZone(t *testing.T) {
	f, im := fresh(t, small, Options{})
	grow(t, im, 1, 64<<10, 64<<10)
	grow(t, im, 2, 64<<10, 64<<10)
	must(t, im.Round())
	// Zone 2's second cluster becomes zone 1's first.
	im.lock()
	e, err := im.entry(im.clusterOf(im.zoneStart(1)))
	must(t, err)
	must(t, im.writeEntries(im.clusterOf(im.zoneStart(2))+1, []uint64{uint64(e)}))
	im.unlock()
	im.Abandon()
	f = f.kill()
	before := append([]byte(nil), f.cache...)
	_, err = Open(f, Options{})
	if err == nil || !strings.Contains(err.Error(), "zone 2") || !strings.Contains(err.Error(), "0x101000") {
		t.Errorf("open: %v", err)
	}
	if !bytes.Equal(before, f.cache) {
		t.Error("a refused image has been changed")
	}
}
