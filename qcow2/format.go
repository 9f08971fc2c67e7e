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

	// Header extension types.
	extEnd          = 0x00000000
	extBackingFmt   = 0xe2792aca
	extFeatureNames = 0x6803f857
	extBitmaps      = 0x23852875
	extCrypto       = 0x0537be77
	extDataFile     = 0x44415441
	extZoned        = 0x007a6264

	minClusterBits = 9
	maxClusterBits = 21
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
