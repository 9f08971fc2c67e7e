package qcow2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// allLayouts and allForms are what an image may have.
var (
	allLayouts = []Layout{LayoutV9, LayoutV7, Layout2026a, Layout2026b}
	allForms   = []EntryForm{LittleEndian59, BigEndian63, BigEndian59}
)

const mib = 1 << 20

func TestEverySampleGivesItsReport(t *testing.T) {
	empties := func(n int, size uint64) (wps []uint64) {
		for i := range n {
			wps = append(wps, uint64(i)*size)
		}
		return wps
	}
	founding := Zoned{
		ZoneSize: 64 * mib, ZoneCapacity: 64 * mib, NrZones: 12,
		MaxOpen: 6, MaxActive: 8, MaxAppend: 4096, MetaSize: 96, MetaOffset: 0x30000,
	}
	in := func(z Zoned, l Layout, f EntryForm) Zoned {
		z.Layout, z.Form = l, f
		return z
	}
	states := Zoned{
		ZoneSize: 64 * mib, ZoneCapacity: 48 * mib, NrZones: 8, Conventional: 2,
		MaxOpen: 4, MaxActive: 5, MaxAppend: 64 << 10, MetaSize: 64, MetaOffset: 0x30000,
	}
	for name, c := range map[string]struct {
		zoned Zoned
		wps   []uint64
		info  []string
	}{
		"v9-seed-fresh": {in(founding, LayoutV9, LittleEndian59), empties(12, 64*mib), []string{
			"format:              qcow2, zoned (host-managed, layout v9)",
			"zones:               12: 0 conventional, 12 empty, 0 partly written, 0 full",
			"zonedmeta:           96 bytes at 0x30000, little-endian"}},
		"v7hdr-seed-fresh": {in(founding, LayoutV7, LittleEndian59), empties(12, 64*mib), []string{
			"format:              qcow2, zoned (host-managed, layout v7)",
			"zonedmeta:           96 bytes at 0x30000, little-endian"}},
		"v9-extl2": {
			in(Zoned{ZoneSize: 32 * mib, ZoneCapacity: 32 * mib, NrZones: 8, MaxAppend: 64 << 10, MetaSize: 64, MetaOffset: 0x60000}, LayoutV9, LittleEndian59),
			empties(8, 32*mib), []string{
				"zones:               8: 0 conventional, 8 empty, 0 partly written, 0 full",
				"not built:           extended L2 entries (incompatible feature bit 4): zones can be shown, but neither check nor attach"}},
		"v9-lastzone-short": {
			in(Zoned{ZoneSize: 64 * mib, ZoneCapacity: 64 * mib, NrZones: 2, MaxAppend: 64 << 10, MetaSize: 16, MetaOffset: 0x30000}, LayoutV9, LittleEndian59),
			[]uint64{0, 0x20080 * 512}, []string{
				"zones:               2: 0 conventional, 1 empty, 1 partly written, 0 full",
				"last zone size:      36M (37748736 bytes)"}},
		"synthetic-2026a-states": {in(states, Layout2026a, BigEndian63),
			[]uint64{0, 64 * mib, 128*mib + 8*512, 192*mib + 0x80*512, 256 * mib, 368 * mib, 432 * mib, 448 * mib}, []string{
				"format:              qcow2, zoned (host-managed, layout 2026a)",
				"zones:               8: 2 conventional, 2 empty, 2 partly written, 2 full",
				"zonedmeta:           64 bytes at 0x30000, big-endian, conventional flag bit 63"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := loaded(t, name)
			h, wps, err := ReadPointers(b)
			must(t, err)
			if h.Zoned != c.zoned {
				t.Errorf("got  %+v\nwant %+v", h.Zoned, c.zoned)
			}
			if !slices.Equal(wps, c.wps) {
				t.Errorf("write pointers\n%#x, want\n%#x", wps, c.wps)
			}
			info, err := ReadInfo(b)
			must(t, err)
			for _, line := range c.info {
				if !strings.Contains(info.String(), line+"\n") {
					t.Errorf("info has no line %q:\n%s", line, info)
				}
			}
			if (info.Allocated == nil) != (info.NotBuilt != nil) {
				t.Errorf("allocated %v, not built %v", info.Allocated, info.NotBuilt)
			}
		})
	}
}

