package qcow2

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// Each target begins with sound input of its kind, so that "go test" alone runs
// it on that and on what testdata/fuzz has: input that found a mistake once,
// and what reaches places that little else reaches.

// file makes a sparse file of a beginning and a length.
func file(head []byte, length uint64) *sparseFile {
	f := newSparseFile()
	f.put(head, 0)
	f.size = max(f.size, int64(length>>1))
	return f
}

// heads are the beginnings of images.
func heads(f *testing.F) (list [][]byte) {
	for _, name := range []string{"v9-seed-fresh", "v7hdr-seed-fresh", "v9-extl2", "v9-lastzone-short", "synthetic-2026a-states"} {
		list = append(list, loaded(f, name)[:1024])
	}
	for _, b := range bases() {
		p := make([]byte, 1024)
		must(f, readPadded(b.f, p, 0))
		list = append(list, p)
	}
	return list
}

// FuzzHeader reads any bytes as the beginning of a file that is zeros behind.
func FuzzHeader(f *testing.F) {
	for i, head := range heads(f) {
		f.Add(head, uint64(1)<<(20+i))
	}
	f.Fuzz(func(t *testing.T, head []byte, length uint64) {
		image := file(head, length)
		h, _ := offline(t, image)
		if h == nil {
			return
		}
		if h.Zoned.NrZones > MaxZones || int64(h.L1Size)*8 > maxL1Bytes || h.Zoned.MetaSize > 8*MaxZones || len(h.UnknownExtensions) > maxExtensions {
			t.Errorf("beyond our limits: %+v", h)
		}
	})
}

// FuzzZonedExtension decodes any payload for any size of device.
func FuzzZonedExtension(f *testing.F) {
	for _, b := range bases() {
		f.Add(b.h.Size, byte(b.h.ClusterBits), b.h.Zoned.encode())
	}
	for _, name := range []string{"v7hdr-seed-fresh", "synthetic-2026a-states"} {
		head := loaded(f, name)[:1024]
		at := bytes.Index(head, []byte{0, 0x7a, 0x62, 0x64})
		n := int(binary.BigEndian.Uint32(head[at+4:]))
		f.Add(binary.BigEndian.Uint64(head[offSize:]), byte(16), []byte(head[at+8:at+8+n]))
	}
	f.Fuzz(func(t *testing.T, size uint64, clusterBits byte, payload []byte) {
		h := &Header{Size: size, ClusterBits: minClusterBits + uint32(clusterBits)%(maxClusterBits-minClusterBits+1)}
		err := h.decodeZoned(payload)
		if err == nil {
			again := *h
			if err := again.decodeZoned(h.Zoned.encode()); err != nil || again.Zoned != h.Zoned || !bytes.Equal(again.Zoned.encode(), h.Zoned.encode()) {
				t.Fatalf("what was decoded is not what was encoded: %v\n%+v\n%+v", err, again.Zoned, h.Zoned)
			}
			err = h.checkZoned()
		}
		if err != nil {
			sentence(t, err)
			return
		}
		z := &h.Zoned
		z.normalizeLimits()
		if must(t, h.checkZoned()); z.MaxOpen >= z.sequential() || z.MaxActive >= z.sequential() {
			t.Fatalf("limits that are none: %+v", z)
		}
		last := z.NrZones - 1
		if end := h.ZoneStart(last) + h.ZoneLength(last); end != size || h.ZoneCapacity(last) == 0 || h.finishedPointer(last) < h.ZoneStart(last)+h.ZoneCapacity(last) {
			t.Fatalf("the last zone of %d bytes ends at %d: %+v", size, end, z)
		}
	})
}

