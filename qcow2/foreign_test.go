package qcow2

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"testing"
)

// foreignEntry changes the entry of a guest cluster behind the engine's back.
func foreignEntry(t *testing.T, f File, off uint64, change func(L2Entry) L2Entry) {
	t.Helper()
	h, err := ReadHeader(f)
	must(t, err)
	var b [8]byte
	g := int64(off >> h.ClusterBits)
	must(t, readPadded(f, b[:], h.L1Offset+g/h.l2Entries()*8))
	at := L1Entry(binary.BigEndian.Uint64(b[:])).Offset() + g%h.l2Entries()*8
	must(t, readPadded(f, b[:], at))
	binary.BigEndian.PutUint64(b[:], uint64(change(L2Entry(binary.BigEndian.Uint64(b[:])))))
	_, err = f.WriteAt(b[:], at)
	must(t, err)
	must(t, f.Sync())
}

func TestForeignEntriesAreReplacedNotWritten(t *testing.T) {
	for name, c := range map[string]struct {
		change func(L2Entry) L2Entry
		want   byte // what the cluster reads as
	}{
		"not copied":     {func(e L2Entry) L2Entry { return e &^ flagCopied }, 2},
		"zero, a place":  {func(e L2Entry) L2Entry { return e | flagZero }, 0},
		"zero, no place": {func(L2Entry) L2Entry { return flagZero }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			f := newMemFile()
			build(t, f, small)
			im := open(t, f, Options{})
			off := im.zoneStart(1)
			grow(t, im, 1, 64<<10, 64<<10)
			must(t, im.Close())
			foreignEntry(t, f, off+8192, c.change)
			im = open(t, f, Options{})
			if _, ok := im.Map(nil, off+8192, 512, true); ok {
				t.Error("a foreign entry was mapped for writing")
			}
			before := append([]byte(nil), f.cache...)
			must(t, put(im, fill(512, 9), off+8192+1024))
			for c := int64(0); c < int64(len(before)); c += 4096 {
				// What had contents has them still, but for metadata.
				if old := before[c : c+4096]; bytes.Equal(old, fill(4096, 2)) && !bytes.Equal(old, f.cache[c:c+4096]) {
					t.Errorf("the cluster at %#x was written in place", c)
				}
			}
			want := append(fill(8192, 2), fill(4096, c.want)...)
			copy(want[8192+1024:], fill(512, 9))
			want = append(want, fill(64<<10-len(want), 2)...)
			for range 2 {
				p, err := read(im, 64<<10, off)
				must(t, err)
				if !bytes.Equal(p, want) {
					t.Error("other data")
				}
				must(t, im.Close())
				if name != "zero, no place" { // its old cluster leaks in this test
					wantClean(t, f)
				}
				im = open(t, f, Options{})
			}
			must(t, im.Reset([]uint32{1}))
			must(t, im.Close())
		})
	}
}

func TestZeroAndFinishReplaceForeignEntries(t *testing.T) {
	f := newMemFile()
	build(t, f, small)
	im := open(t, f, Options{})
	off := im.zoneStart(1)
	grow(t, im, 1, 64<<10, 64<<10)
	must(t, im.Close())
	for _, at := range []uint64{4096, 60 << 10} {
		foreignEntry(t, f, off+at, func(e L2Entry) L2Entry { return e &^ flagCopied })
	}
	im = open(t, f, Options{})
	must(t, im.Zero(off+4096+512, 512))
	must(t, im.Finish(1, off+62<<10))
	p, err := read(im, 64<<10, off)
	must(t, err)
	want := fill(64<<10, 2)
	clear(want[4096+512 : 4096+1024])
	clear(want[62<<10:])
	if !bytes.Equal(p, want) {
		t.Error("other data")
	}
	must(t, im.Close())
	wantClean(t, f)
}

