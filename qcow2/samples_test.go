package qcow2

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sample returns an image from testdata as a file of its own.
func sample(t testing.TB, name string) string {
	t.Helper()
	z, err := os.Open(filepath.Join("testdata", name+".qcow2.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	r, err := gzip.NewReader(z)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name+".qcow2")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// openOS opens a file for the length of the test.
func openOS(t testing.TB, path string) *OSFile {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return NewOSFile(f)
}

func TestSeedSampleHasTheSeedsGeometry(t *testing.T) {
	f := openOS(t, sample(t, "v9-seed-fresh"))
	h, wps, err := ReadPointers(f)
	if err != nil {
		t.Fatal(err)
	}
	want := Zoned{
		Layout: LayoutV9, Form: LittleEndian59, ZoneSize: 64 << 20, ZoneCapacity: 64 << 20, NrZones: 12,
		MaxActive: 8, MaxOpen: 6, MaxAppend: 4096, MetaSize: 96, MetaOffset: 0x30000,
	}
	if h.Zoned != want {
		t.Errorf("got %+v\nwant %+v", h.Zoned, want)
	}
	if h.Size != 768<<20 || h.ClusterSize() != 64<<10 || h.L1Size != 2 || h.L1Offset != 0x40000 ||
		h.RefTableOffset != 0x10000 || h.RefTableClusters != 1 || h.RefcountOrder != 4 || h.Dirty() {
		t.Errorf("got %+v", h)
	}
	for i, wp := range wps {
		if wp != uint64(i)*64<<20 {
			t.Errorf("zone %d is at %#x", i, wp)
		}
	}
}

func TestShortLastZoneIsReadOffline(t *testing.T) {
	f := openOS(t, sample(t, "v9-lastzone-short"))
	h, wps, err := ReadPointers(f)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := h.ZoneLength(1), uint64(36<<20); got != want {
		t.Errorf("zone 1 is %d long, want %d", got, want)
	}
	if got := h.ZoneCapacity(1); got != 36<<20 {
		t.Errorf("zone 1 has a capacity of %d", got)
	}
	if len(wps) != 2 || wps[0] != 0 || wps[1] != 0x20080*512 {
		t.Errorf("write pointers %#x", wps)
	}
}

func TestEncodeReadsBack(t *testing.T) {
	f := openOS(t, sample(t, "v9-seed-fresh"))
	h, err := ReadHeader(f)
	if err != nil {
		t.Fatal(err)
	}
	h.UnknownExtensions = []Extension{{0x12345678, []byte("kept as found")}}
	b, err := h.encode()
	if err != nil {
		t.Fatal(err)
	}
	if i := bytes.Index(b, []byte{0, 0x7a, 0x62, 0x64}); i != 112 {
		t.Errorf("the zoned extension is at %d, want it first, at 112", i)
	}
	if !strings.Contains(string(b), "zoned format") {
		t.Error("the feature name table does not name the zoned format")
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	got, err := ReadHeader(f)
	if err != nil {
		t.Fatal(err)
	}
	if got.Zoned != h.Zoned || len(got.UnknownExtensions) != 1 || string(got.UnknownExtensions[0].Data) != "kept as found" {
		t.Errorf("got %+v\nwant %+v", got, h)
	}
}

func TestHeaderSectorKeepsWhatItDoesNotKnow(t *testing.T) {
	path := sample(t, "v9-seed-fresh")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f := openOS(t, path)
	h, err := ReadHeader(f)
	if err != nil {
		t.Fatal(err)
	}
	h.Incompatible |= incompatDirty
	h.RefTableOffset, h.RefTableClusters = 0x70000, 2
	after := bytes.Clone(before)
	h.patch(after[:sectorSize])
	want := bytes.Clone(before)
	want[offIncompatible+7] |= incompatDirty
	copy(want[offRefTableOffset:], []byte{0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 2})
	if !bytes.Equal(after, want) {
		t.Error("more than the patched fields changed")
	}
}

func TestRefcountsOfEveryWidth(t *testing.T) {
	for order := range uint32(maxRefcountOrder + 1) {
		block := make([]byte, 512)
		n := 512 * 8 >> order
		limit := uint64(1)<<(1<<order) - 1 // 0 - 1 for 64 bits
		for i := range n {
			setRefcount(block, order, i, uint64(i)*0x9e3779b97f4a7c15&limit)
		}
		for i := range n {
			if got, want := refcountAt(block, order, i), uint64(i)*0x9e3779b97f4a7c15&limit; got != want {
				t.Fatalf("order %d: refcount %d is %#x, want %#x", order, i, got, want)
			}
		}
	}
	// The specification's order: below a byte, the lowest bits come first.
	b := make([]byte, 512)
	setRefcount(b, 0, 1, 1)
	setRefcount(b, 4, 1, 0x0102)
	if b[0] != 2 || b[2] != 1 || b[3] != 2 {
		t.Errorf("% x", b[:4])
	}
}

func TestWalkFindsEveryReference(t *testing.T) {
	f := openOS(t, sample(t, "v9-lastzone-short"))
	h, err := ReadHeader(f)
	if err != nil {
		t.Fatal(err)
	}
	type seen struct {
		kind   RefKind
		off, n int64
		guest  uint64
	}
	var got []seen
	err = walk(f, h, true, func(r *ref) error {
		got = append(got, seen{r.kind, r.off, r.n, r.guest})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const c = 0x10000
	want := []seen{
		{RefHeader, 0, c, 0}, {RefRefTable, 1 * c, c, 0}, {RefL1, 4 * c, c, 0}, {RefZonedMeta, 3 * c, c, 0},
		{RefRefBlock, 2 * c, c, 0}, {RefL2, 5 * c, c, 0}, {RefData, 6 * c, c, 64 << 20},
	}
	if len(got) != len(want) {
		t.Fatalf("got %v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%d: got %v, want %v", i, got[i], want[i])
		}
	}
}