// FuzzZonedMeta decodes any word as a zone's entry, in every layout and form.
func FuzzZonedMeta(f *testing.F) {
	for i := range byte(12) {
		f.Add(uint32(0), uint32(0), i, i, little(0))
		f.Add(uint32(1), uint32(0), i, i/4, little(64<<20+512))
		f.Add(uint32(1), uint32(2), i, i/4, little(1<<59|64<<20))
		f.Add(uint32(1), uint32(2), i, i/4, []byte{0x80, 0, 0, 0, 4, 0, 0, 0})
		f.Add(uint32(11), uint32(0), i, i/4, little(12*64<<20))
	}
	h, err := ReadHeader(loaded(f, "v9-seed-fresh"))
	must(f, err)
	h.Zoned.ZoneCapacity = 48 << 20
	f.Fuzz(func(t *testing.T, zone, conventional uint32, layout, form byte, raw []byte) {
		if len(raw) < 8 {
			return
		}
		h := *h
		h.Zoned.Layout, h.Zoned.Form = pickOf(allLayouts, layout), pickOf(allForms, form)
		h.Zoned.Conventional = conventional % h.Zoned.NrZones
		zone %= h.Zoned.NrZones
		wp, err := h.decodeEntry(raw, zone)
		if err != nil {
			sentence(t, err)
			return
		}
		if wp < h.ZoneStart(zone) || wp > h.ZoneStart(zone)+h.ZoneCapacity(zone) || wp%sectorSize != 0 {
			t.Errorf("zone %d is at %#x", zone, wp)
		}
		var b [8]byte
		h.encodeEntry(b[:], zone, wp)
		if again, err := h.decodeEntry(b[:], zone); err != nil || again != wp {
			t.Errorf("zone %d: %#x is read back as %#x, %v", zone, wp, again, err)
		}
		h.encodeEntry(b[:], zone, h.finishedPointer(zone))
		want := h.ZoneStart(zone) + h.ZoneCapacity(zone)
		if zone < h.Zoned.Conventional {
			want = h.ZoneStart(zone)
		}
		if again, err := h.decodeEntry(b[:], zone); err != nil || again != want {
			t.Errorf("zone %d was finished and is at %#x, %v", zone, again, err)
		}
	})
}

// FuzzMetaTable puts any bytes in the place of zonedmeta.
func FuzzMetaTable(f *testing.F) {
	eachBase(func(i byte, b *baseImage) {
		p := make([]byte, b.h.Zoned.MetaSize)
		must(f, readPadded(b.f, p, b.h.Zoned.MetaOffset))
		f.Add(i, p)
	})
	f.Fuzz(func(t *testing.T, base byte, table []byte) {
		b := baseOf(base)
		g := b.f.clone()
		g.put(table[:min(len(table), int(b.h.Zoned.MetaSize))], b.h.Zoned.MetaOffset)
		useMutated(t, g, tape{0, base, 3, 3, 0, 0, 4, base + 1, 0, 5, base + 2, 0})
	})
}

// FuzzMappings puts any bytes in the place of the L1 table and of an L2 table.
func FuzzMappings(f *testing.F) {
	eachBase(func(i byte, b *baseImage) {
		l1, l2 := make([]byte, min(b.h.L1Size*8, 256)), make([]byte, 256)
		must(f, readPadded(b.f, l1, b.h.L1Offset))
		must(f, readPadded(b.f, l2, b.tables[0]))
		f.Add(i, l1, l2)
		for k, e := range []uint64{
			1 << 63, 1<<62 | 7<<54 | 4096, 1<<63 | 1<<56, 0x00fffffffffffe00 | flagCopied, ^uint64(0), flagZero,
			uint64(b.tables[0]) | flagCopied, uint64(b.h.L1Offset) | flagCopied, uint64(b.f.size) | flagCopied, 512 | flagCopied,
		} {
			if byte(k)%5 == i%5 { // seeds take time in every test run
				f.Add(i, l1, binary.BigEndian.AppendUint64(nil, e))
				f.Add(i, binary.BigEndian.AppendUint64(nil, e), l2)
			}
		}
	})
	f.Fuzz(func(t *testing.T, base byte, l1, l2 []byte) {
		b := baseOf(base)
		g := b.f.clone()
		g.put(l1[:min(len(l1), int(b.h.L1Size)*8)], b.h.L1Offset)
		g.put(l2[:min(len(l2), int(b.h.ClusterSize()))], b.tables[0])
		useMutated(t, g, tape{0, 0, 3, 3, 0, 0, 4, 1, 0, 0, 1, 9, 5, 3, 0, 6, 0, 0, 4, 2, 0, 7, 0, 0, 0, 2, 31})
	})
}

