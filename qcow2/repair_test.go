package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

// synced returns a file whose every byte is durable.
func synced(b []byte) *memFile {
	f := newMemFile()
	f.cache = bytes.Clone(b)
	f.sizes = []int64{int64(len(b))}
	return f
}

// dataOf reads what a device shows of an image: pointers and everything below
// them, and conventional zones.
func dataOf(t *testing.T, f File) (wps []uint64, data [][]byte) {
	t.Helper()
	im := open(t, f, Options{ReadOnly: true})
	for z := range im.nrZones {
		wp := im.Pointer(z)
		if im.conventional(z) {
			wp = im.zoneEnd(z)
		}
		p, err := read(im, int(wp-im.zoneStart(z)), im.zoneStart(z))
		must(t, err)
		wps, data = append(wps, wp), append(data, p)
	}
	return wps, data
}

// wantData fails the test unless f shows what dataOf returned.
func wantData(t *testing.T, f File, wps []uint64, data [][]byte) {
	t.Helper()
	gotWPs, got := dataOf(t, f)
	for z := range wps {
		if gotWPs[z] != wps[z] || !bytes.Equal(got[z], data[z]) {
			t.Fatalf("zone %d has other data or another pointer: %#x, want %#x", z, gotWPs[z], wps[z])
		}
	}
}

func metaOf(t *testing.T, f File) []byte {
	t.Helper()
	h, err := ReadHeader(f)
	must(t, err)
	p := make([]byte, h.roundUp(int64(h.Zoned.MetaSize)))
	must(t, readPadded(f, p, h.Zoned.MetaOffset))
	return p
}

