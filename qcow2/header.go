package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Header is the decoded header of an image: what the fixed part says, the
// zoned extension and what else has to be kept when the header is written.
// Offsets and sizes are bytes.
type Header struct {
	Version           uint32
	ClusterBits       uint32
	Size              uint64 // virtual disk size
	L1Size            uint32 // entries
	L1Offset          int64
	RefTableOffset    int64
	RefTableClusters  uint32
	RefcountOrder     uint32 // refcount width is 1<<order bits
	Incompatible      uint64
	Compatible        uint64
	Autoclear         uint64
	HeaderLength      uint32
	Zoned             Zoned
	UnknownExtensions []Extension // kept as found

	// NotBuilt names what the image needs and this program does not have. The
	// header and zonedmeta of such an image can be read, nothing else.
	NotBuilt []string
}

// Extension is a header extension as it stands in the file.
type Extension struct {
	Type uint32
	Data []byte
}

// ClusterSize is in bytes.
func (h *Header) ClusterSize() int64 { return 1 << h.ClusterBits }

// Dirty reports whether the refcounts mean nothing.
func (h *Header) Dirty() bool { return h.Incompatible&incompatDirty != 0 }

// l2Entries is the number of entries in an L2 table.
func (h *Header) l2Entries() int64 {
	if h.Incompatible&incompatExtL2 != 0 {
		return h.ClusterSize() / 16
	}
	return h.ClusterSize() / 8
}

// refBlockEntries is the number of refcounts in a refcount block.
func (h *Header) refBlockEntries() int64 { return h.ClusterSize() * 8 >> h.RefcountOrder }

// roundUp returns n rounded up to whole clusters.
func (h *Header) roundUp(n int64) int64 { return (n + h.ClusterSize() - 1) &^ (h.ClusterSize() - 1) }

// Zoned is the zoned extension with the form its zonedmeta is kept in.
type Zoned struct {
	Layout       Layout
	Form         EntryForm
	ZoneSize     uint64
	ZoneCapacity uint64
	Conventional uint32
	NrZones      uint32
	MaxActive    uint32 // 0: no limit
	MaxOpen      uint32 // 0: no limit
	MaxAppend    uint32 // bytes; 0: no limit of its own
	MetaSize     uint64 // bytes
	MetaOffset   int64
}

// ZoneStart is the device offset of zone i.
func (h *Header) ZoneStart(i uint32) uint64 { return uint64(i) * h.Zoned.ZoneSize }

// ZoneLength is the length of zone i; only the last one may be short.
func (h *Header) ZoneLength(i uint32) uint64 {
	return min(h.Zoned.ZoneSize, h.Size-h.ZoneStart(i))
}

// ZoneCapacity is what can be written to zone i: all of a conventional zone.
func (h *Header) ZoneCapacity(i uint32) uint64 {
	if i < h.Zoned.Conventional {
		return h.ZoneLength(i)
	}
	return min(h.Zoned.ZoneCapacity, h.ZoneLength(i))
}

// ErrNotZoned is wrapped by ReadHeader's error for a sound qcow2 image without
// the zoned extension.
var ErrNotZoned = errors.New("not a zoned image")

// ReadHeader decodes and validates the header of an image, its extensions and
// the places of all tables that the header names, and finds out how zonedmeta is
// stored; what its entries say is for ReadPointers and Check to judge. An error
// says which field has which value and what it should be. Nothing is written.
//
// An image that needs what is not built is no error: see Header.Built.
//
// Limits that are no limits, because no more zones than that are sequential,
// are reported as 0.
func ReadHeader(f File) (*Header, error) {
	h, _, err := readHeader(f)
	return h, err
}

// readHeader is ReadHeader, and returns zonedmeta as it is stored. It reads in
// two passes: where zonedmeta is and what it must hold is known first, and then
// it says how it holds it.
func readHeader(f File) (*Header, []byte, error) {
	h, err := readFields(f)
	if err != nil {
		return nil, nil, err
	}
	meta := make([]byte, h.Zoned.MetaSize) // at most 8 * MaxZones
	if err := readPadded(f, meta, h.Zoned.MetaOffset); err != nil {
		return nil, nil, fmt.Errorf("read zonedmeta: %w", err)
	}
	h.detectForm(meta)
	return h, meta, nil
}

// Built returns an error that names what the image needs and this program does
// not have, nil if that is nothing.
func (h *Header) Built() error {
	switch len(h.NotBuilt) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("the image uses %s, which is not built", h.NotBuilt[0])
	default:
		return fmt.Errorf("the image uses %s, which are not built", strings.Join(h.NotBuilt, ", "))
	}
}

