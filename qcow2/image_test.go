package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
)

// spec is a small image for a test. Sizes are bytes.
type spec struct {
	clusterBits  uint32
	refOrder     uint32
	size         uint64
	zoneSize     uint64
	capacity     uint64 // 0: zoneSize
	conventional uint32
	maxActive    uint32
	layout       Layout    // 0: v9
	form         EntryForm // 0: the layout's usual one
	prealloc     Preallocation
}

// build writes an empty image in the simplest way there is, but one that is
// preallocated as create does.
func build(t testing.TB, f File, s spec) {
	t.Helper()
	if s.prealloc != PreallocationOff {
		must(t, Format(f, CreateOptions{
			Size: s.size, ClusterSize: 1 << s.clusterBits, RefcountBits: 1 << s.refOrder, Preallocation: s.prealloc,
			ZoneSize: s.zoneSize, ZoneCapacity: s.capacity, Conventional: uint64(s.conventional), MaxActive: uint64(s.maxActive),
		}))
		return
	}
	if s.capacity == 0 {
		s.capacity = s.zoneSize
	}
	if s.layout == 0 {
		s.layout = LayoutV9
	}
	if s.form == 0 {
		s.form = layouts[s.layout].usual
	}
	cs := int64(1) << s.clusterBits
	nr := uint32((s.size + s.zoneSize - 1) / s.zoneSize)
	meta := (int64(nr)*8 + cs - 1) / cs
	l1 := int64(l1EntriesFor(s.size, s.clusterBits))
	h := &Header{
		ClusterBits: s.clusterBits, Size: s.size, RefcountOrder: s.refOrder,
		RefTableOffset: cs, RefTableClusters: 1,
		Incompatible: incompatZoned,
		L1Size:       uint32(l1),
		Zoned: Zoned{
			Layout: s.layout, Form: s.form, ZoneSize: s.zoneSize, ZoneCapacity: s.capacity, NrZones: nr,
			Conventional: s.conventional, MaxActive: s.maxActive, MetaSize: 8 * uint64(nr),
		},
	}
	used := int64(2)
	per := h.refBlockEntries()
	blocks := int64(1)
	for {
		h.Zoned.MetaOffset = (used + blocks) * cs
		h.L1Offset = h.Zoned.MetaOffset + meta*cs
		end := (h.L1Offset + h.roundUp(l1*8)) / cs
		if blocks*per >= end {
			used = end
			break
		}
		blocks++
	}
	buf := make([]byte, used*cs)
	head, err := h.encode()
	if err != nil {
		t.Fatal(err)
	}
	copy(buf, head)
	for b := range blocks {
		binary.BigEndian.PutUint64(buf[cs+b*8:], uint64((2+b)*cs))
		block := buf[(2+b)*cs : (3+b)*cs]
		for i := range min(per, used-b*per) {
			setRefcount(block, s.refOrder, int(i), 1)
		}
	}
	for i := range nr {
		h.encodeEntry(buf[h.Zoned.MetaOffset+int64(i)*8:], i, h.ZoneStart(i))
	}
	if _, err := f.WriteAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, f File, o Options) *Image {
	t.Helper()
	im, err := Open(f, o)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// put writes data at a device offset, as an executor would.
func put(im *Image, data []byte, off uint64) error {
	ext, ok := im.Map(nil, off, uint64(len(data)), true)
	if !ok {
		var err error
		if ext, err = im.MapSlow(nil, off, uint64(len(data)), true); err != nil {
			return err
		}
	}
	for _, e := range ext {
		if e.Off == Hole {
			return errors.New("a write was mapped to a hole")
		}
		if _, err := im.f.WriteAt(data[:e.Len], e.Off); err != nil {
			return err
		}
		data = data[e.Len:]
	}
	if len(data) != 0 {
		return errors.New("a write was not mapped completely")
	}
	return nil
}

func read(im *Image, n int, off uint64) ([]byte, error) {
	ext, ok := im.Map(nil, off, uint64(n), false)
	if !ok {
		var err error
		if ext, err = im.MapSlow(nil, off, uint64(n), false); err != nil {
			return nil, err
		}
	}
	p := make([]byte, n)
	at := p
	for _, e := range ext {
		if e.Off != Hole {
			if err := readPadded(im.f, at[:e.Len], e.Off); err != nil {
				return nil, err
			}
		}
		at = at[e.Len:]
	}
	if len(at) != 0 {
		return nil, errors.New("a read was not mapped completely")
	}
	return p, nil
}

// stored returns the write pointers as they are in the file, without flags.
func stored(t testing.TB, f File) (*Header, []uint64) {
	t.Helper()
	h, meta, err := readHeader(f)
	must(t, err)
	wps, err := decodePointers(h, meta, h.storedPointer)
	must(t, err)
	return h, wps
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// references counts what refers to each cluster.
func references(f File) (*Header, map[int64]int, error) {
	h, err := ReadHeader(f)
	if err != nil {
		return nil, nil, err
	}
	refs := map[int64]int{}
	err = walk(f, h, !h.Dirty(), func(r *ref) error {
		if r.bad != "" {
			return fmt.Errorf("%s %s", r, r.bad)
		}
		for c := r.off >> h.ClusterBits; c<<h.ClusterBits < r.off+r.n; c++ {
			if refs[c]++; refs[c] > 1 {
				return fmt.Errorf("%s: referenced twice", r)
			}
		}
		if (r.kind == RefData || r.kind == RefL2) && r.entry&flagCopied == 0 {
			return fmt.Errorf("%s: not marked as copied", r)
		}
		return nil
	})
	return h, refs, err
}

// checkRefcounts compares every refcount of a clean image with the number of
// references: it may be larger, after a cut, or not.
func checkRefcounts(f File, leaks bool) error {
	h, refs, err := references(f)
	if err != nil || h.Dirty() {
		return err
	}
	per := h.refBlockEntries()
	table := make([]byte, int64(h.RefTableClusters)<<h.ClusterBits)
	if err := readPadded(f, table, h.RefTableOffset); err != nil {
		return err
	}
	block := make([]byte, h.ClusterSize())
	for k := range int64(len(table) / 8) {
		off := int64(binary.BigEndian.Uint64(table[k*8:]))
		if off == 0 {
			continue // what is referenced there stays in refs
		}
		if err := readPadded(f, block, off); err != nil {
			return err
		}
		for i := range per {
			c := k*per + i
			got, want := int(refcountAt(block, h.RefcountOrder, int(i))), refs[c]
			if got < want || got > want && !leaks {
				return fmt.Errorf("cluster %d has refcount %d and %d references", c, got, want)
			}
			delete(refs, c)
		}
	}
	if len(refs) != 0 {
		return fmt.Errorf("clusters beyond the refcount table are referenced: %v", refs)
	}
	return nil
}

// checkSound checks an image that may be dirty or have leaks.
func checkSound(f File) error { return checkRefcounts(f, true) }

// wantClean fails the test unless the image is clean and every refcount is
// exact.
func wantClean(t testing.TB, f File) {
	t.Helper()
	h, err := ReadHeader(f)
	must(t, err)
	if h.Dirty() {
		t.Fatal("the dirty bit is set")
	}
	must(t, checkRefcounts(f, false))
	size, err := f.Size()
	must(t, err)
	if size%h.ClusterSize() != 0 {
		t.Fatalf("the file has %d bytes, which is no multiple of the cluster size", size)
	}
	r, err := Check(f, nil)
	must(t, err)
	if r.ExitCode() != 0 {
		t.Fatalf("check: %+v", r)
	}
}

func fill(n int, v byte) []byte { return bytes.Repeat([]byte{v}, n) }

func TestDataIsThereAfterReopen(t *testing.T) {
	for _, s := range []spec{
		{clusterBits: 16, refOrder: 4, size: 8 << 20, zoneSize: 1 << 20, conventional: 2},
		{clusterBits: 12, refOrder: 4, size: 4 << 20, zoneSize: 512 << 10, conventional: 1, capacity: 300<<10 + 512},
		{clusterBits: 9, refOrder: 6, size: 2<<20 + 512, zoneSize: 128 << 10},
		{clusterBits: 9, refOrder: 0, size: 1 << 20, zoneSize: 64 << 10},
		{clusterBits: 21, refOrder: 1, size: 32 << 20, zoneSize: 8 << 20},
	} {
		t.Run(fmt.Sprintf("%+v", s), func(t *testing.T) {
			f := newMemFile()
			build(t, f, s)
			wantClean(t, f)
			im := open(t, f, Options{})
			nr := im.nrZones
			for z := range nr {
				n := im.zoneEnd(z) - im.zoneStart(z)
				n = max(512, n*uint64(z)/uint64(nr)&^511)
				for at := uint64(0); at < n; {
					k := min(n-at, 24<<10)
					must(t, put(im, fill(int(k), byte(z+1)), im.zoneStart(z)+at))
					at += k
					if z >= s.conventional {
						im.Stage(z, im.zoneStart(z)+at)
					}
				}
			}
			must(t, im.Close())
			wantClean(t, f)
			im = open(t, f, Options{})
			for z := range nr {
				n := im.zoneEnd(z) - im.zoneStart(z)
				n = max(512, n*uint64(z)/uint64(nr)&^511)
				want := im.zoneStart(z)
				if z >= s.conventional {
					want += n
				}
				if wp := im.Pointer(z); wp != want {
					t.Errorf("zone %d: pointer %#x, want %#x", z, wp, want)
				}
				p, err := read(im, int(n), im.zoneStart(z))
				must(t, err)
				if !bytes.Equal(p, fill(int(n), byte(z+1))) {
					t.Errorf("zone %d: other data", z)
				}
			}
			all := make([]uint32, 0, nr)
			for z := s.conventional; z < nr; z++ {
				all = append(all, z)
			}
			must(t, im.Reset(all))
			for z := s.conventional; z < nr; z++ {
				if wp := im.Pointer(z); wp != im.zoneStart(z) {
					t.Errorf("zone %d: pointer %#x after reset", z, wp)
				}
			}
			must(t, im.Close())
			wantClean(t, f)
		})
	}
}
