package qcow2

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

// Zoned is the zoned extension with the form its zonedmeta is kept in.
type Zoned struct {
	Layout       Layout
	ZoneSize     uint64
	ZoneCapacity uint64
	Conventional uint32
	NrZones      uint32
	MaxActive    uint32 // 0: no limit
	MaxOpen      uint32 // 0: no limit
	MaxAppend    uint32 // bytes
	MetaSize     uint64 // bytes
	MetaOffset   int64
}

// Layout names a form of the zoned extension and of the zonedmeta entries.
// Only v9 is built.
type Layout uint8

// LayoutV9 is the 56-byte payload with little-endian entries whose
// conventional flag is bit 59; it is what create writes.
const LayoutV9 Layout = 1
