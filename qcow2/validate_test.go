package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
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

// refusals is every rule of the header, the zoned extension and zonedmeta.
func refusals(t *testing.T) []refusal {
	good := loaded(t, "v9-seed-fresh")
	const z = "zoned extension: "
	neither := func(v7, v7size, a, asize uint64) string {
		return fmt.Sprintf("zoned extension: its payload of 48 bytes fits neither layout v7 (nr_zones %d, zone_size %d) nor layout 2026a (nr_zones %d, zone_size %d): nr_zones must be the number of zones of zone_size in 805306368 bytes", v7, v7size, a, asize)
	}
	ofNeither := func(v7, a string) map[Layout]string { return map[Layout]string{LayoutV7: v7, Layout2026a: a} }
	return []refusal{
		{rule: "magic", patches: []patch{{0, uint32(0x12345678)}},
			want: "not a qcow2 image: it begins with 0x12345678, not 0x514649fb"},
		{rule: "version 2", patches: []patch{{offVersion, uint32(2)}},
			want: "version is 2, which has no feature bits and no zoned images: not a zoned image; qemu-nbd serves plain ones"},
		{rule: "version", patches: []patch{{offVersion, uint32(4)}},
			want: "version is 4: only version 3 is known"},
		{rule: "small clusters", patches: []patch{{offClusterBits, uint32(8)}},
			want: "cluster_bits is 8: it must be 9 to 21"},
		{rule: "large clusters", patches: []patch{{offClusterBits, uint32(22)}},
			want: "cluster_bits is 22: it must be 9 to 21"},
		{rule: "short header", patches: []patch{{offHeaderLength, uint32(72)}},
			want: "header_length is 72: it must be a multiple of 8 between 104 and the cluster size of 65536"},
		{rule: "odd header", patches: []patch{{offHeaderLength, uint32(107)}},
			want: "header_length is 107: it must be a multiple of 8 between 104 and the cluster size of 65536"},
		{rule: "long header", patches: []patch{{offHeaderLength, uint32(65544)}},
			want: "header_length is 65544: it must be a multiple of 8 between 104 and the cluster size of 65536"},
		{rule: "extension beyond the cluster", patches: []patch{{0x74, uint32(0x10000)}},
			want: "header extension 0x6803f857 at 112 is 65536 bytes long: only 65416 are left in the first cluster"},
		{rule: "huge extension", patches: []patch{{0x74, uint32(0xffffffff)}},
			want: "header extension 0x6803f857 at 112 is 4294967295 bytes long: only 65416 are left in the first cluster"},
		{rule: "too many extensions", patches: []patch{{offHeaderLength, uint32(0x1000)}, {0x1000, bytes.Repeat([]byte{0, 0, 0, 9, 0, 0, 0, 0}, 300)}},
			want: "the header has more than 256 extensions"},
		{rule: "two zoned extensions", patches: []patch{{sampleExt + 64, []byte(good[sampleExt : sampleExt+64])}},
			want: "header extension 0x007a6264 (zoned) at 616 is there twice"},
		{rule: "bit without extension", patches: []patch{{sampleExt, uint32(0x7a6265)}},
			want: "incompatible feature bit 5 (zoned format) is set, but the zoned extension 0x007a6264 is missing"},
		{rule: "extension without bit", patches: []patch{{offIncompatible, uint64(0)}},
			want: "the zoned extension 0x007a6264 is there, but incompatible feature bit 5 (zoned format) is not set"},
		{rule: "plain", patches: []patch{{offIncompatible, uint64(0)}, {sampleExt, uint32(0x7a6265)}},
			want: "not a zoned image: incompatible feature bit 5 is not set and there is no zoned extension; qemu-nbd serves plain images"},
		{rule: "unknown bits", patches: []patch{{offIncompatible, uint64(1<<63 | 1<<6 | incompatZoned)}, {0x79, uint8(6)}},
			want: `incompatible feature bits unknown to this program are set: 6 ("dirty bit"), 63`},
		{rule: "corrupt", patches: []patch{{offIncompatible, uint64(incompatCorrupt | incompatZoned)}},
			want: "the corrupt bit (incompatible feature bit 1) is set: some program found the image damaged; repair a copy with the program that set it"},
		{rule: "compression type without bit", patches: []patch{{offCompressionType, uint8(1)}},
			want: "compression_type is 1: without incompatible feature bit 3 it must be 0"},

		{rule: "data file", patches: []patch{{offIncompatible, uint64(incompatDataFile | incompatZoned)}},
			want: "the image uses an external data file (incompatible feature bit 2), which is not built", by: notBuilt},
		{rule: "extended L2", extend: 8, patches: []patch{{offIncompatible, uint64(incompatExtL2 | incompatZoned)}, {offL1Size, uint32(3)}},
			want: "the image uses extended L2 entries (incompatible feature bit 4), which is not built", by: notBuilt},
		{rule: "zstd", patches: []patch{{offIncompatible, uint64(incompatCompression | incompatZoned)}, {offCompressionType, uint8(1)}},
			want: "the image uses compression type 1 (incompatible feature bit 3), which is not built", by: notBuilt},
		{rule: "backing file", patches: []patch{{offBackingOffset, uint64(0x300)}, {offBackingLength, uint32(4)}},
			want: "the image uses a backing file, which is not built", by: notBuilt},
		{rule: "encryption", patches: []patch{{offCrypt, uint32(2)}},
			want: "the image uses encryption (crypt_method 2), which is not built", by: notBuilt},
		{rule: "snapshots", patches: []patch{{offNbSnapshots, uint32(3)}},
			want: "the image uses internal snapshots (nb_snapshots is 3), which is not built", by: notBuilt},
		{rule: "two of them", patches: []patch{{offCrypt, uint32(1)}, {offNbSnapshots, uint32(1)}},
			want: "the image uses encryption (crypt_method 1), internal snapshots (nb_snapshots is 1), which are not built", by: notBuilt},
		{rule: "bitmaps", patches: []patch{{offAutoclear, uint64(1)}, {sampleExt + 64, uint32(extBitmaps)}},
			want: "the image uses persistent bitmaps, which is not built", by: notBuilt},

		{rule: "L1 table of extended entries", patches: []patch{{offIncompatible, uint64(incompatExtL2 | incompatZoned)}},
			want: "l1_size is 2: for a virtual size of 805306368 bytes it must be 3 to 4194304"},
		{rule: "no size", patches: []patch{{offSize, uint64(0)}},
			want: "size is 0: it must be a multiple of 512 above 0"},
		{rule: "odd size", patches: []patch{{offSize, uint64(768<<20 + 1)}},
			want: "size is 805306369: it must be a multiple of 512 above 0"},
		{rule: "huge size", patches: []patch{{offSize, uint64(1<<64 - 512)}},
			want: "size is 18446744073709551104: with clusters of 65536 bytes its L1 table would exceed 33554432 bytes"},
		{rule: "refcount order", patches: []patch{{offRefcountOrder, uint32(7)}},
			want: "refcount_order is 7: it must be at most 6"},
		{rule: "small L1", patches: []patch{{offL1Size, uint32(1)}},
			want: "l1_size is 1: for a virtual size of 805306368 bytes it must be 2 to 4194304"},
		{rule: "large L1", patches: []patch{{offL1Size, uint32(1<<32 - 1)}},
			want: "l1_size is 4294967295: for a virtual size of 805306368 bytes it must be 2 to 4194304"},
		{rule: "L1 unaligned", patches: []patch{{offL1Offset, uint64(0x40200)}},
			want: "l1_table_offset is 0x40200: it must be a multiple of the cluster size 65536 above 0"},
		{rule: "L1 nowhere", patches: []patch{{offL1Offset, uint64(0)}},
			want: "l1_table_offset is 0x0: it must be a multiple of the cluster size 65536 above 0"},
		{rule: "L1 negative", patches: []patch{{offL1Offset, uint64(1 << 63)}},
			want: "l1_table_offset is 0x8000000000000000: it must be a multiple of the cluster size 65536 above 0"},
		{rule: "L1 beyond the file", patches: []patch{{offL1Size, uint32(3)}},
			want: "l1_table_offset is 0x40000: the 24 bytes there end beyond the file, which is 262160 bytes long"},
		{rule: "no refcount table", patches: []patch{{offRefTableClusters, uint32(0)}},
			want: "refcount_table_clusters is 0: it must be 1 to 128"},
		{rule: "large refcount table", patches: []patch{{offRefTableClusters, uint32(129)}},
			want: "refcount_table_clusters is 129: it must be 1 to 128"},
		{rule: "refcount table unaligned", patches: []patch{{offRefTableOffset, uint64(0x10008)}},
			want: "refcount_table_offset is 0x10008: it must be a multiple of the cluster size 65536 above 0"},
		{rule: "refcount table beyond the file", patches: []patch{{offRefTableOffset, uint64(0x70000)}},
			want: "refcount_table_offset is 0x70000: the 65536 bytes there end beyond the file, which is 262160 bytes long"},
		{rule: "tables overlap", patches: []patch{{offL1Offset, uint64(0x10000)}},
			want: "the L1 table at 0x10000 overlaps the refcount table at 0x10000"},

		{rule: "unknown layout", patches: []patch{{sampleExt + 4, uint32(60)}},
			want: z + "its payload is 60 bytes: layout v9 has 56, v7 and 2026a have 48, 2026b has 44"},
		{rule: "no payload", patches: []patch{{sampleExt + 4, uint32(0)}},
			want: z + "its payload is 0 bytes: layout v9 has 56, v7 and 2026a have 48, 2026b has 44"},
		{rule: "neither of 48 bytes", patches: []patch{{sampleExt + 4, uint32(48)}},
			want: neither(64<<20, 0, 0, 64<<52)},
		{rule: "both of 48 bytes", patches: []patch{{sampleExt + 4, uint32(48)}, {sampleZoned + 4, uint32(1)}, {sampleZoned + 16, uint32(768 << 20)}, {sampleZoned + 8, uint64(768<<20)<<32 | 768<<20}},
			want: z + "its payload of 48 bytes fits both layout v7 (nr_zones 805306368, zone_size 1) and layout 2026a (nr_zones 1, zone_size 3458764514625847296): only one nr_zones may be the number of zones of zone_size in 805306368 bytes"},
		{rule: "not zoned", fields: []fieldValue{{model, 0}}, want: z + "zoned is 0 (not zoned), but feature bit 5 says that the image is zoned"},
		{rule: "unknown model", fields: []fieldValue{{model, 2}}, want: z + "zoned is 2: only model 1 (host-managed) is known"},
		{rule: "reserved", fields: []fieldValue{{reserved, 0x70000}}, want: z + "reserved bytes 1 to 3 are 0x07 0x00 0x00: they must be zero"},
		{rule: "reserved, the last", fields: []fieldValue{{reserved, 1}}, want: z + "reserved bytes 1 to 3 are 0x00 0x00 0x01: they must be zero"},
		{rule: "zone size 0", fields: []fieldValue{{zoneSize, 0}}, want: z + "zone_size is 0: it must be a power of two",
			others: ofNeither(neither(12, 0, 0, 64<<52), neither(0, 12, 12, 0))},
		{rule: "zone size", fields: []fieldValue{{zoneSize, 96 << 20}, {nrZones, 8}}, want: z + "zone_size is 100663296: it must be a power of two"},
		{rule: "zone below cluster", fields: []fieldValue{{zoneSize, 32 << 10}, {nrZones, 24576}}, want: z + "zone_size is 32768: it must be a multiple of the cluster size 65536"},
		{rule: "zone size huge", fields: []fieldValue{{zoneSize, 1 << 60}, {nrZones, 1}}, want: z + "zone_size is 1152921504606846976: 1 zones of that end beyond 2^59, where a write pointer does not fit"},
		{rule: "capacity 0", fields: []fieldValue{{zoneCapacity, 0}}, want: z + "zone_capacity is 0: it must be 1 to zone_size, 67108864"},
		{rule: "capacity", fields: []fieldValue{{zoneCapacity, 64<<20 + 512}}, want: z + "zone_capacity is 67109376: it must be 1 to zone_size, 67108864"},
		{rule: "odd capacity", fields: []fieldValue{{zoneCapacity, 1<<20 + 1}}, want: z + "zone_capacity is 1048577: it must be a multiple of 512"},
		{rule: "all conventional", fields: []fieldValue{{conventional, 12}}, want: z + "conventional_zones is 12: it must be less than nr_zones, 12"},
		{rule: "more than all conventional", fields: []fieldValue{{conventional, 1<<32 - 1}}, want: z + "conventional_zones is 4294967295: it must be less than nr_zones, 12"},
		{rule: "zones", fields: []fieldValue{{nrZones, 13}}, want: z + "nr_zones is 13: 805306368 bytes in zones of 67108864 make 12",
			others: ofNeither(neither(13, 64<<20, 64<<20, 64<<52), neither(0, 13, 13, 64<<20))},
		{rule: "no zones", fields: []fieldValue{{nrZones, 0}}, want: z + "nr_zones is 0: 805306368 bytes in zones of 67108864 make 12",
			others: ofNeither(neither(0, 64<<20, 64<<20, 64<<52), neither(0, 0, 0, 64<<20))},
		{rule: "active", fields: []fieldValue{{maxActive, 13}}, want: z + "max_active_zones is 13: it must be at most nr_zones, 12"},
		{rule: "open", fields: []fieldValue{{maxOpen, 13}}, want: z + "max_open_zones is 13: it must be at most nr_zones, 12"},
		{rule: "open above active", fields: []fieldValue{{maxOpen, 9}}, want: z + "max_open_zones is 9: it must be at most max_active_zones, 8"},
		{rule: "odd append", fields: []fieldValue{{maxAppend, 1000}}, want: z + "max_append_bytes is 1000: it must be a multiple of 512"},
		{rule: "append", fields: []fieldValue{{maxAppend, 64<<20 - 512}}, want: z + "max_append_bytes is 67108352: with 512 added it must be less than zone_capacity, 67108864"},
		{rule: "zonedmeta size", fields: []fieldValue{{metaSize, 12 * 64 << 20}}, want: z + "zonedmeta_size is 805306368: 12 zones need 96"},
		{rule: "zonedmeta unaligned", fields: []fieldValue{{metaOffset, 0x30200}}, want: z + "zonedmeta_offset is 0x30200: it must be a multiple of the cluster size 65536 above 0"},
		{rule: "zonedmeta in the header", fields: []fieldValue{{metaOffset, 0}}, want: z + "zonedmeta_offset is 0x0: it must be a multiple of the cluster size 65536 above 0"},
		{rule: "zonedmeta beyond the file", fields: []fieldValue{{metaOffset, 1 << 40}}, want: z + "zonedmeta_offset is 0x10000000000: the 96 bytes there end beyond the file, which is 262160 bytes long"},
		{rule: "zonedmeta negative", fields: []fieldValue{{metaOffset, 0xffffffffffff0000}}, want: z + "zonedmeta_offset is 0xffffffffffff0000: it must be a multiple of the cluster size 65536 above 0"},
		{rule: "zonedmeta in the refcount table", fields: []fieldValue{{metaOffset, 0x10000}}, want: "zonedmeta at 0x10000 overlaps the refcount table at 0x10000"},
		{rule: "zonedmeta and the L1 table", extend: 1 << 16, fields: []fieldValue{{metaOffset, 0x40000}}, want: "zonedmeta at 0x40000 overlaps the L1 table at 0x40000"},
		{rule: "zonedmeta in the last, incomplete cluster", fields: []fieldValue{{metaOffset, 0x40000}}, want: z + "zonedmeta_offset is 0x40000: the 96 bytes there end beyond the file, which is 262160 bytes long"},
		{rule: "more zones than are supported", extend: 1 << 16,
			patches: []patch{{offSize, uint64(MaxZones+1) << 16}, {offL1Size, uint32(129)}},
			fields:  []fieldValue{{zoneSize, 1 << 16}, {zoneCapacity, 1 << 16}, {nrZones, MaxZones + 1}},
			want:    z + "nr_zones is 1048577: at most 1048576 zones are supported"},

		{rule: "pointer below its zone", by: inEntries, entries: []entryValue{{1, 63 << 20, false}},
			want: "zonedmeta of zone 1 is 0x3f00000 (little-endian): the write pointer must be 0x4000000 to 0x8000000"},
		{rule: "big-endian pointer below its zone", by: inEntries, layout: Layout2026b, entries: []entryValue{{1, 63 << 20, false}},
			want: "zonedmeta of zone 1 is 0x3f00000 (big-endian): the write pointer must be 0x4000000 to 0x8000000"},
		{rule: "pointer above its zone", by: inEntries, layout: LayoutV7, entries: []entryValue{{1, 128<<20 + 512, false}},
			want: "zonedmeta of zone 1 is 0x8000200 (little-endian): the write pointer must be 0x4000000 to 0x8000000"},
		{rule: "pointer with high bits", by: inEntries, entries: []entryValue{{1, 1<<60 | 64<<20, false}},
			want: "zonedmeta of zone 1 is 0x1000000004000000 (little-endian): the write pointer must be 0x4000000 to 0x8000000"},
		{rule: "pointer with the flag of the other form", by: inEntries, layout: Layout2026a, entries: []entryValue{{1, 1<<59 | 64<<20, false}},
			want: "zonedmeta of zone 1 is 0x800000004000000 (big-endian): the write pointer must be 0x4000000 to 0x8000000"},
		{rule: "a pointer in the other byte order", by: inEntries, patches: []patch{{sampleMeta + 16, uint64(128 << 20)}},
			want: "zonedmeta of zone 2 is 0x800000000 (little-endian): the write pointer must be 0x8000000 to 0xc000000"},
		{rule: "pointer between blocks", by: inEntries, entries: []entryValue{{0, 1000, false}},
			want: "zonedmeta of zone 0 is 0x3e8 (little-endian): the write pointer must be a multiple of 512"},
		{rule: "flag on a sequential zone", by: inEntries, entries: []entryValue{{0, 0, true}},
			want: "zonedmeta of zone 0 is 0x800000000000000 (little-endian): the conventional flag, bit 59, must not be set, as only the first 0 zones are conventional"},
		{rule: "big-endian flag on a sequential zone", by: inEntries, layout: Layout2026a, entries: []entryValue{{3, 192 << 20, true}},
			want: "zonedmeta of zone 3 is 0x800000000c000000 (big-endian): the conventional flag, bit 63, must not be set, as only the first 0 zones are conventional"},
		{rule: "conventional without flag", by: inEntries, fields: []fieldValue{{conventional, 1}},
			want: "zonedmeta of zone 0 is 0x0 (little-endian): the conventional flag, bit 59, must be set, as the first 1 zones are conventional",
			others: map[Layout]string{
				Layout2026a: "zonedmeta of zone 0 is 0x0 (big-endian): the conventional flag, bit 63, must be set, as the first 1 zones are conventional",
				Layout2026b: "zonedmeta of zone 0 is 0x0 (big-endian): the conventional flag, bit 63, must be set, as the first 1 zones are conventional"}},
		{rule: "conventional pointer", by: inEntries, fields: []fieldValue{{conventional, 1}}, entries: []entryValue{{0, 512, true}},
			want: "zonedmeta of zone 0 is 0x800000000000200 (little-endian): that of a conventional zone must be its start, 0x0",
			others: map[Layout]string{
				Layout2026a: "zonedmeta of zone 0 is 0x8000000000000200 (big-endian): that of a conventional zone must be its start, 0x0",
				Layout2026b: "zonedmeta of zone 0 is 0x8000000000000200 (big-endian): that of a conventional zone must be its start, 0x0"}},

		{rule: "L1 entry with reserved bits", by: inTables, patches: []patch{{0x40000, uint64(1<<56 | 1)}},
			want: "image is corrupt and was left as it is: zones 0 to 7: L2 table 0x0 of guest offset 0x0 (entry at 0x40000) has reserved bits set: 0x100000000000001"},
		{rule: "L1 entry unaligned", by: inTables, patches: []patch{{0x40000, uint64(flagCopied | 0x30200)}},
			want: "image is corrupt and was left as it is: zones 0 to 7: L2 table 0x30200 of guest offset 0x0 (entry at 0x40000) is not at a multiple of the cluster size"},
		{rule: "L1 entry beyond the file", by: inTables, patches: []patch{{0x40000, uint64(flagCopied | 0x50000)}},
			want: "image is corrupt and was left as it is: zones 0 to 7: L2 table 0x50000 of guest offset 0x0 (entry at 0x40000) lies beyond the end of the file at 0x50000"},
		{rule: "L1 entry to zonedmeta", by: inTables, patches: []patch{{0x40000, uint64(flagCopied | sampleMeta)}},
			want: "image is corrupt and was left as it is: zones 0 to 7: L2 table 0x30000 of guest offset 0x0 (entry at 0x40000) lies in a cluster that something else uses, too"},
		{rule: "L1 entry to the refcount table", by: inTables, patches: []patch{{0x40000, uint64(flagCopied | 0x10000)}},
			want: "image is corrupt and was left as it is: zones 0 to 7: L2 table 0x10000 of guest offset 0x0 (entry at 0x40000) lies in a cluster that something else uses, too"},
		{rule: "refcount block unaligned", by: inTables, patches: []patch{{0x10000, uint64(0x20200)}},
			want: "image is corrupt and was left as it is: refcount block 0 at 0x20200 (entry at 0x10000) is not at a multiple of the cluster size"},
		{rule: "refcount block with reserved bits", by: inTables, patches: []patch{{0x10000, uint64(0x20001)}},
			want: "image is corrupt and was left as it is: refcount block 0 at 0x20000 (entry at 0x10000) has reserved bits set: 0x1"},
		{rule: "refcount block beyond the file", by: inTables, patches: []patch{{0x10000, uint64(1 << 40)}},
			want: "image is corrupt and was left as it is: refcount block 0 at 0x10000000000 (entry at 0x10000) lies beyond the end of the file at 0x50000"},
		{rule: "refcount block in zonedmeta", by: inTables, patches: []patch{{0x10008, uint64(sampleMeta)}},
			want: "image is corrupt and was left as it is: refcount block 1 at 0x30000 (entry at 0x10008) lies in a cluster that something else uses, too"},
		{rule: "zonedmeta counted as free", by: inTables, patches: []patch{{0x20006, []byte{0, 0}}},
			want: "image is corrupt and was left as it is: the refcounts call the cluster at 0x30000 free, which is in use; run qzbd check -r all"},
		{rule: "no refcount block", by: inTables, patches: []patch{{0x10000, uint64(0)}},
			want: "image is corrupt and was left as it is: the refcounts call the cluster at 0x0 free, which is in use; run qzbd check -r all"},
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
		{"limits of all sequential zones beside conventional ones", []patch{{z + 20, uint32(1)}, {z + 28, uint32(11)}, {sampleMeta, little(1 << 59)}},
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
