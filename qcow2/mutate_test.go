package qcow2

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
)

// A fuzzer that flips bytes of an image hardly ever gets past its header. So
// its input is a list of changes instead, each decoded into a field, an entry
// or a place of a sound image and a value that has a chance of meaning
// something there.

// baseImage is a sound image and where its structures are.
type baseImage struct {
	f      *sparseFile
	h      *Header
	ext    int64   // the zoned extension's payload
	tables []int64 // L2 tables
	data   []int64 // data clusters
	blocks []int64 // refcount blocks
	places []int64 // whatever an entry could refer to
	l2     []int64 // where some L2 entries are, most of them set
}

// baseSpecs are the geometries of the base images.
var baseSpecs = []spec{
	{clusterBits: 12, refOrder: 4, size: 1 << 20, zoneSize: 64 << 10, conventional: 2},
	{clusterBits: 9, refOrder: 0, size: 128 << 10, zoneSize: 8 << 10, capacity: 6 << 10, conventional: 1, maxActive: 4, layout: Layout2026a},
	{clusterBits: 9, refOrder: 6, size: 256<<10 + 512, zoneSize: 32 << 10, layout: LayoutV7},
	{clusterBits: 16, refOrder: 3, size: 4 << 20, zoneSize: 256 << 10, capacity: 192<<10 + 512, conventional: 1, maxActive: 5},
	{clusterBits: 10, refOrder: 2, size: 640 << 10, zoneSize: 1 << 10, maxActive: 100, conventional: 3, layout: Layout2026b},
	{clusterBits: 14, refOrder: 5, size: 1 << 30, zoneSize: 128 << 20, form: BigEndian59},
	{clusterBits: 21, refOrder: 1, size: 16 << 20, zoneSize: 2 << 20, conventional: 1}, // see baseOf
}

// bases are the base images: each geometry closed, and as a killed server
// leaves it.
var bases = sync.OnceValue(func() []*baseImage {
	var list []*baseImage
	for _, s := range baseSpecs {
		f := newSparseFile()
		if err := fillBase(f, s); err != nil {
			panic(err)
		}
		list = append(list, surveyBase(f.clone()))
		g := f.clone()
		if err := leaveDirty(g); err != nil {
			panic(err)
		}
		list = append(list, surveyBase(g.clone()))
	}
	return list
})

// baseOf chooses a base image. Those with the largest clusters, the last two,
// take fifty times as long as any other and are chosen so much less often.
func baseOf(i byte) *baseImage {
	few := len(bases()) - 2
	if i >= 254 {
		return bases()[few+int(i)-254]
	}
	return bases()[int(i)%few]
}

// eachBase calls fn with every base image and its number for baseOf.
func eachBase(fn func(i byte, b *baseImage)) {
	for i := range byte(len(bases()) - 2) {
		fn(i, baseOf(i))
	}
	fn(254, baseOf(254))
	fn(255, baseOf(255))
}

// stamp is a sector of data that says where it belongs.
func stamp(dev uint64, version byte) []byte {
	p := make([]byte, sectorSize)
	binary.BigEndian.PutUint64(p, dev)
	p[8], p[9] = version, 0xd5
	return p
}

// putStamps writes n sectors from off on, and tells the pointer where there is
// one.
func putStamps(im *Image, off uint64, n int, version byte) error {
	for i := range n {
		at := off + uint64(i)*sectorSize
		if err := put(im, stamp(at, version), at); err != nil {
			return err
		}
	}
	if zone := uint32(off / im.zoneSize); n > 0 && !im.conventional(zone) {
		im.Stage(zone, off+uint64(n)*sectorSize)
	}
	return nil
}

// fillBase makes an image with zones of every condition.
func fillBase(f *sparseFile, s spec) error {
	build(panicTB{}, f, s)
	im, err := Open(f, Options{CacheBytes: 1})
	if err != nil {
		return err
	}
	for zone := range min(im.nrZones, 12) {
		start, room := im.zoneStart(zone), int(im.zoneEnd(zone)-im.zoneStart(zone))/sectorSize
		switch {
		case im.conventional(zone):
			err = putStamps(im, start+uint64(room/2)*sectorSize, min(room/2, 3), 1)
		case zone%5 == 1: // full
			if err = putStamps(im, start, min(room, 4), 1); err == nil {
				im.Stage(zone, im.zoneEnd(zone))
			}
		case zone%5 == 2: // finished
			if err = putStamps(im, start, min(room, 3), 1); err == nil {
				err = im.Finish(zone, im.Pointer(zone))
			}
		case zone%5 == 3 && im.maxActive == 0: // partly written
			err = putStamps(im, start, min(room-1, 9), 1)
		case zone%5 == 4: // written and reset
			if err = putStamps(im, start, 2, 1); err == nil {
				err = im.Reset([]uint32{zone})
			}
		}
		if err != nil {
			return fmt.Errorf("zone %d: %w", zone, err)
		}
	}
	if err := putStamps(im, im.zoneStart(im.nrZones-1), 1, 1); err != nil {
		return err
	}
	return im.Close()
}

