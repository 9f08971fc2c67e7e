package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// extensions is what the extension area of a header holds.
type extensions struct {
	zoned    []byte // payload; nil if there is none
	features []byte // the feature name table's payload
	types    map[uint32]bool
	unknown  []Extension // neither of the two above
}

// readExtensions reads the header extensions: from the end of the header to
// the end mark or the end of the first cluster (docs/interop/qcow2, Header
// extensions).
func readExtensions(f File, h *Header, fileSize int64) (extensions, error) {
	x := extensions{types: make(map[uint32]bool)}
	at, end := int64(h.HeaderLength), min(h.ClusterSize(), fileSize)
	for n := 0; end-at >= 8; n++ {
		var head [8]byte
		if err := readPadded(f, head[:], at); err != nil {
			return x, fmt.Errorf("read header extensions: %w", err)
		}
		kind, length := binary.BigEndian.Uint32(head[:]), int64(binary.BigEndian.Uint32(head[4:]))
		if kind == extEnd {
			break
		}
		if length > end-at-8 {
			return x, fmt.Errorf("header extension %#08x at %d is %d bytes long: only %d are left in the first cluster",
				kind, at, length, end-at-8)
		}
		if n == maxExtensions {
			return x, fmt.Errorf("the header has more than %d extensions", maxExtensions)
		}
		data := make([]byte, length) // less than a cluster
		if err := readPadded(f, data, at+8); err != nil {
			return x, fmt.Errorf("read header extensions: %w", err)
		}
		switch {
		case kind == extZoned && x.types[kind]:
			return x, fmt.Errorf("header extension %#08x (zoned) at %d is there twice", kind, at)
		case kind == extZoned:
			x.zoned = data
		case kind == extFeatureNames:
			x.features = data
		default:
			x.unknown = append(x.unknown, Extension{kind, data})
		}
		x.types[kind] = true
		at += 8 + (length+7)&^7
	}
	return x, nil
}

// appendExtension appends an extension, padded to 8 bytes.
func appendExtension(b []byte, e Extension) []byte {
	b = binary.BigEndian.AppendUint32(b, e.Type)
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Data)))
	b = append(b, e.Data...)
	return append(b, make([]byte, -len(e.Data)&7)...)
}

// feature is one entry of the feature name table: 48 bytes, type 0
// incompatible, 1 compatible, 2 autoclear.
type feature struct {
	kind, bit uint8
	name      string
}

const featureEntrySize = 48

// featureNames are QEMU's. The zoned bit leads: where clusters are small only
// the first few fit.
var featureNames = []feature{
	{0, 5, "zoned format"},
	{0, 0, "dirty bit"},
	{0, 1, "corrupt bit"},
	{1, 0, "lazy refcounts"},
	{0, 2, "external data file"},
	{0, 3, "compression type"},
	{0, 4, "extended L2 entries"},
	{2, 0, "bitmaps"},
	{2, 1, "raw external data"},
}

// featureNameTable returns as many names as fit into room bytes.
func featureNameTable(room int) []byte {
	var b []byte
	for _, f := range featureNames {
		if len(b)+featureEntrySize > room {
			break
		}
		var e [featureEntrySize]byte
		e[0], e[1] = f.kind, f.bit
		copy(e[2:], f.name)
		b = append(b, e[:]...)
	}
	return b
}

// nameBits names feature bits by an image's own table.
func nameBits(table []byte, kind uint8, set uint64) string {
	var names []string
	for set != 0 {
		bit := uint8(bits.TrailingZeros64(set))
		set &^= 1 << bit
		name := strconv.Itoa(int(bit))
		for t := table; len(t) >= featureEntrySize; t = t[featureEntrySize:] {
			if t[0] == kind && t[1] == bit {
				s, _, _ := bytes.Cut(t[2:featureEntrySize], []byte{0})
				name += fmt.Sprintf(" (%q)", s)
				break
			}
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}