func TestWhatEachRepairMends(t *testing.T) {
	good := loaded(t, "v9-lastzone-short")
	dirty := patch{offIncompatible, uint64(incompatDirty | incompatZoned)}
	one, none, two := []byte{0, 1}, []byte{0, 0}, []byte{0, 2}
	below := []patch{{sampleMeta + 8, little(64 << 20)}} // zone 1 is empty: what it has is above
	const untouched = -1
	type result struct{ exit, leaks, corruptions int64 } // after it; fixed; untouched: the exit code before it
	as := func(exit int64) result { return result{untouched, exit, 0} }
	for _, c := range []struct {
		what       string
		patches    []patch
		leaks, all result
		message    string // of what was left
		unreadable bool   // as it is damaged
	}{
		{"nothing", nil, as(0), as(0), "", false},
		{"a leaked cluster", []patch{{shortBlock + 2*9, one}}, result{0, 1, 0}, result{0, 1, 0}, "", false},
		{"two leaks behind the file", []patch{{shortBlock + 2*100, one}, {shortBlock + 2*0x7000, two}}, result{0, 2, 0}, result{0, 2, 0}, "", false},
		{"an unmapped cluster", append([]patch{{shortEntry, uint64(0)}}, below...), result{0, 1, 0}, result{0, 1, 0}, "", false},
		{"zonedmeta without refcount", []patch{{shortBlock + 2*3, none}}, as(2), result{0, 0, 1}, "", false},
		{"zonedmeta with two", []patch{{shortBlock + 2*3, two}}, result{0, 1, 0}, result{0, 1, 0}, "", false},
		{"data without refcount", []patch{{shortBlock + 2*6, none}}, as(2), result{0, 0, 1}, "", false},
		{"data without refcount, and a leak", []patch{{shortBlock + 2*6, none}, {shortBlock + 2*9, one}}, result{2, 1, 0}, result{0, 1, 1}, "", false},
		{"data with two", []patch{{shortBlock + 2*6, two}}, result{0, 1, 1}, result{0, 1, 1}, "", false},
		{"data with two and no flag", []patch{{shortBlock + 2*6, two}, {shortEntry, uint64(shortData)}}, result{0, 1, 0}, result{0, 1, 0}, "", false},
		{"an L2 table with two and no flag", []patch{{shortBlock + 2*5, two}, {shortL1, uint64(0x50000)}}, result{0, 1, 0}, result{0, 1, 0}, "", false},
		{"data without copied flag", []patch{{shortEntry, uint64(shortData)}}, as(2), result{0, 0, 1}, "", false},
		{"L2 table without copied flag", []patch{{shortL1, uint64(0x50000)}}, as(2), result{0, 0, 1}, "", false},
		{"no refcount block", []patch{{0x10000, uint64(0)}}, as(2), result{0, 0, 6}, "", false},
		{"a refcount block unaligned", []patch{{0x10000, uint64(0x20200)}}, as(2), result{0, 0, 7}, "", false},
		{"a refcount block beyond the file", []patch{{0x10008, uint64(1 << 40)}}, as(2), result{0, 0, 1}, "", false},
		{"a refcount block twice", []patch{{0x10008, uint64(0x20000)}}, as(2), result{0, 0, 2}, "", false},
		{"a refcount block in zonedmeta", []patch{{0x10000, uint64(0x30000)}}, as(2), result{0, 0, 7}, "", false},
		{"a refcount block in data", []patch{{0x10000, uint64(shortData)}}, as(2), result{0, 32768, 3}, "", false},
		{"a table of garbage", []patch{{0x10000, bytes.Repeat([]byte{0xa5}, 4096)}}, as(2), result{0, 0, 518}, "", false},

		{"data in the L1 table", []patch{{shortEntry, uint64(flagCopied | shortL1)}}, as(2), as(2), "a repair would lose data", true},
		{"an L2 table in zonedmeta", []patch{{shortL1, uint64(flagCopied | 0x30000)}}, as(2), as(2), "a repair would lose data", true},
		{"reserved bits in L1", []patch{{shortL1, uint64(flagCopied | 0x50001)}}, as(2), as(2), "a repair would lose data", true},
		{"reserved bits in L2", []patch{{shortEntry, uint64(flagCopied | shortData | 2)}}, as(2), as(2), "a repair would lose data", true},
		{"data unaligned", []patch{{shortEntry, uint64(flagCopied | shortData + 512)}}, as(2), as(2), "a repair would lose data", true},
		{"data beyond the file", []patch{{shortEntry, uint64(flagCopied | 0x70000)}}, as(2), as(2), "a repair would lose data", true},
		{"one cluster in two places", []patch{{shortEntry + 8, uint64(flagCopied | shortData)}, {sampleMeta + 8, little(64<<20 + 128<<10)}}, as(2), as(2), "", true},
		{"a compressed cluster", []patch{{shortEntry, uint64(flagCompressed | shortData)}}, as(2), as(2), "a repair would lose data", true},
		{"a zone's pointer outside", []patch{{sampleMeta, little(1 << 30)}, {shortBlock + 2*9, one}}, as(2), as(2), "no repair knows what write pointers should be", true},

		// Above a pointer a mapping has no data to lose.
		{"one above the pointer, too", []patch{{shortEntry + 8, uint64(flagCopied | shortData)}}, as(2), result{0, 0, 2}, "", false},
		{"beyond the file above the pointer", []patch{{shortEntry + 8, uint64(flagCopied | 0x70000)}}, as(2), result{0, 0, 1}, "", true},
		{"a leak and mappings above the pointer", append([]patch{{shortBlock + 2*9, one}}, below...), result{0, 1, 0}, result{0, 1, 0}, "", false},

		// What was not closed is closed.
		{"dirty", []patch{dirty}, result{0, 0, 0}, result{0, 0, 0}, "", false},
		{"dirty, mappings above the pointer", append([]patch{dirty}, below...), result{0, 1, 0}, result{0, 1, 0}, "", false},
		{"dirty, the straddling cluster", []patch{dirty, {sampleMeta + 8, little(64<<20 + 512)}}, result{0, 0, 0}, result{0, 0, 0}, "", false},
		{"dirty, wrong refcounts", []patch{dirty, {shortBlock, make([]byte, 64)}, {0x10008, uint64(0x123456)}}, result{0, 0, 0}, result{0, 0, 0}, "", false},
		{"dirty, one above the pointer, too", []patch{dirty, {shortEntry + 8, uint64(flagCopied | shortData)}}, result{0, 1, 1}, result{0, 1, 1}, "", false},
		{"dirty, data in the L1 table", []patch{dirty, {shortEntry, uint64(flagCopied | shortL1)}}, as(2), as(2), "a repair would lose data", true},
		{"dirty, data beyond the file", []patch{dirty, {shortEntry, uint64(flagCopied | 0x70000)}}, as(2), as(2), "a repair would lose data", true},
		{"dirty, a hole below the pointer", []patch{dirty, {sampleMeta + 8, little(64<<20 + 128<<10)}}, result{0, 0, 0}, result{0, 0, 0}, "", false},
		{"a hole below the pointer", []patch{{sampleMeta + 8, little(64<<20 + 128<<10)}}, as(0), as(0), "", false},
		{"dirty, a zone's pointer outside", []patch{dirty, {sampleMeta, little(1 << 30)}}, as(2), as(2), "no repair knows what write pointers should be", true},
	} {
		for mode, want := range map[RepairMode]result{RepairLeaks: c.leaks, RepairAll: c.all} {
			name := fmt.Sprintf("%s, mode %d", c.what, mode)
			bad := good.with(c.patches...)
			f := synced(bad)
			before, after, err := Repair(f, mode, nil)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			all := strings.Join(before.Messages[:min(len(before.Messages), 5)], "\n") + "\n…\n" +
				strings.Join(after.Messages[max(0, len(after.Messages)-5):], "\n")
			if want.exit == untouched {
				if int64(after.ExitCode()) != want.leaks || after.LeaksFixed+after.CorruptionsFixed != 0 {
					t.Errorf("%s: exit code %d, want %d\n%s", name, after.ExitCode(), want.leaks, all)
				}
				if !bytes.Equal(f.cache, bad) {
					t.Errorf("%s: the image was changed", name)
				}
				if c.message != "" && mode == RepairAll && !strings.Contains(all, "note: the image was left as it is: "+c.message) {
					t.Errorf("%s: the reason is not told:\n%s", name, all)
				}
				continue
			}
			got := result{int64(after.ExitCode()), after.LeaksFixed, after.CorruptionsFixed}
			if got != want {
				t.Errorf("%s: got %v, want %v\n%s", name, got, want, all)
			}
			if !bytes.Equal(metaOf(t, f), metaOf(t, bad)) {
				t.Errorf("%s: zonedmeta was changed", name)
			}
			sound := bad
			if c.unreadable {
				sound = good
			}
			wps, data := dataOf(t, sound)
			wantData(t, f, wps, data)
			if want.exit == 0 {
				wantClean(t, f)
			}
			if h, err := ReadHeader(f); err != nil || h.Dirty() {
				t.Errorf("%s: dirty, %v", name, err)
			}
		}
	}
}