// leaveDirty writes more, and ends without a word.
func leaveDirty(f *sparseFile) error {
	im, err := Open(f, Options{CacheBytes: 1})
	if err != nil {
		return err
	}
	defer im.Abandon()
	zone := im.nrZones - 1
	for im.Pointer(zone) == im.zoneEnd(zone) {
		zone--
	}
	if err := putStamps(im, im.Pointer(zone), 1, 2); err != nil {
		return err
	}
	if err := im.Round(); err != nil {
		return err
	}
	_, err = im.MapSlow(nil, im.zoneStart(zone), im.zoneEnd(zone)-im.zoneStart(zone), true) // ahead
	return err
}

// panicTB lets build be used before there is a test.
type panicTB struct{ testing.TB }

func (panicTB) Helper()           {}
func (panicTB) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func surveyBase(f *sparseFile) *baseImage {
	h, err := ReadHeader(f)
	if err != nil {
		panic(err)
	}
	b := &baseImage{f: f, h: h, ext: int64(h.HeaderLength) + 8}
	for _, p := range h.places() {
		b.places = append(b.places, p.off)
	}
	err = walk(f, h, true, func(r *ref) error {
		if r.bad != "" {
			panic(fmt.Sprint(r, r.bad))
		}
		switch r.kind {
		case RefRefBlock:
			b.blocks = append(b.blocks, r.off)
			b.places = append(b.places, r.off)
		case RefL2:
			b.tables = append(b.tables, r.off)
			b.places = append(b.places, r.off)
			b.l2 = append(b.l2, r.off, r.off+h.ClusterSize()-8)
		case RefData:
			if len(b.data) < 64 {
				b.data = append(b.data, r.off)
				b.places = append(b.places, r.off)
				b.l2 = append(b.l2, r.entryAt)
			}
		}
		return nil
	})
	if err != nil {
		panic(err)
	}
	return b
}

// headerFields are the fields that a change can name: offset and width.
var headerFields = [][2]int64{
	{offVersion, 4}, {offBackingOffset, 8}, {offBackingLength, 4}, {offClusterBits, 4}, {offSize, 8}, {offCrypt, 4},
	{offL1Size, 4}, {offL1Offset, 8}, {offRefTableOffset, 8}, {offRefTableClusters, 4}, {offNbSnapshots, 4},
	{offSnapshotsOffset, 8}, {offIncompatible, 8}, {offCompatible, 8}, {offAutoclear, 8}, {offRefcountOrder, 4},
	{offHeaderLength, 4}, {offCompressionType, 1},
}

// extFields are those of the zoned extension, from its payload on: its type,
// its length, and what its layout has.
func (b *baseImage) extFields() [][2]int64 {
	l := &layouts[b.h.Zoned.Layout]
	list := [][2]int64{{-8, 4}, {-4, 4}, {0, 1}, {1, 1}, {int64(l.size), 4}, {int64(l.size) + 4, 4}}
	for _, x := range []field{
		l.zoneSize, l.zoneCapacity, l.conventional, l.nrZones, l.maxActive, l.maxOpen, l.maxAppend, l.metaSize, l.metaOffset,
	} {
		list = append(list, [2]int64{int64(x.at), int64(x.width)})
	}
	return list
}

// tape is the fuzzer's input; at its end it gives zeros.
type tape []byte

func (t *tape) byte() byte {
	if len(*t) == 0 {
		return 0
	}
	b := (*t)[0]
	*t = (*t)[1:]
	return b
}

func (t *tape) word() (v uint64) {
	for range 8 {
		v = v<<8 | uint64(t.byte())
	}
	return v
}

func pickOf[T any](list []T, i byte) (v T) {
	if len(list) == 0 {
		return v
	}
	return list[int(i)%len(list)]
}

// Kinds of targets of a change.
const (
	toHeader = iota
	toExt
	toRefTable
	toRefcount
	toL1
	toL2
	toMeta
	toLength
	toRaw
	toExtension
	toCopy
	toFlags
	targets
)

// maxChanges is how many changes are taken from a tape.
const maxChanges = 24

// mutate returns a copy of the image with the tape's changes.
func (b *baseImage) mutate(in tape) *sparseFile {
	f := b.f.clone()
	for n := 0; len(in) > 0 && n < maxChanges; n++ {
		b.change(f, &in)
	}
	f.changes = 0
	return f
}