// someZones is a random geometry whose entries tell their form.
func someZones(rnd *rand.Rand) *Header {
	shift := 9 + rnd.IntN(23) // up to maxTurnedZone
	n := 1 + rnd.IntN(200)
	h := &Header{Zoned: Zoned{
		Layout: allLayouts[rnd.IntN(len(allLayouts))], ZoneSize: 1 << shift,
		ZoneCapacity: 512 * (1 + rnd.Uint64N(1<<shift/512)),
	}}
	h.Size = uint64(n)<<shift - 512*rnd.Uint64N(1<<shift/512)
	h.Zoned.NrZones = uint32(n)
	h.Zoned.Conventional = uint32(rnd.IntN(n) * rnd.IntN(2))
	return h
}

// someMeta stores random pointers.
func someMeta(rnd *rand.Rand, h *Header) []byte {
	meta := make([]byte, 8*h.Zoned.NrZones)
	for i := range h.Zoned.NrZones {
		wp := h.ZoneStart(i)
		switch rnd.IntN(6) {
		case 0:
			wp += h.ZoneCapacity(i)
		case 1:
			wp = h.finishedPointer(i)
		case 2, 3, 4:
			wp += 512 * rnd.Uint64N(h.ZoneCapacity(i)/512+1)
		}
		h.encodeEntry(meta[8*i:], i, wp)
	}
	return meta
}

