package sim

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

// fuzzSpecs are the images that FuzzDevice changes.
var fuzzSpecs = []qcow2.CreateOptions{
	{Size: 1 << 20, ClusterSize: 4096, RefcountBits: 16, ZoneSize: 64 << 10, Conventional: 1, MaxActive: 4, MaxOpen: 3},
	{Size: 128 << 10, ClusterSize: 512, RefcountBits: 1, ZoneSize: 8 << 10, ZoneCapacity: 6 << 10},
	{Size: 512 << 10, ClusterSize: 1024, RefcountBits: 64, ZoneSize: 4 << 10, Conventional: 3, MaxActive: 9, MaxAppend: 1024},
	{Size: 8 << 20, ClusterSize: 64 << 10, RefcountBits: 8, ZoneSize: 1 << 20, ZoneCapacity: 768 << 10, MaxOpen: 2},
}

// FuzzDevice changes words of an image's tables and serves what opens. Whatever
// the image says, a device keeps its own rules: conditions, pointers and counts
// agree, nothing that was written is lost, and after a close and an open
// everything is where it was.
func FuzzDevice(f *testing.F) {
	for i := range fuzzSpecs {
		f.Add(byte(i), []byte{}, []byte{1, 2, 3, 2, 2, 3, 5, 3, 0, 3, 4, 2, 7, 2, 0, 8, 2, 0, 10, 0, 0, 2, 5, 9, 9, 0, 0})
	}
	f.Add(byte(0), []byte{1, 5, 0, 9, 3, 0, 2, 1, 4, 1, 1, 0}, []byte{2, 5, 200, 2, 6, 1, 2, 7, 1, 2, 8, 1, 2, 9, 1})
	f.Fuzz(func(t *testing.T, base byte, changes, ops []byte) {
		o := fuzzSpecs[int(base)%len(fuzzSpecs)]
		d := &fuzzed{t: t, file: crashfile.New(), block: 512}
		if base&0x80 != 0 && o.ZoneCapacity == 0 && o.ZoneSize > 4096 && o.MaxAppend == 0 {
			d.block = 4096
		}
		if err := qcow2.Format(d.file, o); err != nil {
			t.Fatal(err)
		}
		if !d.open() {
			t.Fatal("a fresh image is refused")
		}
		for i, z := range []uint32{3, 4, 5} {
			d.do(zns.OpWrite, z, uint64(1+i)*2*d.block, uint64(z)*o.ZoneSize)
		}
		if base&0x40 != 0 { // never closed
			d.do(zns.OpFlush, 0, 0, 0)
			d.image.Abandon()
		} else if err := d.image.Close(); err != nil {
			t.Fatal(err)
		}
		for i := 0; i+4 <= len(changes) && i < 64; i += 4 {
			d.change([4]byte(changes[i : i+4]))
		}
		if !d.open() {
			return
		}
		for i := 0; i+3 <= len(ops) && i < 60; i += 3 {
			d.step(ops[i], ops[i+1], ops[i+2])
			d.agree()
		}
		d.reopen()
		if err := d.image.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// fuzzed is a device over an image that may be hostile.
type fuzzed struct {
	t     *testing.T
	file  *crashfile.File
	image *qcow2.Image
	dev   *zns.Device
	block uint64
}

// open makes a device of the image, if it is one.
func (d *fuzzed) open() bool {
	im, err := qcow2.Open(d.file, qcow2.Options{CacheBytes: 1})
	if err != nil {
		return false
	}
	h := im.Header()
	z := h.Zoned
	g := zns.Geometry{
		Size: h.Size, ZoneSize: z.ZoneSize, ZoneCapacity: z.ZoneCapacity, NrZones: z.NrZones,
		Conventional: z.Conventional, MaxOpen: z.MaxOpen, MaxActive: z.MaxActive,
		MaxAppend: uint64(z.MaxAppend), BlockSize: uint32(d.block),
	}
	if g.MaxAppend == 0 {
		g.MaxAppend = z.ZoneSize
	}
	dev, err := zns.New(g, im)
	if err != nil {
		im.Abandon()
		return false
	}
	d.image, d.dev = im, dev
	return true
}

// change sets a word in one of the image's tables.
func (d *fuzzed) change(c [4]byte) {
	h, err := qcow2.ReadHeader(d.file)
	if err != nil {
		return
	}
	get := func(off int64) uint64 {
		var b [8]byte
		_, _ = d.file.ReadAt(b[:], off)
		return binary.BigEndian.Uint64(b[:])
	}
	index := int64(c[1])
	l2 := int64(get(h.L1Offset) & 0x00fffffffffffe00)
	places := []int64{h.L1Offset, h.RefTableOffset, h.Zoned.MetaOffset, l2, int64(get(h.RefTableOffset)), int64(get(l2+int64(c[3])*8) & 0x00fffffffffffe00)}
	at := slices.Concat([]int64{0}, places)[int(c[0])%7] + index*8
	if at < 0 { // an earlier change sends us there
		return
	}
	order := binary.ByteOrder(binary.BigEndian)
	if c[0]%7 == 3 {
		order = binary.LittleEndian
	}
	var b [8]byte
	_, _ = d.file.ReadAt(b[:], at)
	v := order.Uint64(b[:])
	switch arg := uint64(int64(int8(c[3]))); c[2] % 8 {
	case 0:
		v += arg * 512
	case 1:
		v += arg
	case 2:
		v ^= 1 << (c[3] % 64)
	case 3:
		v = uint64(places[int(c[3])%len(places)]) | 1<<63
	case 4:
		v = arg * uint64(h.ClusterSize())
	case 5:
		v = 1<<(c[3]%64) - 1
	case 6:
		v += arg << 32
	case 7:
		v = arg
	}
	order.PutUint64(b[:], v)
	_, _ = d.file.WriteAt(b[:], at)
}

// do carries out a request of n bytes and returns where it went. Only a lack of
// room is an answer that zns does not know.
func (d *fuzzed) do(op zns.Op, z uint32, n, at uint64) (uint64, error) {
	d.t.Helper()
	r := &zns.Request{Op: op, Start: at, Len: n}
	err := zns.Do(d.dev, r, d.file, d.fill(n, at))
	if failed := d.image.Failed(); failed != nil {
		d.t.Fatalf("%v of zone %d: %v", op, z, failed)
	}
	if err != nil && !slices.Contains(answers, err) && !strings.Contains(err.Error(), "more than the") {
		d.t.Fatalf("%v of zone %d: %v", op, z, err)
	}
	return r.At, err
}

// answers are how a device refuses.
var answers = []error{
	zns.ErrInvalid, zns.ErrBoundary, zns.ErrNotAtWP, zns.ErrFull, zns.ErrConventional, zns.ErrAppendSize,
	zns.ErrOpenLimit, zns.ErrActiveLimit, zns.ErrCond, zns.ErrUnsupported,
}

// fill is data that says where it was meant to be.
func (d *fuzzed) fill(n, at uint64) []byte {
	p := make([]byte, n)
	for i := uint64(0); i < n; i += d.block {
		binary.BigEndian.PutUint64(p[i:], at+i|1)
	}
	return p
}

// step does one thing and sees what has come of it.
func (d *fuzzed) step(kind, which, arg byte) {
	d.t.Helper()
	g := d.dev.Geometry()
	i := uint32(which) % g.NrZones
	z := d.dev.Zone(i)
	op := zns.Op(kind % 10)
	n := (uint64(arg%16) + 1) * d.block
	at := z.Start
	switch {
	case kind%13 == 12:
		d.reopen()
		return
	case op == zns.OpRead, op != zns.OpAppend && z.Cond == zns.CondNotWP:
		at += uint64(arg) * d.block % g.ZoneSize
	case op == zns.OpWrite, op == zns.OpWriteZeroes:
		at = z.WP
	}
	if op == zns.OpWrite && arg%7 == 6 { // not where it should be
		at += d.block
	}
	if op > zns.OpWriteZeroes {
		n, at = 0, z.Start
	}
	before := d.zones()
	went, err := d.do(op, i, n, at)
	if err != nil {
		if after := d.zones(); !slices.Equal(before, after) {
			d.t.Fatalf("%v of zone %d was refused and changed something: %v", op, i, err)
		}
		return
	}
	if op != zns.OpWrite && op != zns.OpAppend && op != zns.OpWriteZeroes {
		return
	}
	want := d.fill(n, at)
	if op == zns.OpWriteZeroes {
		clear(want)
	}
	if op != zns.OpAppend {
		went = at
	}
	got := make([]byte, n)
	r := &zns.Request{Op: zns.OpRead, Start: went, Len: n}
	if err := zns.Do(d.dev, r, d.file, got); err != nil || !bytes.Equal(got, want) {
		d.t.Fatalf("%v of zone %d to %#x: other data is read (%v)", op, i, went, err)
	}
}

// zones are those that are compared: the image may have a million.
func (d *fuzzed) zones() (list []zns.Zone) {
	for i := range min(d.dev.Geometry().NrZones, 256) {
		list = append(list, d.dev.Zone(i))
	}
	return list
}

// agree holds conditions, pointers and counts against each other.
func (d *fuzzed) agree() {
	d.t.Helper()
	g := d.dev.Geometry()
	var open, active uint32
	for i := range g.NrZones {
		z := d.dev.Zone(i)
		ok := z.WP >= z.Start && z.WP <= z.Start+z.Capacity && (z.WP-z.Start)%d.block == 0
		switch z.Cond {
		case zns.CondNotWP:
			ok = ok && i < g.Conventional
		case zns.CondEmpty:
			ok = ok && z.WP == z.Start
		case zns.CondFull:
			ok = ok && z.WP == z.Start+z.Capacity
		case zns.CondClosed:
			ok = ok && z.WP > z.Start && z.WP < z.Start+z.Capacity
			active++
		case zns.CondImpOpen, zns.CondExpOpen:
			ok = ok && z.WP < z.Start+z.Capacity
			open, active = open+1, active+1
		default:
			ok = false
		}
		if !ok {
			d.t.Fatalf("zone %d: %+v", i, z)
		}
	}
	if o, a := d.dev.Counts(); o != open || a != active {
		d.t.Fatalf("%d open and %d active zones are counted, %d and %d are", o, a, open, active)
	}
	if g.MaxOpen != 0 && open > g.MaxOpen {
		d.t.Fatalf("%d open zones, %d are allowed", open, g.MaxOpen)
	}
}

// reopen closes the image and opens it again: every pointer is where it was.
func (d *fuzzed) reopen() {
	d.t.Helper()
	before := d.zones()
	if err := d.image.Close(); err != nil {
		d.t.Fatal(err)
	}
	if !d.open() {
		d.t.Fatal("the image is refused after it was used")
	}
	for i, z := range d.zones() {
		if z.WP != before[i].WP {
			d.t.Fatalf("zone %d is at %#x after a close and an open, and was at %#x", i, z.WP, before[i].WP)
		}
	}
	r, err := qcow2.Check(d.file, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	if r.Dirty || len(r.Messages) > 0 && strings.Contains(r.Messages[0], "overlap") {
		d.t.Fatalf("%+v", r)
	}
}