// change applies one change. Whatever makes no sense changes nothing.
func (b *baseImage) change(f *sparseFile, in *tape) {
	h := b.h
	kind, index := in.byte(), in.byte()
	at, width := int64(-1), int64(8)
	switch kind % targets {
	case toHeader:
		x := pickOf(headerFields, index)
		at, width = x[0], x[1]
	case toExt:
		x := pickOf(b.extFields(), index)
		at, width = b.ext+x[0], x[1]
	case toRefTable:
		at = h.RefTableOffset + int64(index)*8
	case toRefcount:
		b.changeRefcount(f, index, in)
		return
	case toL1:
		at = h.L1Offset + int64(index)*8
	case toL2:
		at = pickOf(b.l2, index)
	case toMeta:
		at = h.Zoned.MetaOffset + int64(index)*8
		var p [8]byte
		old := forms[h.Zoned.Form].order
		_ = readPadded(f, p[:], at)
		old.PutUint64(p[:], b.value(in, old.Uint64(p[:])))
		f.put(p[:], at)
		return
	case toLength:
		if n := int64(b.value(in, uint64(f.size))); n >= 0 {
			f.zero(n, max(f.size-n, 0))
			f.size = n
		}
		return
	case toRaw: // anywhere
		at = pickOf(b.places, index) + int64(in.byte())*8
	case toExtension:
		// An extension behind the zoned one, whose length is anything.
		kinds := []uint32{extEnd, extBackingFmt, extFeatureNames, extBitmaps, extCrypto, extDataFile, extZoned, 9}
		p := binary.BigEndian.AppendUint32(nil, pickOf(kinds, index))
		f.put(binary.BigEndian.AppendUint32(p, uint32(b.value(in, 8))), b.ext+int64(layouts[h.Zoned.Layout].size+7)&^7+int64(in.byte()%8)*8)
		return
	case toCopy: // one structure over another
		from, to := pickOf(b.places, index), pickOf(b.places, in.byte())
		p := make([]byte, min(h.ClusterSize(), 64<<10))
		_ = readPadded(f, p, from)
		f.put(p, to)
		return
	case toFlags:
		at = pickOf(b.l2, index)
		if index >= 128 {
			at = h.L1Offset + int64(index-128)*8
		}
		var p [8]byte
		_ = readPadded(f, p[:], at)
		flags := []uint64{flagCopied, flagCompressed, flagZero, flagCopied | flagZero, flagCopied | flagCompressed, 2, 1 << 61, 1 << 56}
		binary.BigEndian.PutUint64(p[:], binary.BigEndian.Uint64(p[:])^pickOf(flags, in.byte()))
		f.put(p[:], at)
		return
	}
	var p [8]byte
	_ = readPadded(f, p[8-width:], at)
	binary.BigEndian.PutUint64(p[:], b.value(in, binary.BigEndian.Uint64(p[:])))
	if at >= 0 {
		f.put(p[8-width:], at)
	}
}

func (b *baseImage) changeRefcount(f *sparseFile, index byte, in *tape) {
	h := b.h
	block, i := pickOf(b.blocks, index>>6), int(in.byte())
	p := make([]byte, h.ClusterSize())
	_ = readPadded(f, p, block)
	if width := uint(1) << h.RefcountOrder; int64(i) < h.refBlockEntries() {
		setRefcount(p, h.RefcountOrder, i, b.value(in, refcountAt(p, h.RefcountOrder, i))&(1<<width-1))
		f.put(p, block)
	}
}

// value decodes a value that is to take the place of old.
func (b *baseImage) value(in *tape, old uint64) uint64 {
	cs := uint64(b.h.ClusterSize())
	kind, arg := in.byte(), in.byte()
	signed := uint64(int64(int8(arg)))
	switch kind % 16 {
	case 0:
		return uint64(arg)
	case 1:
		return uint64(arg) * cs
	case 2:
		return old + signed
	case 3:
		return old ^ 1<<(arg%64)
	case 4:
		return uint64(pickOf(b.places, arg)) | flagCopied
	case 5:
		return uint64(pickOf(b.places, arg))
	case 6:
		return 1 << (arg % 64)
	case 7:
		return 1<<(arg%64) - 1
	case 8:
		return old + signed*cs
	case 9:
		return uint64(b.f.size) + signed*cs
	case 10:
		return 1<<63 - uint64(arg)*cs
	case 11:
		return ^uint64(arg)
	case 12:
		return in.word()
	case 13:
		return old << (arg % 16)
	case 14:
		return uint64(pickOf(b.places, arg)) + sectorSize
	default:
		return old + signed*sectorSize
	}
}