// used returns an image that was in use and closed, with what it contains.
func used(t *testing.T, s spec, rnd *rand.Rand) (image []byte) {
	t.Helper()
	f, im := fresh(t, s, Options{})
	for range 12 {
		z := uint32(rnd.IntN(int(im.nrZones)))
		switch room := int(im.zoneEnd(z) - im.Pointer(z)); {
		case im.conventional(z):
			at := rnd.IntN(room/512-8) * 512
			must(t, put(im, fill(4096, byte(rnd.IntN(255)+1)), im.zoneStart(z)+uint64(at)))
		case room == 0 || rnd.IntN(6) == 0:
			must(t, im.Reset([]uint32{z}))
		case rnd.IntN(6) == 0:
			must(t, im.Finish(z, im.Pointer(z)))
		default:
			grow(t, im, z, 512*(1+rnd.IntN(room/512)), 32<<10)
		}
	}
	must(t, im.Close())
	return f.cache
}

var repairSpecs = []spec{
	{clusterBits: 12, refOrder: 4, size: 2 << 20, zoneSize: 256 << 10, conventional: 1},
	{clusterBits: 9, refOrder: 6, size: 1 << 20, zoneSize: 128 << 10, capacity: 100<<10 + 512, conventional: 1},
	{clusterBits: 9, refOrder: 0, size: 512 << 10, zoneSize: 64 << 10, conventional: 2},
	{clusterBits: 16, refOrder: 3, size: 2 << 20, zoneSize: 256 << 10},
}

