package qcow2

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"
)

// A dirty image's refcount structures may say anything: they are not believed,
// and what they point to is not written to unless nothing else is there.
func TestRebuildBelievesNothingOfTheOldRefcounts(t *testing.T) {
	for _, s := range []spec{
		small,
		{clusterBits: 9, refOrder: 6, size: 2 << 20, zoneSize: 128 << 10},
		{clusterBits: 9, refOrder: 0, size: 1 << 20, zoneSize: 64 << 10},
	} {
		for seed := range uint64(20) {
			rnd := rand.New(rand.NewPCG(seed, 3))
			f, im := fresh(t, s, Options{})
			for z := s.conventional; z < im.nrZones; z++ {
				grow(t, im, z, 512*(1+rnd.IntN(int(s.zoneSize)/512)), 32<<10)
			}
			must(t, im.Round())
			im.Abandon()
			h := im.Header()
			for i := range int64(h.RefTableClusters) << s.clusterBits / 8 {
				var e [8]byte
				switch rnd.IntN(4) {
				case 0: // as it is
					continue
				case 1:
					binary.BigEndian.PutUint64(e[:], rnd.Uint64())
				case 2: // somebody else's
					binary.BigEndian.PutUint64(e[:], uint64(rnd.Int64N(im.alloc.length()))<<s.clusterBits)
				}
				_, err := f.WriteAt(e[:], h.RefTableOffset+i*8)
				must(t, err)
			}
			want := make([]uint64, im.nrZones)
			for z := range want {
				want[z] = im.Pointer(uint32(z))
			}
			im = open(t, f, Options{})
			for z := s.conventional; z < im.nrZones; z++ {
				n := int(im.Pointer(z) - im.zoneStart(z))
				p, err := read(im, n, im.zoneStart(z))
				must(t, err)
				if im.Pointer(z) != want[z] || !bytes.Equal(p, fill(n, byte(z+1))) {
					t.Fatalf("seed %d: zone %d has other data", seed, z)
				}
			}
			must(t, im.Close())
			wantClean(t, f)
		}
	}
}

// Neither the length of the file nor the device's size may cost time or memory
// when the image is opened: both can be huge and empty.
func TestAHugeEmptyFileOpensAtOnce(t *testing.T) {
	for _, dirty := range []bool{false, true} {
		f := openOS(t, lockFile(t))
		build(t, f, spec{clusterBits: 9, refOrder: 6, size: 1 << 20, zoneSize: 64 << 10})
		if dirty {
			im := open(t, f, Options{})
			must(t, put(im, fill(512, 1), 0))
			im.Abandon()
		}
		must(t, f.Truncate(1<<42))
		start := time.Now()
		im := open(t, f, Options{})
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("dirty %v: it took %v", dirty, d)
		}
		must(t, put(im, fill(512, 1), 64<<10))
		must(t, im.Round())
		must(t, im.Close())
	}
}

func TestProgressOfARepairIsReported(t *testing.T) {
	f, im := fresh(t, small, Options{})
	grow(t, im, 1, 4096, 4096)
	must(t, im.Round())
	im.Abandon()
	var last, all int64
	im = open(t, f, Options{Progress: func(done, total int64) {
		if done <= last || done > total {
			t.Errorf("%d of %d after %d", done, total, last)
		}
		last, all = done, total
	}})
	im.Abandon()
	if last == 0 || last < all/2 { // tables are read twice: to know them, and to mend them
		t.Errorf("the last that was reported is %d of %d", last, all)
	}
}

// The clusters of a reset zone are free when two syncs have passed: one covers
// their cleared entries, the other the holes (I4).
// What a power cut leaves without a reference is free when the image has been
// opened, and no longer takes space.
func TestOrphanedClustersAreFreed(t *testing.T) {
	f, im := fresh(t, small, Options{})
	grow(t, im, 1, 128<<10, 64<<10)
	grow(t, im, 2, 128<<10, 64<<10)
	grow(t, im, 3, 4096, 4096)
	must(t, im.Round())
	before := im.Allocated()
	// Their entries are cleared, and nothing of what comes afterwards happens.
	must(t, im.Reset([]uint32{1}))
	must(t, im.f.Sync())
	im.Abandon()
	f = f.cut(nil)
	rep, err := Check(f, nil)
	must(t, err)
	if !rep.Dirty || rep.ExitCode() == exitCorrupt {
		t.Errorf("check: %+v", rep)
	}
	im = open(t, f, Options{})
	if now := im.Allocated(); now > before-128<<10 {
		t.Errorf("%d bytes are in use, %d were before 128K were reset", now, before)
	}
	if n := hostRuns(t, im, im.zoneStart(1), 128<<10); n != 1 { // a hole
		t.Errorf("the reset zone lies in %d pieces", n)
	}
	end := len(f.cache)
	grow(t, im, 4, 128<<10, 64<<10) // into what was freed
	if len(f.cache) != end {
		t.Errorf("the file had %d bytes and has %d", end, len(f.cache))
	}
	must(t, im.Close())
	wantClean(t, f)
}

func TestClustersOfAResetZoneAreFreeAfterTwoRounds(t *testing.T) {
	f, im := fresh(t, small, Options{})
	grow(t, im, 1, 512<<10, 128<<10)
	must(t, im.Round())
	ext, err := im.MapSlow(nil, im.zoneStart(1), 512<<10, false)
	must(t, err)
	was := run{ext[0].Off >> im.clusterBits, ext[0].Len >> im.clusterBits}
	must(t, im.Reset([]uint32{1}))
	for rounds, want := range []bool{false, false, true} {
		if got := im.alloc.clean.overlaps(was); got != want {
			t.Errorf("after %d rounds: free %v, want %v", rounds, got, want)
		}
		zeros := bytes.Equal(f.cache[ext[0].Off:ext[0].Off+ext[0].Len], make([]byte, ext[0].Len))
		if zeros != (rounds > 0) {
			t.Errorf("after %d rounds: punched %v", rounds, zeros)
		}
		must(t, im.syncer.drain())
	}
}
