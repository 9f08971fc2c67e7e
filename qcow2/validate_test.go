package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

// bytesFile is an image in memory that nobody writes to.
type bytesFile []byte

var errReadOnly = errors.New("nobody writes to this file")

func (b bytesFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
func (b bytesFile) WriteAt([]byte, int64) (int, error) { return 0, errReadOnly }
func (b bytesFile) WriteDurable([]byte, int64) error   { return errReadOnly }
func (b bytesFile) Sync() error                        { return errReadOnly }
func (b bytesFile) Truncate(int64) error               { return errReadOnly }
func (b bytesFile) Size() (int64, error)               { return int64(len(b)), nil }
func (b bytesFile) Punch(int64, int64) error           { return errReadOnly }
func (b bytesFile) Close() error                       { return nil }

// loaded returns a sample image in memory.
func loaded(t testing.TB, name string) bytesFile {
	t.Helper()
	b, err := os.ReadFile(sample(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// patch is a change of an image: big-endian fields by their width.
type patch struct {
	at int
	to any // uint8, uint32, uint64, or []byte
}

func (b bytesFile) with(patches ...patch) bytesFile {
	b = slices.Clone(b)
	for _, p := range patches {
		switch v := p.to.(type) {
		case uint8:
			b[p.at] = v
		case uint32:
			binary.BigEndian.PutUint32(b[p.at:], v)
		case uint64:
			binary.BigEndian.PutUint64(b[p.at:], v)
		case []byte:
			copy(b[p.at:], v)
		default:
			panic("no such width")
		}
	}
	return b
}

// little is a value as it stands in zonedmeta of layout v9.
func little(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// Where the sample images have the zoned extension, and in it the payload.
const (
	sampleExt   = 0x228
	sampleZoned = sampleExt + 8
	sampleMeta  = 0x30000
)

func TestEveryRuleOfTheHeaderHasItsSentence(t *testing.T) {
	good := loaded(t, "v9-seed-fresh")
	if _, _, err := ReadPointers(good); err != nil {
		t.Fatal(err)
	}
	z := sampleZoned
	for _, c := range []struct {
		rule    string
		patches []patch
		want    string
	}{
		{"magic", []patch{{0, uint32(0x12345678)}}, "not a qcow2 image: it begins with 0x12345678, not 0x514649fb"},
		{"version 2", []patch{{offVersion, uint32(2)}}, "version is 2, which has no feature bits and no zoned images: not a zoned image; qemu-nbd serves plain ones"},
		{"version", []patch{{offVersion, uint32(4)}}, "version is 4: only version 3 is known"},
		{"small clusters", []patch{{offClusterBits, uint32(8)}}, "cluster_bits is 8: it must be 9 to 21"},
		{"large clusters", []patch{{offClusterBits, uint32(22)}}, "cluster_bits is 22: it must be 9 to 21"},
		{"short header", []patch{{offHeaderLength, uint32(72)}}, "header_length is 72: it must be a multiple of 8 between 104 and the cluster size of 65536"},
		{"odd header", []patch{{offHeaderLength, uint32(107)}}, "header_length is 107: it must be a multiple of 8 between 104 and the cluster size of 65536"},
		{"long header", []patch{{offHeaderLength, uint32(65544)}}, "header_length is 65544: it must be a multiple of 8 between 104 and the cluster size of 65536"},
		{"extension beyond the cluster", []patch{{0x74, uint32(0x10000)}}, "header extension 0x6803f857 at 112 is 65536 bytes long: only 65416 are left in the first cluster"},
		{"huge extension", []patch{{0x74, uint32(0xffffffff)}}, "header extension 0x6803f857 at 112 is 4294967295 bytes long: only 65416 are left in the first cluster"},
		{"too many extensions", []patch{{offHeaderLength, uint32(0x1000)}, {0x1000, bytes.Repeat([]byte{0, 0, 0, 9, 0, 0, 0, 0}, 300)}}, "the header has more than 256 extensions"},
		{"two zoned extensions", []patch{{sampleExt + 64, []byte(good[sampleExt : sampleExt+64])}}, "header extension 0x007a6264 (zoned) at 616 is there twice"},

		{"bit without extension", []patch{{sampleExt, uint32(0x7a6265)}}, "incompatible feature bit 5 (zoned format) is set, but the zoned extension 0x007a6264 is missing"},
		{"extension without bit", []patch{{offIncompatible, uint64(0)}}, "the zoned extension 0x007a6264 is there, but incompatible feature bit 5 (zoned format) is not set"},
		{"plain", []patch{{offIncompatible, uint64(0)}, {sampleExt, uint32(0x7a6265)}}, "not a zoned image: incompatible feature bit 5 is not set and there is no zoned extension; qemu-nbd serves plain images"},
		{"unknown bits", []patch{{offIncompatible, uint64(1<<63 | 1<<6 | incompatZoned)}, {0x79, uint8(6)}}, `incompatible feature bits unknown to this program are set: 6 ("dirty bit"), 63`},
		{"corrupt", []patch{{offIncompatible, uint64(incompatCorrupt | incompatZoned)}}, "the corrupt bit (incompatible feature bit 1) is set: some program found the image damaged; repair a copy with the program that set it"},
		{"data file", []patch{{offIncompatible, uint64(incompatDataFile | incompatZoned)}}, "the image uses an external data file (incompatible feature bit 2), which is not built"},
		{"extended L2", []patch{{offIncompatible, uint64(incompatExtL2 | incompatZoned)}}, "the image uses extended L2 entries (incompatible feature bit 4), which is not built"},
		{"zstd", []patch{{offIncompatible, uint64(incompatCompression | incompatZoned)}, {offCompressionType, uint8(1)}}, "the image uses compression type 1 (incompatible feature bit 3), which is not built"},
		{"compression type without bit", []patch{{offCompressionType, uint8(1)}}, "compression_type is 1: without incompatible feature bit 3 it must be 0"},
		{"backing file", []patch{{offBackingOffset, uint64(0x300)}, {offBackingLength, uint32(4)}}, "the image uses a backing file, which is not built"},
		{"encryption", []patch{{offCrypt, uint32(2)}}, "the image uses encryption (crypt_method 2), which is not built"},
		{"snapshots", []patch{{offNbSnapshots, uint32(3)}}, "the image uses internal snapshots (nb_snapshots is 3), which is not built"},
		{"bitmaps", []patch{{offAutoclear, uint64(1)}, {sampleExt + 64, uint32(extBitmaps)}}, "the image uses persistent bitmaps, which is not built"},

		{"no size", []patch{{offSize, uint64(0)}}, "size is 0: it must be a multiple of 512 above 0"},
		{"odd size", []patch{{offSize, uint64(768<<20 + 1)}}, "size is 805306369: it must be a multiple of 512 above 0"},
		{"huge size", []patch{{offSize, uint64(1<<64 - 512)}}, "size is 18446744073709551104: with clusters of 65536 bytes its L1 table would exceed 33554432 bytes"},
		{"refcount order", []patch{{offRefcountOrder, uint32(7)}}, "refcount_order is 7: it must be at most 6"},
		{"small L1", []patch{{offL1Size, uint32(1)}}, "l1_size is 1: for a virtual size of 805306368 bytes it must be 2 to 4194304"},
		{"large L1", []patch{{offL1Size, uint32(1<<32 - 1)}}, "l1_size is 4294967295: for a virtual size of 805306368 bytes it must be 2 to 4194304"},
		{"L1 unaligned", []patch{{offL1Offset, uint64(0x40200)}}, "l1_table_offset is 0x40200: it must be a multiple of the cluster size 65536 above 0"},
		{"L1 nowhere", []patch{{offL1Offset, uint64(0)}}, "l1_table_offset is 0x0: it must be a multiple of the cluster size 65536 above 0"},
		{"L1 negative", []patch{{offL1Offset, uint64(1 << 63)}}, "l1_table_offset is 0x8000000000000000: it must be a multiple of the cluster size 65536 above 0"},
		{"L1 beyond the file", []patch{{offL1Size, uint32(3)}}, "l1_table_offset is 0x40000: the 24 bytes there end beyond the file, which is 262160 bytes long"},
		{"no refcount table", []patch{{offRefTableClusters, uint32(0)}}, "refcount_table_clusters is 0: it must be 1 to 128"},
		{"large refcount table", []patch{{offRefTableClusters, uint32(129)}}, "refcount_table_clusters is 129: it must be 1 to 128"},
		{"refcount table unaligned", []patch{{offRefTableOffset, uint64(0x10008)}}, "refcount_table_offset is 0x10008: it must be a multiple of the cluster size 65536 above 0"},
		{"refcount table beyond the file", []patch{{offRefTableOffset, uint64(0x70000)}}, "refcount_table_offset is 0x70000: the 65536 bytes there end beyond the file, which is 262160 bytes long"},
		{"tables overlap", []patch{{offL1Offset, uint64(0x10000)}}, "the L1 table at 0x10000 overlaps the refcount table at 0x10000"},

		{"unknown layout", []patch{{sampleExt + 4, uint32(60)}}, "zoned extension: its payload is 60 bytes: layout v9 has 56, v7 and 2026a have 48, 2026b has 44"},
		{"layout 2026b", []patch{{sampleExt + 4, uint32(44)}}, "zoned extension: it has layout 2026b, which is not built yet: only v9 is"},
		{"neither of 48 bytes", []patch{{sampleExt + 4, uint32(48)}}, "zoned extension: its payload of 48 bytes fits neither layout v7 nor layout 2026a: nr_zones is wrong in both"},
		{"both of 48 bytes", []patch{{sampleExt + 4, uint32(48)}, {z + 4, uint32(1)}, {z + 16, uint32(768 << 20)}, {z + 8, uint64(768<<20)<<32 | 768<<20}},
			"zoned extension: its payload of 48 bytes fits both layout v7 and layout 2026a"},
		{"not zoned", []patch{{z, uint8(0)}}, "zoned extension: zoned is 0 (not zoned), but feature bit 5 says that the image is zoned"},
		{"unknown model", []patch{{z, uint8(2)}}, "zoned extension: zoned is 2: only model 1 (host-managed) is known"},
		{"reserved", []patch{{z + 2, uint8(7)}}, "zoned extension: reserved bytes 1 to 3 are 0x00 0x07 0x00: they must be zero"},
		{"zone size 0", []patch{{z + 4, uint64(0)}}, "zoned extension: zone_size is 0: it must be a power of two"},
		{"zone size", []patch{{z + 4, uint64(96 << 20)}}, "zoned extension: zone_size is 100663296: it must be a power of two"},
		{"zone below cluster", []patch{{z + 4, uint64(32 << 10)}}, "zoned extension: zone_size is 32768: it must be a multiple of the cluster size 65536"},
		{"zone size huge", []patch{{z + 4, uint64(1 << 60)}, {z + 24, uint32(1)}}, "zoned extension: zone_size is 1152921504606846976: 1 zones of that end beyond 2^59, where a write pointer does not fit"},
		{"capacity 0", []patch{{z + 12, uint64(0)}}, "zoned extension: zone_capacity is 0: it must be 1 to zone_size, 67108864"},
		{"capacity", []patch{{z + 12, uint64(64<<20 + 512)}}, "zoned extension: zone_capacity is 67109376: it must be 1 to zone_size, 67108864"},
		{"odd capacity", []patch{{z + 12, uint64(1<<20 + 1)}}, "zoned extension: zone_capacity is 1048577: it must be a multiple of 512"},
		{"all conventional", []patch{{z + 20, uint32(12)}}, "zoned extension: conventional_zones is 12: it must be less than nr_zones, 12"},
		{"zones", []patch{{z + 24, uint32(13)}}, "zoned extension: nr_zones is 13: 805306368 bytes in zones of 67108864 make 12"},
		{"active", []patch{{z + 28, uint32(13)}}, "zoned extension: max_active_zones is 13: it must be at most nr_zones, 12"},
		{"open", []patch{{z + 32, uint32(13)}}, "zoned extension: max_open_zones is 13: it must be at most nr_zones, 12"},
		{"open above active", []patch{{z + 32, uint32(9)}}, "zoned extension: max_open_zones is 9: it must be at most max_active_zones, 8"},
		{"odd append", []patch{{z + 36, uint32(1000)}}, "zoned extension: max_append_bytes is 1000: it must be a multiple of 512"},
		{"append", []patch{{z + 36, uint32(64<<20 - 512)}}, "zoned extension: max_append_bytes is 67108352: with 512 added it must be less than zone_capacity, 67108864"},
		{"zonedmeta size", []patch{{z + 40, uint64(12 * 64 << 20)}}, "zoned extension: zonedmeta_size is 805306368: 12 zones need 96"},
		{"zonedmeta unaligned", []patch{{z + 48, uint64(0x30200)}}, "zoned extension: zonedmeta_offset is 0x30200: it must be a multiple of the cluster size 65536 above 0"},
		{"zonedmeta in the header", []patch{{z + 48, uint64(0)}}, "zoned extension: zonedmeta_offset is 0x0: it must be a multiple of the cluster size 65536 above 0"},
		{"zonedmeta beyond the file", []patch{{z + 48, uint64(1 << 40)}}, "zoned extension: zonedmeta_offset is 0x10000000000: the 96 bytes there end beyond the file, which is 262160 bytes long"},
		{"zonedmeta negative", []patch{{z + 48, uint64(0xffffffffffff0000)}}, "zoned extension: zonedmeta_offset is 0xffffffffffff0000: it must be a multiple of the cluster size 65536 above 0"},
		{"zonedmeta in the refcount table", []patch{{z + 48, uint64(0x10000)}}, "zonedmeta at 0x10000 overlaps the refcount table at 0x10000"},

		{"pointer below its zone", []patch{{sampleMeta + 8, little(63 << 20)}}, "zonedmeta of zone 1 is 0x3f00000: the write pointer must be 0x4000000 to 0x8000000"},
		{"pointer above its zone", []patch{{sampleMeta + 8, little(128<<20 + 512)}}, "zonedmeta of zone 1 is 0x8000200: the write pointer must be 0x4000000 to 0x8000000"},
		{"pointer with high bits", []patch{{sampleMeta + 8, little(1<<60 | 64<<20)}}, "zonedmeta of zone 1 is 0x1000000004000000: the write pointer must be 0x4000000 to 0x8000000"},
		{"pointer between blocks", []patch{{sampleMeta, little(1000)}}, "zonedmeta of zone 0 is 0x3e8: the write pointer must be a multiple of 512"},
		{"flag on a sequential zone", []patch{{sampleMeta, little(v9Conventional)}}, "zonedmeta of zone 0 is 0x0 with the conventional flag: only the first 0 zones are conventional"},
		{"conventional without flag", []patch{{z + 20, uint32(1)}}, "zonedmeta of zone 0 is 0x0 without the conventional flag: the first 1 zones are conventional"},
		{"conventional pointer", []patch{{z + 20, uint32(1)}, {sampleMeta, little(v9Conventional | 512)}}, "zonedmeta of zone 0 is 0x200: that of a conventional zone must be its start, 0x0"},
	} {
		_, _, err := ReadPointers(good.with(c.patches...))
		if err == nil || err.Error() != c.want {
			t.Errorf("%s:\ngot  %v\nwant %s", c.rule, err, c.want)
		}
		if errors.Is(err, ErrNotZoned) != strings.Contains(c.want, "not a zoned image") {
			t.Errorf("%s: ErrNotZoned is %v", c.rule, errors.Is(err, ErrNotZoned))
		}
	}
}

func TestMoreZonesThanCanBeServedAreRefused(t *testing.T) {
	b := loaded(t, "v9-seed-fresh").with(
		patch{offSize, uint64(MaxZones+1) << 16}, patch{offL1Size, uint32(129)},
		patch{sampleZoned + 4, uint64(1 << 16)}, patch{sampleZoned + 12, uint64(1 << 16)},
		patch{sampleZoned + 24, uint32(MaxZones + 1)}, patch{sampleZoned + 40, uint64(MaxZones+1) * 8})
	b = append(b, make([]byte, 1<<16)...)
	_, err := ReadHeader(b)
	if err == nil || err.Error() != "zoned extension: nr_zones is 1048577: at most 1048576 zones are supported" {
		t.Error(err)
	}
}

func TestLegalOdditiesAreRead(t *testing.T) {
	good := loaded(t, "v9-seed-fresh")
	z := sampleZoned
	for _, c := range []struct {
		what    string
		patches []patch
		ok      func(h *Header, wps []uint64) bool
	}{
		{"limits of all sequential zones are none", []patch{{z + 28, uint32(12)}, {z + 32, uint32(12)}},
			func(h *Header, _ []uint64) bool { return h.Zoned.MaxActive == 0 && h.Zoned.MaxOpen == 0 }},
		{"active without limit, open with one", []patch{{z + 28, uint32(12)}, {z + 32, uint32(9)}},
			func(h *Header, _ []uint64) bool { return h.Zoned.MaxActive == 0 && h.Zoned.MaxOpen == 9 }},
		{"limits of all sequential zones beside conventional ones", []patch{{z + 20, uint32(1)}, {z + 28, uint32(11)}, {sampleMeta, little(v9Conventional)}},
			func(h *Header, wps []uint64) bool {
				return h.Zoned.MaxActive == 0 && h.Zoned.MaxOpen == 6 && wps[0] == 0
			}},
		{"no append limit", []patch{{z + 36, uint32(0)}}, func(h *Header, _ []uint64) bool { return h.Zoned.MaxAppend == 0 }},
		{"finished by the series", []patch{{z + 12, uint64(48 << 20)}, {sampleMeta + 8, little(128 << 20)}},
			func(_ *Header, wps []uint64) bool { return wps[1] == 112<<20 }},
		{"full by writing", []patch{{z + 12, uint64(48 << 20)}, {sampleMeta + 8, little(112 << 20)}},
			func(_ *Header, wps []uint64) bool { return wps[1] == 112<<20 }},
		{"an inconsistent bitmap extension is kept", []patch{{sampleExt + 64, uint32(extBitmaps)}},
			func(h *Header, _ []uint64) bool {
				return len(h.UnknownExtensions) == 1 && h.UnknownExtensions[0].Type == extBitmaps
			}},
		{"dirty", []patch{{offIncompatible, uint64(incompatDirty | incompatZoned)}}, func(h *Header, _ []uint64) bool { return h.Dirty() }},
		{"header of 104 bytes", []patch{{offHeaderLength, uint32(104)}, {104, []byte(good[112:0x300])}},
			func(h *Header, _ []uint64) bool { return h.Zoned.NrZones == 12 }},
	} {
		h, wps, err := ReadPointers(good.with(c.patches...))
		if err != nil || !c.ok(h, wps) {
			t.Errorf("%s: %+v, %#x, %v", c.what, h, wps, err)
		}
	}
}

func TestShortFilesAreRefused(t *testing.T) {
	good := loaded(t, "v9-seed-fresh")
	for _, n := range []int{0, 1, 3, 4, 72, 104, 112, 200, 512, 0x228, 0x10000, 0x30000, len(good) - 1} {
		if _, _, err := ReadPointers(good[:n]); err == nil {
			t.Errorf("the first %d bytes of an image are taken for one", n)
		}
	}
}

func FuzzHeader(f *testing.F) {
	for _, name := range []string{"v9-seed-fresh", "v7hdr-seed-fresh", "v9-extl2", "v9-lastzone-short", "synthetic-2026a-states"} {
		f.Add([]byte(loaded(f, name)[:1024]))
	}
	var small Header
	o := CreateOptions{Size: 1 << 20, ClusterSize: 512, ZoneSize: 64 << 10}
	p, err := planImage(o.withDefaults())
	if err != nil {
		f.Fatal(err)
	}
	small = p.header
	b, err := small.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, head []byte) {
		// Behind the header the file is zeros: enough for tables anywhere near.
		image := make(bytesFile, 1<<20)
		copy(image, head)
		h, err := ReadHeader(image)
		if err != nil {
			if err.Error() == "" || strings.Contains(err.Error(), "\n") {
				t.Errorf("not one sentence: %q", err)
			}
			return
		}
		if h.Zoned.NrZones > MaxZones || int64(h.L1Size)*8 > maxL1Bytes || h.Zoned.MetaSize > 8*MaxZones {
			t.Errorf("beyond our limits: %+v", h)
		}
		if enc, err := h.encode(); err == nil {
			copy(image, make([]byte, h.ClusterSize()))
			copy(image, enc)
			again, err := ReadHeader(image)
			if err != nil || again.Zoned != h.Zoned || again.Size != h.Size {
				t.Errorf("what was read cannot be written and read again: %v\n%+v\n%+v", err, h, again)
			}
		}
		// Nothing of these may panic or run away either.
		_, _, _ = ReadPointers(image)
		_, _ = Check(image, nil)
		_, _ = ReadInfo(image)
	})
}

func FuzzZonedMeta(f *testing.F) {
	f.Add(uint32(0), uint32(0), little(0))
	f.Add(uint32(1), uint32(0), little(64<<20+512))
	f.Add(uint32(1), uint32(2), little(v9Conventional|64<<20))
	f.Add(uint32(11), uint32(0), little(12*64<<20))
	h, err := ReadHeader(loaded(f, "v9-seed-fresh"))
	if err != nil {
		f.Fatal(err)
	}
	h.Zoned.ZoneCapacity = 48 << 20
	f.Fuzz(func(t *testing.T, zone, conventional uint32, raw []byte) {
		if len(raw) < 8 {
			return
		}
		h := *h
		h.Zoned.Conventional = conventional % h.Zoned.NrZones
		zone %= h.Zoned.NrZones
		wp, err := h.decodeEntry(raw, zone)
		if err != nil {
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
	})
}