// damage changes refcounts, their table and the flags that follow from them at
// random. It returns what it did.
func damage(t *testing.T, f *memFile, rnd *rand.Rand) (log []string) {
	t.Helper()
	h, err := ReadHeader(f)
	must(t, err)
	size, _ := f.Size()
	n := int64(h.RefTableClusters) << h.ClusterBits / 8
	for range 1 + rnd.IntN(8) {
		switch k := rnd.IntN(10); {
		case k < 6: // refcounts
			block := int64(peek(t, f, h.RefTableOffset)) &^ (h.ClusterSize() - 1)
			if block <= 0 || block >= size {
				continue
			}
			p := make([]byte, h.ClusterSize())
			must(t, readPadded(f, p, block))
			for range 1 + rnd.IntN(20) {
				i := rnd.Int64N(min(h.refBlockEntries(), size>>h.ClusterBits+8))
				v := rnd.Uint64() >> (64 - 1<<h.RefcountOrder)
				if rnd.IntN(2) == 0 {
					v &= 3 & (1<<(1<<h.RefcountOrder) - 1)
				}
				setRefcount(p, h.RefcountOrder, int(i), v)
				log = append(log, fmt.Sprintf("refcount %d = %d", i, v))
			}
			if owned(t, f, block) { // an entry of garbage led here
				continue
			}
			_, err := f.WriteAt(p, block)
			must(t, err)
		case k < 8: // the table
			i := rnd.Int64N(min(n, 4))
			v := rnd.Uint64()
			if rnd.IntN(2) == 0 {
				v = uint64(rnd.Int64N(size>>h.ClusterBits)) << h.ClusterBits
			}
			log = append(log, fmt.Sprintf("refcount table entry %d = %#x", i, v))
			poke(t, f, h.RefTableOffset+8*i, v)
		default: // flags
			must(t, walk(f, h, false, func(r *ref) error {
				if (r.kind == RefData || r.kind == RefL2) && rnd.IntN(8) == 0 {
					log = append(log, fmt.Sprintf("entry at %#x without flag", r.entryAt))
					poke(t, f, r.entryAt, r.entry&^flagCopied)
				}
				return nil
			}))
		}
	}
	must(t, f.Sync())
	return log
}

// owned reports whether something other than a refcount block is at off.
func owned(t *testing.T, f File, off int64) (yes bool) {
	t.Helper()
	h, err := ReadHeader(f)
	must(t, err)
	must(t, walk(f, h, false, func(r *ref) error {
		yes = yes || off >= r.off && off < r.off+r.n
		return nil
	}))
	return yes
}

func TestWhateverRefcountsSayARepairMakesItTrue(t *testing.T) {
	for i, s := range repairSpecs {
		n := uint64(25)
		if testing.Short() {
			n = 6
		}
		for seed := range n {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			f := synced(used(t, s, rnd))
			wps, data := dataOf(t, f)
			meta := metaOf(t, f)
			log := damage(t, f, rnd)
			fail := func(format string, args ...any) {
				t.Helper()
				t.Fatalf("seed %d of %+v: %s\n%s", seed, s, fmt.Sprintf(format, args...), strings.Join(log, "\n"))
			}
			before, after, err := Repair(f, RepairAll, nil)
			if err != nil || after.ExitCode() != 0 {
				fail("%v, %+v", err, after)
			}
			if before.Corruptions+before.Leaks != after.CorruptionsFixed+after.LeaksFixed {
				fail("fixed %d and %d of %d and %d", after.CorruptionsFixed, after.LeaksFixed, before.Corruptions, before.Leaks)
			}
			if !bytes.Equal(metaOf(t, f), meta) {
				fail("zonedmeta was changed")
			}
			wantClean(t, f)
			wantData(t, f, wps, data)
			im := open(t, f, Options{})
			must(t, put(im, fill(512, 1), im.zoneStart(im.nrZones-1)))
			must(t, im.Close())
		}
	}
}

