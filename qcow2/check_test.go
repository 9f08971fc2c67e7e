package qcow2

import (
	"encoding/binary"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What v9-lastzone-short has where, in clusters of 64K: header, refcount table,
// refcount block, zonedmeta, L1, L2, and the first cluster of zone 1 as data.
const (
	shortBlock = 0x20000
	shortL1    = 0x40000
	shortEntry = 0x52000 // the L2 entry
	shortData  = 0x60000
)

func TestCheckFindsEachKindOfDamage(t *testing.T) {
	good := loaded(t, "v9-lastzone-short")
	dirty := patch{offIncompatible, uint64(incompatDirty | incompatZoned)}
	one, none := []byte{0, 1}, []byte{0, 0}
	for _, c := range []struct {
		what              string
		patches           []patch
		corruptions, leak int64
		exit              int
		message           string // one of them
	}{
		{"nothing", nil, 0, 0, 0, ""},
		{"a leaked cluster", []patch{{shortBlock + 2*9, one}}, 0, 1, 3,
			"leak: the cluster at 0x90000 has refcount 1, but 0 references"},
		{"zonedmeta without refcount", []patch{{shortBlock + 2*3, none}}, 1, 0, 2,
			"corruption: the cluster at 0x30000 has refcount 0, but 1 references"},
		{"data without refcount", []patch{{shortBlock + 2*6, none}}, 1, 0, 2,
			"corruption: the cluster at 0x60000 has refcount 0, but 1 references"},
		{"data with two", []patch{{shortBlock + 2*6, []byte{0, 2}}}, 1, 1, 2,
			"corruption: zone 1: data cluster 0x60000 of guest offset 0x4000000 (entry at 0x52000) has the copied flag true, but a refcount of 2"},
		{"data without copied flag", []patch{{shortEntry, uint64(shortData)}}, 1, 0, 2,
			"corruption: zone 1: data cluster 0x60000 of guest offset 0x4000000 (entry at 0x52000) has the copied flag false, but a refcount of 1"},
		{"L2 table without copied flag", []patch{{shortL1, uint64(0x50000)}}, 1, 0, 2,
			"corruption: zones 0 to 1: L2 table 0x50000 of guest offset 0x0 (entry at 0x40000) has the copied flag false, but a refcount of 1"},
		{"an unmapped cluster", []patch{{shortEntry, uint64(0)}}, 0, 1, 3,
			"leak: the cluster at 0x60000 has refcount 1, but 0 references"},
		{"data in the L1 table", []patch{{shortEntry, uint64(flagCopied | shortL1)}}, 2, 1, 2,
			"corruption: zone 1: data cluster 0x40000 of guest offset 0x4000000 (entry at 0x52000) overlaps another structure in the cluster at 0x40000"},
		{"an L2 table in zonedmeta", []patch{{shortL1, uint64(flagCopied | 0x30000)}}, 2, 2, 2,
			"corruption: zones 0 to 1: L2 table 0x30000 of guest offset 0x0 (entry at 0x40000) overlaps another structure in the cluster at 0x30000"},
		{"reserved bits in L1", []patch{{shortL1, uint64(flagCopied | 0x50001)}}, 1, 2, 2,
			"corruption: zones 0 to 1: L2 table 0x50000 of guest offset 0x0 (entry at 0x40000) has reserved bits set: 0x1"},
		{"reserved bits in L2", []patch{{shortEntry, uint64(flagCopied | shortData | 2)}}, 1, 1, 2,
			"corruption: zone 1: data cluster 0x60000 of guest offset 0x4000000 (entry at 0x52000) has reserved bits set: 0x2"},
		{"data unaligned", []patch{{shortEntry, uint64(flagCopied | shortData + 512)}}, 1, 1, 2,
			"corruption: zone 1: data cluster 0x60200 of guest offset 0x4000000 (entry at 0x52000) is not at a multiple of the cluster size"},
		{"data beyond the file", []patch{{shortEntry, uint64(flagCopied | 0x70000)}}, 1, 1, 2,
			"corruption: zone 1: data cluster 0x70000 of guest offset 0x4000000 (entry at 0x52000) lies beyond the end of the file at 0x70000"},
		{"a refcount block unaligned", []patch{{0x10000, uint64(0x20200)}}, 7, 0, 2,
			"corruption: refcount block 0 at 0x20200 (entry at 0x10000) is not at a multiple of the cluster size"},
		{"a refcount block twice", []patch{{0x10008, uint64(0x20000)}}, 2, 0, 2,
			"corruption: refcount block 1 at 0x20000 (entry at 0x10008) overlaps another structure in the cluster at 0x20000"},
		{"no refcount block", []patch{{0x10000, uint64(0)}}, 6, 0, 2,
			"corruption: the cluster at 0x60000 has refcount 0, but 1 references"},
		{"one cluster in two places", []patch{{shortEntry + 8, uint64(flagCopied | shortData)}}, 2, 0, 2,
			"corruption: the cluster at 0x60000 has refcount 1, but 2 references"},
		{"one cluster in two places, as the format allows", []patch{
			{shortEntry, uint64(shortData)}, {shortEntry + 8, uint64(shortData)}, {shortBlock + 2*6, []byte{0, 2}}}, 1, 0, 2,
			"corruption: zone 1: data cluster 0x60000 of guest offset 0x4010000 (entry at 0x52008) overlaps another structure in the cluster at 0x60000"},
		{"a compressed cluster with the copied flag", []patch{{shortEntry, uint64(flagCopied | flagCompressed | shortData)}}, 2, 0, 2,
			"corruption: zone 1: compressed cluster 0x60000 of guest offset 0x4000000 (entry at 0x52000) has the copied flag, which a compressed cluster must not have"},
		{"a compressed cluster", []patch{{shortEntry, uint64(flagCompressed | shortData)}}, 1, 0, 2,
			"corruption: zone 1: the cluster of guest offset 0x4000000 (entry at 0x52000) is compressed, which is not supported"},
		{"a compressed cluster above the pointer of a dirty image", []patch{dirty, {shortEntry, uint64(flagCompressed | shortData)}, {sampleMeta + 8, little(64 << 20)}}, 0, 1, 3,
			"leak: 1 data clusters from guest offset 0x4000000 on are above the write pointer of zone 1"},
		{"a preallocated cluster of zeros", []patch{{shortEntry, uint64(flagCopied | shortData | flagZero)}}, 0, 0, 0, ""},
		{"a zone's pointer outside", []patch{{sampleMeta, little(1 << 30)}}, 1, 0, 2,
			"corruption: zonedmeta of zone 0 is 0x40000000 (little-endian): the write pointer must be 0x0 to 0x4000000"},

		// Above a write pointer a mapping is masked: no damage in a clean image.
		{"a mapping above the pointer", []patch{{sampleMeta + 8, little(64 << 20)}}, 0, 0, 0, ""},
		{"the same in a dirty image", []patch{dirty, {sampleMeta + 8, little(64 << 20)}}, 0, 1, 3,
			"leak: 1 data clusters from guest offset 0x4000000 on are above the write pointer of zone 1"},
		{"the straddling cluster in a dirty image", []patch{dirty, {sampleMeta + 8, little(64<<20 + 512)}}, 0, 0, 0,
			"note: the image was not closed; its refcounts are counted anew when it is next opened for writing, and were not checked"},
		{"wrong refcounts in a dirty image", []patch{dirty, {shortBlock, make([]byte, 64)}, {0x10008, uint64(0x123456)}}, 0, 0, 0, ""},
		{"data beyond the file below the pointer of a dirty image", []patch{dirty, {shortEntry, uint64(flagCopied | 0x70000)}}, 1, 0, 2,
			"corruption: zone 1: data cluster 0x70000 of guest offset 0x4000000 (entry at 0x52000) lies beyond the end of the file at 0x70000"},
		{"an L2 table beyond the file of a dirty image", []patch{dirty, {shortL1, uint64(flagCopied | 0x70000)}}, 1, 0, 2,
			"corruption: zones 0 to 1: L2 table 0x70000 of guest offset 0x0 (entry at 0x40000) lies beyond the end of the file at 0x70000"},
		{"data in zonedmeta below the pointer of a dirty image", []patch{dirty, {shortEntry, uint64(flagCopied | 0x30000)}}, 1, 0, 2,
			"corruption: zone 1: data cluster 0x30000 of guest offset 0x4000000 (entry at 0x52000) overlaps another structure in the cluster at 0x30000"},

		// Below a write pointer, write-zeroes leaves clusters without a place.
		{"nothing below the pointer of a partly written zone", []patch{{sampleMeta, little(1 << 20)}}, 0, 0, 0,
			"note: 16 clusters below the write pointers of 1 partly written zones, zone 0 first, have no place in the file: they read as zeros, as write-zeroes leaves them"},
		{"a hole below the pointer of a dirty image", []patch{dirty, {sampleMeta + 8, little(64<<20 + 128<<10)}}, 0, 0, 0,
			"note: 1 clusters below the write pointers of 1 partly written zones, zone 1 first, have no place in the file: they read as zeros, as write-zeroes leaves them"},
		{"nothing below the pointer of a full zone", []patch{{sampleMeta, little(64 << 20)}}, 0, 0, 0, ""},
		{"one cluster in two places of a dirty image", []patch{dirty, {shortEntry + 8, uint64(flagCopied | shortData)}}, 1, 1, 2,
			"corruption: zone 1: data cluster 0x60000 of guest offset 0x4010000 (entry at 0x52008) overlaps another structure in the cluster at 0x60000"},
		{"a mapping behind the device", []patch{dirty, {shortEntry, uint64(0)}, {0x50000 + 8*(100<<4), uint64(flagCopied | shortData)}}, 0, 1, 3,
			"leak: 1 data clusters from guest offset 0x6400000 on are above the write pointer of zone 1"},
	} {
		r, err := Check(good.with(c.patches...), nil)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if r.Corruptions != c.corruptions || r.Leaks != c.leak || r.ExitCode() != c.exit {
			t.Errorf("%s: %d corruptions, %d leaks, exit code %d; want %d, %d, %d\n%s",
				c.what, r.Corruptions, r.Leaks, r.ExitCode(), c.corruptions, c.leak, c.exit, strings.Join(r.Messages, "\n"))
		}
		if all := strings.Join(r.Messages, "\n"); c.message != "" && !strings.Contains("\n"+all+"\n", "\n"+c.message+"\n") {
			t.Errorf("%s:\ngot  %s\nwant %s", c.what, all, c.message)
		}
	}
}

// As qemu-img check has it.
func TestAnImageEndsWithTheLastClusterInUse(t *testing.T) {
	good := loaded(t, "v9-lastzone-short")
	long := append(slices.Clone(good), make([]byte, 10<<20)...)
	dirty := patch{offIncompatible, uint64(incompatDirty | incompatZoned)}
	for _, c := range []struct {
		what string
		f    bytesFile
		want int64
	}{
		{"as it is", good, 0x70000},
		{"a longer file", long, 0x70000},
		{"a leaked cluster", long.with(patch{shortBlock + 2*9, []byte{0, 1}}), 0xa0000},
		{"a cluster without refcount", long.with(patch{shortBlock + 2*6, []byte{0, 0}}), 0x70000},
		{"refcounts that mean nothing", long.with(dirty, patch{shortBlock + 2*9, []byte{0, 1}}), 0x70000},
	} {
		if r, err := Check(c.f, nil); err != nil || r.ImageEnd != c.want {
			t.Errorf("%s: %v, %v", c.what, r, err)
		}
	}
}

func TestCheckDoesNotReadATableOverAndOver(t *testing.T) {
	// An L1 table whose every entry names the same L2 table.
	f := openOS(t, lockFile(t))
	o := CreateOptions{Size: 1 << 30, ClusterSize: 512, ZoneSize: 1 << 20}
	if err := Format(f, o); err != nil {
		t.Fatal(err)
	}
	h, err := ReadHeader(f)
	if err != nil {
		t.Fatal(err)
	}
	l1 := make([]byte, 8*h.L1Size)
	for i := range h.L1Size {
		copy(l1[8*i:], []byte{0x80, 0, 0, 0, 0, 0, 2, 0})
	}
	if _, err := f.WriteAt(l1, h.L1Offset); err != nil {
		t.Fatal(err)
	}
	reads := &countingFile{OSFile: f}
	r, err := Check(reads, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.ExitCode() != 2 || len(r.Messages) != checkMessages || r.Omitted == 0 || reads.n > 10_000 {
		t.Errorf("exit code %d, %d messages, %d omitted, %d reads", r.ExitCode(), len(r.Messages), r.Omitted, reads.n)
	}
}

type countingFile struct {
	*OSFile
	n int
}

func (f *countingFile) ReadAt(p []byte, off int64) (int, error) {
	f.n++
	return f.OSFile.ReadAt(p, off)
}

// A refcount table full of blocks that say nothing must not take minutes: holes
// are not read.
func TestCheckPassesOverEmptyRefcountBlocks(t *testing.T) {
	f := openOS(t, lockFile(t))
	must(t, Format(f, CreateOptions{Size: 1 << 40, ZoneSize: 64 << 20, RefcountBits: 1}))
	h, err := ReadHeader(f)
	must(t, err)
	// The longest table, behind the image, and its blocks behind that.
	end, err := f.Size()
	must(t, err)
	n := int64(maxRefTableBytes / 8)
	table := make([]byte, maxRefTableBytes)
	first := end + maxRefTableBytes
	copy(table, binary.BigEndian.AppendUint64(nil, peek(t, f, h.RefTableOffset)))
	for i := int64(1); i < n; i++ {
		binary.BigEndian.PutUint64(table[8*i:], uint64(first+i*h.ClusterSize()))
	}
	must(t, f.Truncate(first+n*h.ClusterSize()))
	_, err = f.WriteAt(table, end)
	must(t, err)
	poke(t, f, offRefTableOffset, uint64(end))
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(maxRefTableBytes>>h.ClusterBits))
	_, err = f.WriteAt(b[:], offRefTableClusters)
	must(t, err)
	reads := &countingFile{OSFile: f}
	r, err := Check(reads, nil)
	must(t, err)
	if reads.n > 1000 || r.Corruptions < n-1 {
		t.Errorf("it took %d reads for %d blocks and found %d corruptions", reads.n, n, r.Corruptions)
	}
}

func TestCheckTellsItsProgress(t *testing.T) {
	last, total := int64(-1), int64(0)
	_, err := Check(loaded(t, "v9-lastzone-short"), func(done, of int64) {
		if done < last || done > of {
			t.Errorf("%d after %d of %d", done, last, of)
		}
		last, total = done, of
	})
	if err != nil || last != total || total == 0 {
		t.Errorf("%d of %d, %v", last, total, err)
	}
}

func TestTooManyActiveZonesAreNoted(t *testing.T) {
	b := loaded(t, "v9-seed-fresh").with(
		patch{sampleZoned + 28, uint32(2)}, patch{sampleZoned + 32, uint32(1)},
		patch{sampleMeta, little(512)}, patch{sampleMeta + 8, little(64<<20 + 512)}, patch{sampleMeta + 16, little(128<<20 + 512)})
	r, err := Check(b, nil)
	if err != nil || r.ExitCode() != 0 || len(r.Messages) != 2 || r.Unplaced != 3 ||
		!strings.HasPrefix(r.Messages[0], "note: 3 zones are neither empty nor full, max_active_zones is 2") {
		t.Errorf("%+v, %v", r, err)
	}
}

// The data of compressed clusters is packed: several share a cluster.
func TestCompressedClustersAreCountedAsQEMUCountsThem(t *testing.T) {
	qemuImg := qemu(t, "qemu-img")
	dir := t.TempDir()
	raw, packed := filepath.Join(dir, "raw"), filepath.Join(dir, "packed")
	for _, args := range [][]string{
		{"create", "-f", "raw", raw, "64M"},
		{"convert", "-c", "-f", "raw", "-O", "qcow2", raw, packed},
	} {
		if args[0] == "convert" {
			if out, err := exec.Command(qemu(t, "qemu-io"), "-f", "raw", "-c", "write -P 7 0 32M", raw).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		if out, err := exec.Command(qemuImg, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	f := openOS(t, packed)
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	// Make it a zoned image: zonedmeta goes to a cluster of its own, behind.
	at := (size + 0xffff) &^ 0xffff
	var fixed [128]byte
	if _, err := f.ReadAt(fixed[:], 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(at + 0x10000); err != nil {
		t.Fatal(err)
	}
	z := Zoned{Layout: LayoutV9, ZoneSize: 16 << 20, ZoneCapacity: 16 << 20, NrZones: 4, MetaSize: 32, MetaOffset: at}
	image := make(bytesFile, at+0x10000)
	if _, err := f.ReadAt(image, 0); err != nil {
		t.Fatal(err)
	}
	ext := appendExtension(appendExtension(nil, Extension{extZoned, z.encode()}), Extension{})
	patches := []patch{{offIncompatible, uint64(incompatZoned)}, {112, ext}}
	for i := range 4 {
		wp := uint64(i) * 16 << 20
		if i < 2 {
			wp += 16 << 20
		}
		patches = append(patches, patch{int(at) + 8*i, little(wp)})
	}
	image = image.with(patches...)
	block := int64(0x20000)
	setRefcount(image[block:], 4, int(at>>16), 1)
	r, err := Check(image, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.Corruptions != 512 || r.Leaks != 0 || r.AllocatedClusters != 512 || r.Ahead != 0 {
		t.Errorf("%d corruptions, %d leaks, %d allocated\n%s", r.Corruptions, r.Leaks, r.AllocatedClusters, strings.Join(r.Messages, "\n"))
	}
}

func TestInfoOfTheSamples(t *testing.T) {
	in, err := ReadInfo(loaded(t, "v9-lastzone-short"))
	if err != nil {
		t.Fatal(err)
	}
	if *in.Allocated != 64<<10 || in.Zoned.Empty != 1 || in.Zoned.Partly != 1 || in.Zoned.Full != 0 || in.Zoned.LastZoneSize != 36<<20 || in.Damaged != 0 {
		t.Errorf("%+v", in)
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"virtual-size":104857600`, `"layout":"v9"`, `"max-append-bytes":65536`, `"dirty-flag":false`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s is not in %s", want, b)
		}
	}
	text := in.String()
	for _, want := range []string{"host-managed, layout v9", "100M (104857600 bytes)", "2: 0 conventional, 1 empty, 1 partly written, 0 full", "last zone size:      36M", "no limit"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}

func TestSizesAreSaidAsPeopleSayThem(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 bytes", 512: "512 bytes", 1 << 16: "64K (65536 bytes)", 3 << 29: "1536M (1610612736 bytes)",
		1025: "1.0K (1025 bytes)", 1<<40 - 1: "1024.0G (1099511627775 bytes)",
	} {
		if got := sizeText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
