package qcow2

// Values of the qcow2 format (QEMU's docs/interop/qcow2). Our own limits are
// in limits.go.
const (
	magic = 0x514649fb // "QFI\xfb"

	// Incompatible feature bits.
	incompatDirty       = 1 << 0
	incompatCorrupt     = 1 << 1
	incompatDataFile    = 1 << 2
	incompatCompression = 1 << 3
	incompatExtL2       = 1 << 4
	incompatZoned       = 1 << 5

	// Compatible feature bits.
	compatLazyRefcounts = 1 << 0

	// Autoclear feature bits.
	autoclearBitmaps = 1 << 0

	// Header extension types.
	extEnd          = 0x00000000
	extBackingFmt   = 0xe2792aca
	extFeatureNames = 0x6803f857
	extBitmaps      = 0x23852875
	extCrypto       = 0x0537be77
	extDataFile     = 0x44415441
	extZoned        = 0x007a6264

	minClusterBits   = 9
	maxClusterBits   = 21
	maxRefcountOrder = 6

	// The fixed header of version 3 ends here; later additions follow up to
	// header_length.
	minHeaderLength = 104

	// A sector is what a disk writes whole or not at all, and the unit in which
	// write pointers and capacities are counted.
	sectorSize = 512
)

// Offsets of the fixed header's fields.
const (
	offMagic            = 0
	offVersion          = 4
	offBackingOffset    = 8
	offBackingLength    = 16
	offClusterBits      = 20
	offSize             = 24
	offCrypt            = 32
	offL1Size           = 36
	offL1Offset         = 40
	offRefTableOffset   = 48
	offRefTableClusters = 56
	offNbSnapshots      = 60
	offSnapshotsOffset  = 64
	offIncompatible     = 72
	offCompatible       = 80
	offAutoclear        = 88
	offRefcountOrder    = 96
	offHeaderLength     = 100
	offCompressionType  = 104
)

const entryOffsetMask = 0x00fffffffffffe00

const (
	flagCopied     = 1 << 63
	flagCompressed = 1 << 62
	flagZero       = 1 << 0
)

// L1Entry is one entry of the L1 table: where an L2 table is.
type L1Entry uint64

// Offset is the L2 table's byte offset in the file; 0 means none.
func (e L1Entry) Offset() int64 { return int64(e & entryOffsetMask) }

// Copied reports whether the table's refcount is exactly one.
func (e L1Entry) Copied() bool { return e&flagCopied != 0 }

// Reserved returns the bits that must be zero.
func (e L1Entry) Reserved() uint64 { return uint64(e) &^ (entryOffsetMask | flagCopied) }

// L2Entry is one standard (16-byte extended entries are not built) entry of an
// L2 table: where a guest cluster is.
type L2Entry uint64

// Offset is the cluster's byte offset in the file; 0 means none. It is
// meaningless for a compressed entry.
func (e L2Entry) Offset() int64 { return int64(e & entryOffsetMask) }

// Copied reports whether the cluster's refcount is exactly one.
func (e L2Entry) Copied() bool { return e&flagCopied != 0 }

// Compressed reports whether the entry describes a compressed cluster.
func (e L2Entry) Compressed() bool { return e&flagCompressed != 0 }

// Zero reports whether the cluster reads as zeros whatever is stored there.
func (e L2Entry) Zero() bool { return e&flagZero != 0 }

// Reserved returns the bits that must be zero in a standard entry.
func (e L2Entry) Reserved() uint64 {
	return uint64(e) &^ (entryOffsetMask | flagCopied | flagCompressed | flagZero)
}

// Writable reports whether the cluster may be written in place.
func (e L2Entry) Writable() bool {
	return e.Offset() != 0 && e.Copied() && !e.Compressed() && !e.Zero()
}

// compressedRange is where a compressed entry's data lies (docs/interop/qcow2,
// Compressed Clusters Descriptor): the rest of the first 512-byte sector and
// so many more.
func (e L2Entry) compressedRange(clusterBits uint32) (off, n int64) {
	x := 62 - (clusterBits - 8)
	off = int64(uint64(e) & (1<<x - 1))
	more := int64(uint64(e) & (flagCompressed - 1) >> x)
	return off, sectorSize - off%sectorSize + more*sectorSize
}

// refcountAt returns refcount i of a block whose refcounts are 1<<order bits
// wide (docs/interop/qcow2, Refcount blocks: big-endian, and below a byte the
// lowest bits first).
func refcountAt(block []byte, order uint32, i int) uint64 {
	if order < 3 {
		bits := 1 << order
		at := i * bits
		return uint64(block[at/8]>>(at%8)) & (1<<bits - 1)
	}
	n := 1 << (order - 3)
	v := uint64(0)
	for _, b := range block[i*n : i*n+n] {
		v = v<<8 | uint64(b)
	}
	return v
}

// setRefcount stores refcount i. The value must fit.
func setRefcount(block []byte, order uint32, i int, v uint64) {
	if order < 3 {
		bits := 1 << order
		at := i * bits
		mask := byte(1<<bits-1) << (at % 8)
		block[at/8] = block[at/8]&^mask | byte(v)<<(at%8)&mask
		return
	}
	n := 1 << (order - 3)
	b := block[i*n : i*n+n]
	for k := n - 1; k >= 0; k-- {
		b[k], v = byte(v), v>>8
	}
}