// readFields reads and validates everything but what zonedmeta holds.
func readFields(f File) (*Header, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	var fixed [offCompressionType + 8]byte
	if err := readPadded(f, fixed[:], 0); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	be := binary.BigEndian
	if m := be.Uint32(fixed[offMagic:]); m != magic {
		return nil, fmt.Errorf("not a qcow2 image: it begins with %#08x, not %#08x", m, uint32(magic))
	}
	if size > maxFileBytes {
		return nil, fmt.Errorf("the file is %d bytes long: entries can refer to the first %d only", size, int64(maxFileBytes))
	}
	h := &Header{
		Version:          be.Uint32(fixed[offVersion:]),
		ClusterBits:      be.Uint32(fixed[offClusterBits:]),
		Size:             be.Uint64(fixed[offSize:]),
		L1Size:           be.Uint32(fixed[offL1Size:]),
		L1Offset:         int64(be.Uint64(fixed[offL1Offset:])),
		RefTableOffset:   int64(be.Uint64(fixed[offRefTableOffset:])),
		RefTableClusters: be.Uint32(fixed[offRefTableClusters:]),
		Incompatible:     be.Uint64(fixed[offIncompatible:]),
		Compatible:       be.Uint64(fixed[offCompatible:]),
		Autoclear:        be.Uint64(fixed[offAutoclear:]),
		RefcountOrder:    be.Uint32(fixed[offRefcountOrder:]),
		HeaderLength:     be.Uint32(fixed[offHeaderLength:]),
	}
	if err := h.checkFrame(); err != nil {
		return nil, err
	}

	ext, err := readExtensions(f, h, size)
	if err != nil {
		return nil, err
	}
	h.UnknownExtensions = ext.unknown
	if err := h.checkFeatures(fixed[:], ext); err != nil {
		return nil, err
	}
	if err := h.checkTables(size); err != nil {
		return nil, err
	}
	if err := h.decodeZoned(ext.zoned); err != nil {
		return nil, fmt.Errorf("zoned extension: %w", err)
	}
	if err := h.checkZoned(); err != nil {
		return nil, fmt.Errorf("zoned extension: %w", err)
	}
	if err := h.checkPlaces(size); err != nil {
		return nil, err
	}
	h.Zoned.normalizeLimits()
	return h, nil
}

// encode returns the header as it begins the file, a multiple of sectors that
// fits into the first cluster. The zoned extension comes first, so that it is
// in the first sector together with the feature bits and both change at once.
func (h *Header) encode() ([]byte, error) {
	be := binary.BigEndian
	b := make([]byte, offCompressionType+8, h.ClusterSize())
	be.PutUint32(b[offMagic:], magic)
	be.PutUint32(b[offVersion:], 3)
	be.PutUint32(b[offClusterBits:], h.ClusterBits)
	be.PutUint64(b[offSize:], h.Size)
	be.PutUint32(b[offL1Size:], h.L1Size)
	be.PutUint64(b[offL1Offset:], uint64(h.L1Offset))
	be.PutUint32(b[offRefcountOrder:], h.RefcountOrder)
	be.PutUint32(b[offHeaderLength:], uint32(len(b)))
	h.patch(b)

	b = appendExtension(b, Extension{extZoned, h.Zoned.encode()})
	room := int(h.ClusterSize()) - len(b) - 8 // the end mark
	for _, e := range h.UnknownExtensions {
		room -= 8 + (len(e.Data)+7)&^7
	}
	if room < 0 {
		return nil, fmt.Errorf("the header extensions do not fit into a cluster of %d bytes", h.ClusterSize())
	}
	if names := featureNameTable(room - 8); len(names) > 0 {
		b = appendExtension(b, Extension{extFeatureNames, names})
	}
	for _, e := range h.UnknownExtensions {
		b = appendExtension(b, e)
	}
	b = appendExtension(b, Extension{Type: extEnd})
	return append(b, make([]byte, -len(b)&(sectorSize-1))...), nil
}

// patch sets the fields that change during an image's life. All lie in the
// first sector, which is written whole or not at all (I7).
func (h *Header) patch(sector []byte) {
	be := binary.BigEndian
	be.PutUint64(sector[offIncompatible:], h.Incompatible)
	be.PutUint64(sector[offCompatible:], h.Compatible)
	be.PutUint64(sector[offAutoclear:], h.Autoclear)
	be.PutUint64(sector[offRefTableOffset:], uint64(h.RefTableOffset))
	be.PutUint32(sector[offRefTableClusters:], h.RefTableClusters)
}

// readPadded fills p from off. What lies beyond the end of the file reads as
// zeros: the last cluster of an image may be incomplete.
func readPadded(f io.ReaderAt, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n < len(p) && !errors.Is(err, io.EOF) {
		return err
	}
	clear(p[n:])
	return nil
}