// scribble writes above the write pointers, as requests that are not completed
// do: it takes clusters, and harms what is called free and is not.
func scribble(im *Image) error {
	for z := range im.nrZones {
		if wp := im.Pointer(z); !im.conventional(z) && wp+4096 <= im.zoneEnd(z) {
			if err := put(im, fill(4096, 0xee), wp); err != nil {
				return err
			}
		}
	}
	return nil
}

// The dirty bit is durable before anything else is changed, and goes last.
func TestARepairSetsTheDirtyBitFirst(t *testing.T) {
	image := used(t, repairSpecs[0], rand.New(rand.NewPCG(1, 1)))
	leak := synced(image)
	h, err := ReadHeader(leak)
	must(t, err)
	poke16(t, leak, int64(peek(t, leak, h.RefTableOffset))+2*1000, 1)
	for _, mode := range []RepairMode{RepairLeaks, RepairAll} {
		f := synced(leak.cache)
		var log []string
		f.onOp = func(op string, off, n int64) error {
			if op == "durable" {
				op += fmt.Sprintf(" %d+%d", off, n)
			}
			log = append(log, op)
			return nil
		}
		_, after, err := Repair(f, mode, nil)
		if err != nil || after.LeaksFixed != 1 {
			t.Errorf("mode %d: %+v, %v", mode, after, err)
		}
		first := slices.IndexFunc(log, func(op string) bool { return op != "sync" })
		n := len(log)
		if first < 1 || n < first+5 || log[first] != "durable 0+512" || log[n-2] != "durable 0+512" || log[n-1] != "sync" ||
			!slices.Contains(log[first+1:n-2], "sync") {
			t.Errorf("mode %d: %q", mode, log)
		}
	}
}

// The power may go off at any operation of a repair.
func TestARepairMayBeInterruptedAnywhere(t *testing.T) {
	for i, s := range repairSpecs {
		seeds := uint64(6)
		if testing.Short() {
			seeds = 2
		}
		for seed := range seeds {
			rnd := rand.New(rand.NewPCG(seed, 100+uint64(i)))
			f := synced(used(t, s, rnd))
			wps, data := dataOf(t, f)
			sound := rnd.IntN(3) == 0
			if sound { // but for leaks
				h, err := ReadHeader(f)
				must(t, err)
				p := f.cache[peek(t, f, h.RefTableOffset):][:h.ClusterSize()]
				for range 10 {
					setRefcount(p, h.RefcountOrder, rnd.IntN(int(h.refBlockEntries())), 1)
				}
			} else {
				damage(t, f, rnd)
			}
			if rnd.IntN(4) == 0 {
				poke(t, f, offIncompatible, incompatDirty|incompatZoned)
			}
			image := f.cache
			for _, mode := range []RepairMode{RepairLeaks, RepairAll} {
				for at := 1; ; at++ {
					f := synced(image)
					f.offAt = at
					_, _, err := Repair(f, mode, nil)
					if err == nil {
						break
					}
					if !errors.Is(err, errCut) {
						t.Fatalf("seed %d of %+v, mode %d, cut in operation %d: %v", seed, s, mode, at, err)
					}
					g := f.cut(rnd)
					if sound {
						err = checkSound(g)
					} else {
						err = nil
					}
					im, openErr := Open(g, Options{})
					if err == nil && openErr == nil {
						err = errors.Join(scribble(im), im.Close())
					}
					if err == nil {
						var after *CheckReport
						if _, after, err = Repair(g, RepairAll, nil); err == nil && after.ExitCode() != 0 {
							err = fmt.Errorf("%+v", after)
						}
					}
					if err != nil {
						t.Fatalf("seed %d of %+v, mode %d, cut in operation %d: %v", seed, s, mode, at, err)
					}
					wantData(t, g, wps, data)
				}
			}
		}
	}
}