// FuzzRefcounts puts any bytes in the place of the refcount table and of a
// refcount block.
func FuzzRefcounts(f *testing.F) {
	eachBase(func(i byte, b *baseImage) {
		block := make([]byte, 256)
		must(f, readPadded(b.f, block, b.blocks[0]))
		var table []byte
		for _, off := range b.blocks {
			table = binary.BigEndian.AppendUint64(table, uint64(off))
		}
		f.Add(i, table, block)
		for k, e := range []uint64{
			0, 1, 1 << 63, ^uint64(511), uint64(b.blocks[0]) + 512, uint64(b.h.RefTableOffset), uint64(b.tables[0]), uint64(b.data[0]), uint64(b.f.size),
		} {
			if byte(k)%5 == i%5 {
				f.Add(i, binary.BigEndian.AppendUint64(nil, e), block)
				f.Add(i, binary.BigEndian.AppendUint64(bytes.Clone(table), e), block)
			}
		}
		f.Add(i, table, bytes.Repeat([]byte{0xff}, 64))
		f.Add(i, table, make([]byte, 64))
	})
	f.Fuzz(func(t *testing.T, base byte, table, block []byte) {
		b := baseOf(base)
		g := b.f.clone()
		g.put(table[:min(len(table), int(b.h.RefTableClusters)<<b.h.ClusterBits)], b.h.RefTableOffset)
		g.put(block[:min(len(block), int(b.h.ClusterSize()))], b.blocks[0])
		useMutated(t, g, tape{0, 0, 3, 0, 1, 30, 3, 0, 0, 4, 1, 0, 0, 1, 9, 6, 0, 0, 0, 2, 31})
	})
}

// FuzzRefcountWidths stores and reads refcounts of every width anywhere.
func FuzzRefcountWidths(f *testing.F) {
	for order := range byte(maxRefcountOrder + 1) {
		f.Add(order, uint16(order), uint64(1), []byte{0xa5, 0x5a})
	}
	f.Fuzz(func(t *testing.T, order byte, at uint16, v uint64, fill []byte) {
		o := uint32(order) % (maxRefcountOrder + 1)
		block := make([]byte, 512)
		copy(block, fill)
		i := int(at) % (512 * 8 >> o)
		before := bytes.Clone(block)
		if o < 6 {
			v &= 1<<(1<<o) - 1
		}
		setRefcount(block, o, i, v)
		for k := range 512 * 8 >> o {
			want := refcountAt(before, o, k)
			if k == i {
				want = v
			}
			if got := refcountAt(block, o, k); got != want {
				t.Fatalf("refcount %d of %d bits is %#x after number %d was set, want %#x", k, 1<<o, got, i, want)
			}
		}
	})
}

// FuzzChanges changes a sound image and runs what only reads on it.
func FuzzChanges(f *testing.F) {
	eachBase(func(i byte, _ *baseImage) { f.Add(i, []byte{}) })
	for kind := range byte(targets) {
		for value := kind % 2; value < 16; value += 2 {
			f.Add(kind^value, []byte{kind, value, value, kind, kind, 1, 2, 3})
		}
	}
	f.Fuzz(func(t *testing.T, base byte, changes []byte) {
		g := baseOf(base).mutate(changes)
		offline(t, g)
		lookReadOnly(t, g)
	})
}

// FuzzFeatureNames decodes any table of feature names.
func FuzzFeatureNames(f *testing.F) {
	f.Add(featureNameTable(1<<10), byte(0), uint64(0x21))
	f.Add([]byte{0, 63, '%', 's', '\n'}, byte(0), ^uint64(0))
	f.Fuzz(func(t *testing.T, table []byte, kind byte, set uint64) {
		if s := nameBits(table, kind, set); strings.ContainsAny(s, "\n\x00") || len(s) > 64*(4+4*featureEntrySize) {
			t.Errorf("%q", s)
		}
	})
}