// wantRefused opens a clean image for writing, which must fail with a message
// that has want in it and leave the file as it is.
func wantRefused(t *testing.T, f *memFile, want string) {
	t.Helper()
	before := bytes.Clone(f.cache)
	im, err := Open(f, Options{})
	if err == nil {
		im.Abandon()
		t.Fatal("the image was opened")
	}
	if !strings.HasPrefix(err.Error(), "image is corrupt and was left as it is: ") || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v\nwant it to say: %s", err, want)
	}
	if !bytes.Equal(f.cache, before) {
		t.Error("the file was changed")
	}
	if r, err := Check(f, nil); err != nil || r.Corruptions == 0 {
		t.Errorf("check finds nothing: %+v, %v", r, err)
	}
}

// An image that was closed is believed no more than one that was not.
func TestAnImageThatContradictsItselfIsNotOpened(t *testing.T) {
	compressed := func(e L2Entry) L2Entry { return L2Entry(e.Offset()) | flagCompressed }
	is := func(v L2Entry) func(L2Entry) L2Entry { return func(L2Entry) L2Entry { return v } }
	const at = 4096 // within zone 1
	for name, c := range map[string]struct {
		want   string
		damage func(t *testing.T, f *memFile, h *Header, zone1 uint64)
	}{
		"two L1 entries, one table": {"something else uses", func(t *testing.T, f *memFile, h *Header, _ uint64) {
			poke(t, f, h.L1Offset, peek(t, f, h.L1Offset+8))
		}},
		"L1 entry to a refcount block": {"something else uses", func(t *testing.T, f *memFile, h *Header, _ uint64) {
			poke(t, f, h.L1Offset, peek(t, f, h.RefTableOffset)|flagCopied)
		}},
		"L1 entry to the refcount table": {"something else uses", func(t *testing.T, f *memFile, h *Header, _ uint64) {
			poke(t, f, h.L1Offset, uint64(h.RefTableOffset)|flagCopied)
		}},
		"data in a refcount block": {"zone 1: ", func(t *testing.T, f *memFile, h *Header, off uint64) {
			foreignEntry(t, f, off+at, is(L2Entry(peek(t, f, h.RefTableOffset)|flagCopied)))
		}},
		"data in an L2 table": {"zone 1: ", func(t *testing.T, f *memFile, h *Header, off uint64) {
			foreignEntry(t, f, off+at, is(L2Entry(peek(t, f, h.L1Offset+8))))
		}},
		"an L2 table in data": {"something else uses", func(t *testing.T, f *memFile, h *Header, off uint64) {
			foreignEntry(t, f, off+at, func(e L2Entry) L2Entry {
				poke(t, f, h.L1Offset+16, uint64(e))
				return e
			})
		}},
		"two entries, one cluster": {"something else uses", func(t *testing.T, f *memFile, h *Header, off uint64) {
			foreignEntry(t, f, off+at, func(e L2Entry) L2Entry {
				foreignEntry(t, f, off+at+4096, is(e))
				return e
			})
		}},
		"two entries, one cluster, above the pointer": {"something else uses", func(t *testing.T, f *memFile, h *Header, off uint64) {
			foreignEntry(t, f, off+at, func(e L2Entry) L2Entry {
				foreignEntry(t, f, off+(128<<10), is(e))
				return e
			})
		}},
		"two refcount blocks in one place": {"something else uses", func(t *testing.T, f *memFile, h *Header, _ uint64) {
			poke(t, f, h.RefTableOffset+8, peek(t, f, h.RefTableOffset))
		}},
		"compressed": {"compressed clusters are not supported", func(t *testing.T, f *memFile, _ *Header, off uint64) {
			foreignEntry(t, f, off+at, compressed)
		}},
		"refcount 0": {"run qzbd check", func(t *testing.T, f *memFile, h *Header, off uint64) {
			foreignEntry(t, f, off+at, func(e L2Entry) L2Entry {
				poke16(t, f, int64(peek(t, f, h.RefTableOffset))+e.Offset()>>h.ClusterBits*2, 0)
				return e
			})
		}},
		"beyond the end": {"beyond the end", func(t *testing.T, f *memFile, _ *Header, off uint64) {
			foreignEntry(t, f, off+at, is(1<<40|flagCopied))
		}},
		"unaligned": {"multiple of the cluster size", func(t *testing.T, f *memFile, _ *Header, off uint64) {
			foreignEntry(t, f, off+at, is(0x10200|flagCopied))
		}},
		"reserved bits": {"reserved bits", func(t *testing.T, f *memFile, _ *Header, off uint64) {
			foreignEntry(t, f, off+at, is(0x10000|2))
		}},
		"data in zonedmeta": {"something else uses", func(t *testing.T, f *memFile, h *Header, off uint64) {
			foreignEntry(t, f, off+at, is(L2Entry(h.Zoned.MetaOffset)|flagCopied))
		}},
		"data in the L1 table": {"something else uses", func(t *testing.T, f *memFile, h *Header, off uint64) {
			foreignEntry(t, f, off+at, is(L2Entry(h.L1Offset)|flagCopied))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newMemFile()
			// A zone of 2M is what one L2 table maps.
			build(t, f, spec{clusterBits: 12, refOrder: 4, size: 8 << 20, zoneSize: 2 << 20})
			im := open(t, f, Options{})
			off := im.zoneStart(1)
			grow(t, im, 1, 256<<10, 64<<10)
			h := im.Header()
			must(t, im.Close())
			foreignEntry(t, f, off+(128<<10), func(L2Entry) L2Entry { return 0 }) // leaks
			poke(t, f, int64(h.Zoned.MetaOffset)+8, binary.BigEndian.Uint64(encoded(&h, 1, off+(128<<10))))
			c.damage(t, f, &h, off)
			wantRefused(t, f, c.want)
		})
	}
}