func TestWhateverIsWrittenInAFormIsReadInIt(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 1000 {
		h := someZones(rnd)
		if h.Zoned.NrZones == 1 && h.Zoned.Conventional == 0 {
			continue // see the next test
		}
		for _, form := range allForms {
			h.Zoned.Form = form
			meta := someMeta(rnd, h)
			again := *h
			again.detectForm(meta)
			same := again.Zoned.Form == form
			if h.Zoned.Conventional == 0 { // then the flag makes no difference
				same = again.Zoned.Form.ByteOrder() == form.ByteOrder()
			}
			if !same {
				t.Fatalf("seed %d: form %d is taken for %d: %+v\n%x", seed, form, again.Zoned.Form, h.Zoned, meta)
			}
			if err := again.checkForm(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			a, errA := decodePointers(h, meta, h.storedPointer)
			b, errB := decodePointers(&again, meta, again.storedPointer)
			if errA != nil || errB != nil || !slices.Equal(a, b) {
				t.Fatalf("seed %d: %#x, %v\n%#x, %v", seed, a, errA, b, errB)
			}
		}
	}
}

// The usual form of a layout is taken for nothing else, however large the zones
// are and however few.
func TestWhateverIsWrittenInTheUsualFormIsReadInIt(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 1000 {
		h := someZones(rnd)
		h.Zoned.Form = layouts[h.Zoned.Layout].usual
		h.Zoned.ZoneSize = 1 << (9 + rnd.IntN(40))
		h.Zoned.ZoneCapacity = h.Zoned.ZoneSize
		h.Zoned.NrZones = 1 + uint32(rnd.IntN(4))
		h.Zoned.Conventional = 0
		h.Size = uint64(h.Zoned.NrZones) * h.Zoned.ZoneSize
		meta := someMeta(rnd, h)
		again := *h
		again.detectForm(meta)
		if again.Zoned.Form != h.Zoned.Form {
			t.Fatalf("seed %d: taken for form %d: %+v\n%x", seed, again.Zoned.Form, h.Zoned, meta)
		}
	}
}

// A single zone that is empty is 0 in every form: then it is the usual one, and
// the pointer is the same. Written, it tells its form.
func TestASingleZoneTellsItsFormUnlessItIsEmpty(t *testing.T) {
	for _, l := range allLayouts {
		for _, form := range allForms {
			f := newMemFile()
			s := spec{clusterBits: 12, refOrder: 4, size: mib, zoneSize: mib, layout: l, form: form}
			build(t, f, s)
			h, wps, err := ReadPointers(f)
			must(t, err)
			if usual := layouts[l].usual; h.Zoned.Form != usual || wps[0] != 0 {
				t.Errorf("layout %s: an empty zone is read in form %d at %#x, want %d", l, h.Zoned.Form, wps[0], usual)
			}
			h.Zoned.Form = form
			var b [8]byte
			h.encodeEntry(b[:], 0, 4096)
			_, err = f.WriteAt(b[:], h.Zoned.MetaOffset)
			must(t, err)
			h, wps, err = ReadPointers(f)
			must(t, err)
			if h.Zoned.Form.ByteOrder() != form.ByteOrder() || wps[0] != 4096 {
				t.Errorf("layout %s, form %d: read in form %d at %#x", l, form, h.Zoned.Form, wps[0])
			}
		}
	}
}

func TestOfNoFormIsTheOneThatFitsMost(t *testing.T) {
	for _, form := range allForms {
		f := newMemFile()
		build(t, f, spec{clusterBits: 12, refOrder: 4, size: 8 * mib, zoneSize: mib, conventional: 2, form: form})
		h, err := ReadHeader(f)
		must(t, err)
		_, err = f.WriteAt(bytes.Repeat([]byte{0xff}, 8), h.Zoned.MetaOffset+5*8)
		must(t, err)
		want := fmt.Sprintf("zonedmeta of zone 5 is 0xffffffffffffffff (%s): the conventional flag, bit %d, must not be set, as only the first 2 zones are conventional",
			form.ByteOrder(), form.FlagBit())
		if _, _, err := ReadPointers(f); err == nil || err.Error() != want {
			t.Errorf("form %d:\ngot  %v\nwant %s", form, err, want)
		}
		if r, err := Check(f, nil); err != nil || r.Corruptions != 1 {
			t.Errorf("form %d: check %+v, %v", form, r, err)
		}
	}
}

// Two zones of 4G: a pointer that reads the same from both ends.
func TestAnUnusualByteOrderThatCouldBeMistakenIsOnlyRead(t *testing.T) {
	const zone, mirror = 4 << 30, 0x101000000
	s := spec{clusterBits: 16, refOrder: 4, size: 2 * zone, zoneSize: zone, form: BigEndian59}
	f := newMemFile()
	build(t, f, s)
	h, err := ReadHeader(f)
	must(t, err)
	ops := f.ops
	want := "zonedmeta is big-endian, where layout v9 is usually little-endian: with a zone_size of 4294967296, more than 2147483648, and no conventional zone write pointers can come to fit both, so that the image can only be read"
	if _, err := Open(f, Options{}); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if f.ops != ops+1 { // the sync of what others may have written
		t.Error("the refused image was changed")
	}
	im := open(t, f, Options{ReadOnly: true})
	must(t, im.Close())
	var b [8]byte
	h.encodeEntry(b[:], 1, mirror)
	_, err = f.WriteAt(b[:], h.Zoned.MetaOffset+8)
	must(t, err)
	if h, err = ReadHeader(f); err != nil || h.Zoned.Form != LittleEndian59 {
		t.Errorf("the pointer does not show why: %+v, %v", h, err)
	}

	// With a conventional zone nothing can be mistaken.
	s.conventional = 1
	f = newMemFile()
	build(t, f, s)
	im = open(t, f, Options{})
	must(t, im.Close())
}

// extensionOf is the zoned extension as it is in the file, with its header.
func extensionOf(f *memFile) []byte {
	i := bytes.Index(f.cache, []byte{0, 0x7a, 0x62, 0x64, 0, 0, 0})
	return bytes.Clone(f.cache[i : i+8+56])
}

func TestAnImageIsUsedAndKeptInItsLayout(t *testing.T) {
	for _, l := range allLayouts {
		for _, form := range allForms {
			for _, conventional := range []uint32{0, 2} {
				t.Run(fmt.Sprintf("%s form %d, %d conventional", l, form, conventional), func(t *testing.T) {
					useInLayout(t, spec{
						clusterBits: 12, refOrder: 4, size: 8*mib - 400<<10, zoneSize: mib, capacity: 700<<10 + 512,
						conventional: conventional, maxActive: 4, layout: l, form: form,
					})
				})
			}
		}
	}
}

func useInLayout(t *testing.T, s spec) {
	f := newMemFile()
	build(t, f, s)
	ext := extensionOf(f)
	form := s.form
	if s.conventional == 0 && form != LittleEndian59 { // the flag makes no difference
		form = BigEndian63
	}
	kept := func(want map[uint32]uint64) {
		t.Helper()
		h, wps := stored(t, f)
		if h.Zoned.Layout != s.layout || h.Zoned.Form.ByteOrder() != form.ByteOrder() || s.conventional != 0 && h.Zoned.Form != s.form {
			t.Fatalf("the image has become layout %s, form %d", h.Zoned.Layout, h.Zoned.Form)
		}
		if !bytes.Equal(extensionOf(f), ext) {
			t.Fatal("the extension was rewritten")
		}
		for z, wp := range wps {
			if w, ok := want[uint32(z)]; !ok && wp != h.ZoneStart(uint32(z)) || ok && wp != w {
				t.Errorf("zone %d is stored as %#x", z, wp)
			}
		}
	}
	im := open(t, f, Options{})
	h := im.Header()
	at := func(zone uint32, n uint64) uint64 { return h.ZoneStart(zone) + n }
	const last = 7 // short: its length and capacity are what is left
	grow(t, im, 3, 100<<10, 16<<10)
	grow(t, im, 4, 700<<10+512, 64<<10)
	grow(t, im, 5, 512, 512)
	grow(t, im, last, 5<<10, 5<<10)
	if s.conventional != 0 {
		must(t, put(im, fill(4096, 9), 4096))
	}
	must(t, im.Round())
	kept(map[uint32]uint64{3: at(3, 100<<10), 4: at(4, 700<<10+512), 5: at(5, 512), last: at(last, 5<<10)})
	must(t, im.Finish(5, at(5, 512)))
	must(t, im.Finish(last, at(last, 5<<10)))
	must(t, im.Reset([]uint32{3}))
	must(t, im.Close())

	// What a finish stores is the layout's own: the end of the zone, or of what
	// can be written.
	finished := map[uint32]uint64{4: at(4, 700<<10+512), 5: at(6, 0), last: at(last+1, 0)}
	if s.layout == Layout2026a || s.layout == Layout2026b {
		finished[5], finished[last] = at(5, 700<<10+512), h.Size
	}
	kept(finished)
	wantClean(t, f)

	im = open(t, f, Options{})
	for z, full := range map[uint32]uint64{3: at(3, 0), 4: at(4, 700<<10+512), 5: at(5, 700<<10+512), last: h.Size} {
		if wp := im.Pointer(z); wp != full {
			t.Errorf("zone %d is at %#x after the reopen, want %#x", z, wp, full)
		}
	}
	if p, err := read(im, 1024, at(5, 0)); err != nil || !bytes.Equal(p, append(fill(512, 6), make([]byte, 512)...)) {
		t.Errorf("other data in zone 5: %v", err)
	}
	if s.conventional != 0 {
		if p, err := read(im, 4096, 4096); err != nil || !bytes.Equal(p, fill(4096, 9)) {
			t.Errorf("other data in zone 0: %v", err)
		}
	}
	grow(t, im, 6, 64<<10, 64<<10) // in the sector of the finished ones
	must(t, im.Round())
	im.Abandon()
	f = f.cut(nil)
	finished[6] = at(6, 64<<10)
	kept(finished)
	im = open(t, f, Options{})
	must(t, im.Reset([]uint32{2, 3, 4, 5, 6, last}))
	must(t, im.Close())
	kept(nil)
	wantClean(t, f)
}
