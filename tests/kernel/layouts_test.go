//go:build kernel

package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Where all the samples have the zoned extension's header, zonedmeta, and
// their first cluster of data.
const (
	sampleExt  = 0x228
	sampleMeta = 0x30000
	sampleData = 0x60000
)

// sample unpacks one of the images that others have made, changed by change.
func (h *host) sample(name, from string, change func(b []byte)) *image {
	h.t.Helper()
	root, err := moduleRoot()
	if err != nil {
		h.t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(root, "qcow2", "testdata", from+".qcow2.gz"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		h.t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		h.t.Fatal(err)
	}
	if change != nil {
		change(b)
	}
	im := &image{h, filepath.Join(h.dir, name+".qcow2")}
	if err := os.WriteFile(im.path, b, 0o600); err != nil {
		h.t.Fatal(err)
	}
	return im
}

// bytes reads n bytes of the image file.
func (im *image) bytes(off int64, n int) []byte {
	im.h.t.Helper()
	f, err := os.Open(im.path)
	if err != nil {
		im.h.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil {
		im.h.t.Fatal(err)
	}
	return b
}

// offline is one zone of what qzbd zones --json prints.
type offline struct {
	Start    int64  `json:"start"`
	Length   int64  `json:"length"`
	Capacity int64  `json:"capacity"`
	WP       int64  `json:"write-pointer"`
	Cond     string `json:"condition"`
}

// written is as that of a live zone.
func (o offline) written() int64 { return o.WP - o.Start }

func (im *image) zones() (all []offline) {
	im.h.t.Helper()
	im.json(&all, "zones")
	return all
}

// form is what qzbd info says of how the image is stored.
type form struct {
	Zoned struct {
		Layout string `json:"layout"`
		Order  string `json:"byte-order"`
		Flag   int    `json:"conventional-flag-bit"`
	} `json:"zoned"`
	NotBuilt []string `json:"not-built"`
}

func (im *image) info() (f form) {
	im.h.t.Helper()
	im.json(&f, "info")
	return f
}

func (im *image) json(v any, command string) {
	im.h.t.Helper()
	if err := json.Unmarshal([]byte(im.h.run(qzbd, command, "--json", im.path)), v); err != nil {
		im.h.t.Fatal(err)
	}
}

// statesInV7 gives the founding example in layout v7 zones in every state.
func statesInV7(b []byte) {
	const zone = 64 << 20
	for i, wp := range map[int]uint64{1: 1*zone + 4096, 2: 3 * zone, 5: 5*zone + 1<<20, 11: 12 * zone} {
		binary.LittleEndian.PutUint64(b[sampleMeta+8*i:], wp)
	}
}

// to2026b rewrites the extension from layout 2026a: zonedmeta_offset moves
// forward, and the append limit is gone.
func to2026b(b []byte) {
	p := slices.Clone(b[sampleExt+8 : sampleExt+8+48])
	binary.BigEndian.PutUint32(b[sampleExt+4:], 44)
	q := b[sampleExt+8 : sampleExt+8+48]
	copy(q[24:], p[40:48]) // zonedmeta_offset
	copy(q[32:], p[24:36]) // conventional, active, open
	clear(q[44:])
}

// Images of every layout that others write are served, written and kept as they
// were found.
func TestImagesOfEveryLayoutAreUsedAndKept(t *testing.T) {
	all := func(n int, c cond) []cond { return slices.Repeat([]cond{c}, n) }
	states := []cond{notWP, notWP, closed, closed, empty, full, full, empty}
	for _, c := range []struct {
		name, from string
		change     func([]byte)
		flags      []string
		layout     string
		order      string
		flag       int
		conds      []cond // of the device
		pointers   map[int]int64
		dropped    int
	}{
		{name: "v9", from: "v9-seed-fresh", layout: "v9", order: "little-endian", conds: all(12, empty)},
		{name: "v7", from: "v7hdr-seed-fresh", layout: "v7", order: "little-endian", conds: all(12, empty)},
		{name: "v7-states", from: "v7hdr-seed-fresh", change: statesInV7, layout: "v7", order: "little-endian",
			conds:    []cond{empty, closed, full, empty, empty, closed, empty, empty, empty, empty, empty, full},
			pointers: map[int]int64{1: 4096, 5: 1 << 20}},
		{name: "2026a", from: "synthetic-2026a-states", layout: "2026a", order: "big-endian", flag: 63,
			conds: states, pointers: map[int]int64{2: 8 * 512, 3: 0x80 * 512}},
		{name: "2026b", from: "synthetic-2026a-states", change: to2026b, layout: "2026b", order: "big-endian", flag: 63,
			conds: states, pointers: map[int]int64{2: 8 * 512, 3: 0x80 * 512}},
		{name: "short", from: "v9-lastzone-short", flags: []string{"--drop-short-zone"}, layout: "v9", order: "little-endian",
			conds: []cond{empty}, dropped: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := begin(t)
			im := h.sample(c.name, c.from, c.change)
			t.Cleanup(im.check)
			im.check()
			kept := func() {
				t.Helper()
				f := im.info()
				if f.Zoned.Layout != c.layout || f.Zoned.Order != c.order || f.Zoned.Flag != c.flag {
					t.Errorf("the image is now %+v", f.Zoned)
				}
			}
			kept()
			extension := im.bytes(sampleExt, 8+56)
			before := im.zones()
			if len(before) != len(c.conds)+c.dropped {
				t.Fatalf("%d zones offline, want %d and %d more: %+v", len(before), len(c.conds), c.dropped, before)
			}

			d := im.attach(c.flags...)
			k := d.open()
			k.are(c.conds...)
			zones := k.zones()
			if len(zones) != len(c.conds) {
				t.Fatalf("%d zones, want %d", len(zones), len(c.conds))
			}
			for i, n := range c.pointers {
				k.isIn(i, closed, n)
			}
			for i, z := range zones {
				if o := before[i]; z.start != o.Start || z.length != o.Length || z.capacity != o.Capacity || z.written() != o.written() {
					t.Errorf("zone %d is %+v live, %+v offline", i, z, o)
				}
			}
			if c.from == "synthetic-2026a-states" { // what is in it
				k.same(zones[0].start+1<<20, im.bytes(sampleData, 64<<10))
				k.same(zones[2].start, im.bytes(sampleData+0x10000, 8*512))
				k.same(zones[3].start, im.bytes(sampleData+0x20000, 64<<10))
				k.same(zones[6].start, im.bytes(sampleData+0x30000, 64<<10))
			}

			// One zone of each condition is changed; written says how much there
			// is of the test's own, and from where.
			type mark struct{ from, n int64 }
			written := make(map[int]mark)
			var seen []cond
			for i, z := range zones {
				if slices.Contains(seen, z.cond) {
					continue
				}
				seen = append(seen, z.cond)
				switch z.cond {
				case notWP:
					written[i] = mark{3 << 20, 128 << 10}
					k.write(1, z.start+3<<20, 128<<10)
				case closed:
					written[i] = mark{z.written(), 1 << 20}
					k.write(1, z.wp, 1<<20)
				case empty:
					written[i] = mark{0, 64 << 10}
					k.write(1, z.start, 64<<10)
				case full:
					k.must(blkResetZone, z)
				}
			}
			finished := -1
			if last := len(zones) - 1; zones[last].cond == empty && last > 0 {
				k.write(1, zones[last].start, 4096)
				k.must(blkFinishZone, zones[last])
				written[last], finished = mark{0, 4096}, last
			}
			k.sync()
			live := k.zones()
			k.close()
			d.detach()

			im.check()
			kept()
			if !bytes.Equal(im.bytes(sampleExt, 8+56), extension) {
				t.Error("the zoned extension was rewritten")
			}
			after := im.zones()
			for i, o := range after {
				switch {
				case i >= len(live):
					if o != before[i] {
						t.Errorf("the zone that was left out has become %+v, was %+v", o, before[i])
					}
				case o.written() != live[i].written():
					t.Errorf("zone %d is %+v offline, was %+v live", i, o, live[i])
				}
			}
			if finished >= 0 {
				h.storedAs(im, finished, c.layout, c.order, after[finished])
			}
			if c.dropped != 0 && !bytes.Equal(im.bytes(sampleData, 64<<10), bytes.Repeat([]byte{0xb1}, 64<<10)) {
				t.Error("the data of the zone that was left out has changed")
			}

			d = im.attach(c.flags...)
			k = d.open()
			for i, z := range k.zones() {
				want := live[i].cond
				if want == impOpen {
					want = closed
				}
				if z.cond != want || z.written() != live[i].written() {
					t.Errorf("zone %d is %v with %#x bytes, want %v with %#x", i, z.cond, z.written(), want, live[i].written())
				}
				if m, ok := written[i]; ok {
					k.holds(1, z.start+m.from, int(m.n))
					k.zeros(z.start+m.from+m.n, 1<<20)
				}
			}
			k.close()
			d.detach()
			kept()
		})
	}
}

// storedAs checks what the image has as the pointer of a finished zone: the end
// of the zone or, in the newer layouts, of its capacity.
func (h *host) storedAs(im *image, i int, layout, order string, z offline) {
	h.t.Helper()
	want := z.Start + z.Length
	if strings.HasPrefix(layout, "2026") {
		want = z.Start + z.Capacity
	}
	var o binary.ByteOrder = binary.LittleEndian
	if order == "big-endian" {
		o = binary.BigEndian
	}
	if have := o.Uint64(im.bytes(sampleMeta+8*int64(i), 8)); have != uint64(want) {
		h.t.Errorf("the finished zone %d is stored as %#x, want %#x", i, have, want)
	}
}

func TestAnImageThatNeedsMoreThanIsBuiltIsShownAndRefused(t *testing.T) {
	h := begin(t)
	im := h.sample("extl2", "v9-extl2", nil)
	before := im.bytes(0, 524296)
	zones := im.zones()
	if len(zones) != 8 {
		t.Errorf("%d zones", len(zones))
	}
	for i, z := range zones {
		if z.Start != int64(i)<<25 || z.WP != z.Start || z.Cond != "empty" {
			t.Errorf("zone %d is %+v", i, z)
		}
	}
	const feature = "extended L2 entries (incompatible feature bit 4)"
	if f := im.info(); f.Zoned.Layout != "v9" || !slices.Equal(f.NotBuilt, []string{feature}) {
		t.Errorf("info %+v", f)
	}
	says(t, h.refused(qzbd, "check", im.path), im.path, feature, "not built")
	says(t, h.refused(qzbd, "attach", im.path), im.path, feature, "not built")
	if !bytes.Equal(im.bytes(0, len(before)), before) {
		t.Error("a refused image was changed")
	}
}