// A refcount above the one reference there is harms nobody: it is a leak.
func TestAnImageWithALeakIsOpened(t *testing.T) {
	f := newMemFile()
	build(t, f, small)
	im := open(t, f, Options{})
	off := im.zoneStart(1)
	grow(t, im, 1, 64<<10, 64<<10)
	h := im.Header()
	must(t, im.Close())
	foreignEntry(t, f, off+4096, func(e L2Entry) L2Entry {
		poke16(t, f, int64(peek(t, f, h.RefTableOffset))+e.Offset()>>h.ClusterBits*2, 2)
		return e &^ flagCopied
	})
	calls := 0
	im = open(t, f, Options{Progress: func(done, total int64) { calls++ }})
	if calls == 0 {
		t.Error("no progress was reported")
	}
	must(t, put(im, fill(512, 9), off+4096))
	p, err := read(im, 4096, off+4096)
	must(t, err)
	if !bytes.Equal(p, append(fill(512, 9), fill(4096-512, 2)...)) {
		t.Error("other data")
	}
	must(t, im.Close())
}

func encoded(h *Header, zone uint32, wp uint64) []byte {
	var b [8]byte
	h.encodeEntry(b[:], zone, wp)
	return b[:]
}

func peek(t *testing.T, f File, off int64) uint64 {
	t.Helper()
	var b [8]byte
	must(t, readPadded(f, b[:], off))
	return binary.BigEndian.Uint64(b[:])
}

func poke(t *testing.T, f File, off int64, v uint64) {
	t.Helper()
	_, err := f.WriteAt(binary.BigEndian.AppendUint64(nil, v), off)
	must(t, err)
	must(t, f.Sync())
}

func poke16(t *testing.T, f File, off int64, v uint16) {
	t.Helper()
	_, err := f.WriteAt(binary.BigEndian.AppendUint16(nil, v), off)
	must(t, err)
	must(t, f.Sync())
}