// A leak's place may be in a file that it does not fit into.
func TestALeakBeyondEverythingIsFreed(t *testing.T) {
	f := newMemFile()
	build(t, f, spec{clusterBits: 9, refOrder: 0, size: 512 << 10, zoneSize: 64 << 10})
	h, err := ReadHeader(f)
	must(t, err)
	// The last block of the table, whose clusters begin at 2^24 or so.
	end, err := f.Size()
	must(t, err)
	must(t, f.Truncate(end+h.ClusterSize()))
	last := int64(h.RefTableClusters)<<h.ClusterBits/8 - 1
	poke(t, f, h.RefTableOffset+8*last, uint64(end))
	poke(t, f, end, 0xff)
	block := int64(peek(t, f, h.RefTableOffset))
	f.cache[block+end>>h.ClusterBits/8] |= 1 << (end >> h.ClusterBits % 8) // the new block's own
	for _, mode := range []RepairMode{RepairLeaks, RepairAll} {
		g := synced(f.cache)
		_, after, err := Repair(g, mode, nil)
		if err != nil || after.ExitCode() != 0 || after.LeaksFixed < 8 {
			t.Errorf("mode %d: %+v, %v", mode, after, err)
		}
		wantClean(t, g)
	}
}

func TestAnErrorOfTheDiskInARepairIsTold(t *testing.T) {
	image := used(t, repairSpecs[0], rand.New(rand.NewPCG(1, 1)))
	leak := synced(image)
	h, err := ReadHeader(leak)
	must(t, err)
	poke16(t, leak, int64(peek(t, leak, h.RefTableOffset))+2*1000, 1)
	wps, data := dataOf(t, leak)
	for _, mode := range []RepairMode{RepairLeaks, RepairAll} {
		for at := 1; ; at++ {
			f, n := synced(leak.cache), 0
			f.onOp = func(op string, _, _ int64) error {
				if n++; n == at && op != "punch" {
					return errInjected
				}
				return nil
			}
			_, after, err := Repair(f, mode, nil)
			f.onOp = nil
			if err == nil {
				if after.ExitCode() != 0 {
					t.Errorf("mode %d, error in operation %d: %+v", mode, at, after)
				}
				if n < at {
					break
				}
				continue
			}
			if !errors.Is(err, errInjected) {
				t.Fatalf("mode %d, error in operation %d: %v", mode, at, err)
			}
			wantData(t, f, wps, data)
			if _, after, err := Repair(f, RepairAll, nil); err != nil || after.ExitCode() != 0 {
				t.Errorf("mode %d, after an error in operation %d: %+v, %v", mode, at, after, err)
			}
			wantData(t, f, wps, data)
		}
	}
}

func TestRepairModesHaveQEMUsNames(t *testing.T) {
	for s, want := range map[string]RepairMode{"leaks": RepairLeaks, "all": RepairAll} {
		if m, err := ParseRepairMode(s); m != want || err != nil {
			t.Errorf("%s: %v, %v", s, m, err)
		}
	}
	if _, err := ParseRepairMode("everything"); err == nil || err.Error() != `there is no repair "everything": choose leaks or all` {
		t.Error(err)
	}
}

// QEMU's opinion: but for zonedmeta, which it cannot know, a repaired image is
// sound.
func TestQEMUAgreesWithRepairedImages(t *testing.T) {
	for i, s := range repairSpecs {
		for seed := range uint64(3) {
			rnd := rand.New(rand.NewPCG(seed, 200+uint64(i)))
			f := synced(used(t, s, rnd))
			log := damage(t, f, rnd)
			path := lockFile(t)
			must(t, os.WriteFile(path, f.cache, 0o600))
			if _, after, err := Repair(openOS(t, path), RepairAll, nil); err != nil || after.ExitCode() != 0 {
				t.Errorf("seed %d of %+v: %v, %+v\n%s", seed, s, err, after, strings.Join(log, "\n"))
			}
			qemuAgrees(t, path)
		}
	}
}