// Whatever changes the file behind an open image's back must not do worse than
// failing requests.
func TestCompressedEntriesAreRefusedWhereTheyAreUsed(t *testing.T) {
	f := newMemFile()
	build(t, f, small)
	im := open(t, f, Options{})
	off := im.zoneStart(1)
	grow(t, im, 1, 64<<10, 64<<10)
	must(t, im.Close())
	im = open(t, f, Options{})
	foreignEntry(t, f, off+4096, func(e L2Entry) L2Entry { return L2Entry(e.Offset()) | flagCompressed })
	if _, err := read(im, 4096, off+4096); err == nil {
		t.Error("a compressed cluster was read")
	}
	if err := put(im, fill(512, 1), off+4096); err == nil {
		t.Error("a compressed cluster was written")
	}
	if err := im.Zero(off+4096, 512); err == nil {
		t.Error("a compressed cluster was punched")
	}
	if _, err := read(im, 4096, off+8192); err != nil {
		t.Errorf("its neighbour: %v", err)
	}
	must(t, im.Failed())
	must(t, im.Close())
	im = open(t, f, Options{ReadOnly: true})
	if _, err := read(im, 4096, off+4096); err == nil {
		t.Error("a compressed cluster was read")
	}
	if _, err := read(im, 4096, off+8192); err != nil {
		t.Errorf("its neighbour: %v", err)
	}
	must(t, im.Close())
}

func TestEntriesThatNoImageMayHaveAreRefused(t *testing.T) {
	for name, e := range map[string]L2Entry{
		"beyond the end": 1<<40 | flagCopied,
		"unaligned":      0x10200 | flagCopied,
		"reserved bits":  0x10000 | 2,
		"zonedmeta":      0x3000 | flagCopied,
		"L1":             0x4000 | flagCopied,
	} {
		t.Run(name, func(t *testing.T) {
			f := newMemFile()
			build(t, f, small)
			im := open(t, f, Options{})
			off := im.zoneStart(1)
			grow(t, im, 1, 64<<10, 64<<10)
			must(t, im.Close())
			im = open(t, f, Options{})
			foreignEntry(t, f, off+4096, func(L2Entry) L2Entry { return e })
			if err := put(im, fill(512, 1), off+4096); err == nil {
				t.Error("written")
			}
			if err := im.Reset([]uint32{1}); err == nil {
				t.Error("reset")
			}
			must(t, im.Failed())
			im.Abandon()
		})
	}
}

func TestACopiedClusterIsDurableBeforeItIsReferredTo(t *testing.T) {
	f := newMemFile()
	build(t, f, small)
	im := open(t, f, Options{})
	off := im.zoneStart(0) // conventional
	must(t, put(im, fill(4096, 2), off))
	must(t, im.Close())
	foreignEntry(t, f, off, func(e L2Entry) L2Entry { return e &^ flagCopied })
	im = open(t, f, Options{})
	must(t, put(im, fill(512, 9), off))
	im.Abandon()
	for seed := range uint64(50) {
		g := f.cut(rand.New(rand.NewPCG(seed, 0)))
		im := open(t, g, Options{})
		p, err := read(im, 4096, off)
		must(t, err)
		if p[0] != 2 && p[0] != 9 || !bytes.Equal(p[512:], fill(4096-512, 2)) {
			t.Fatalf("seed %d: other data after a cut", seed)
		}
		must(t, im.Close())
		wantClean(t, g)
	}
}

// The same of a table: its entries are durable before the L1 entry leads to the
// copy.
func TestACopiedTableIsDurableBeforeItIsReferredTo(t *testing.T) {
	f := newMemFile()
	build(t, f, small)
	im := open(t, f, Options{})
	off := im.zoneStart(0) // conventional
	must(t, put(im, fill(4096, 2), off))
	must(t, im.Close())
	h, err := ReadHeader(f)
	must(t, err)
	var b [8]byte
	must(t, readPadded(f, b[:], h.L1Offset))
	b[0] &^= 0x80 // the flag
	_, err = f.WriteAt(b[:], h.L1Offset)
	must(t, err)
	must(t, f.Sync())
	im = open(t, f, Options{})
	must(t, put(im, fill(512, 9), off+uint64(4*im.cs)))
	im.Abandon()
	for seed := range uint64(50) {
		g := f.cut(rand.New(rand.NewPCG(seed, 0)))
		im := open(t, g, Options{})
		p, err := read(im, 4096, off)
		must(t, err)
		if !bytes.Equal(p, fill(4096, 2)) {
			t.Fatalf("seed %d: other data after a cut", seed)
		}
		must(t, im.Close())
		wantClean(t, g)
	}
}
