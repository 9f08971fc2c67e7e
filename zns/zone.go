package zns

import "fmt"

// SectorSize is the smallest unit a write pointer moves by, in bytes: the
// granularity of the qcow2 zoned extension.
const SectorSize = 512

// Cond is a zone condition. The values are those of enum blk_zone_cond.
type Cond uint8

// The zone conditions of the zone state machine (ZNS 2.2, ZBC 4.4).
const (
	CondNotWP    Cond = 0x0 // conventional: no write pointer
	CondEmpty    Cond = 0x1
	CondImpOpen  Cond = 0x2
	CondExpOpen  Cond = 0x3
	CondClosed   Cond = 0x4
	CondReadOnly Cond = 0xd
	CondFull     Cond = 0xe
	CondOffline  Cond = 0xf
)

// Open reports whether the condition counts against max_open_zones.
func (c Cond) Open() bool { return c == CondImpOpen || c == CondExpOpen }

// Active reports whether the condition counts against max_active_zones.
func (c Cond) Active() bool { return c.Open() || c == CondClosed }

func (c Cond) String() string {
	switch c {
	case CondNotWP:
		return "not-wp"
	case CondEmpty:
		return "empty"
	case CondImpOpen:
		return "implicit-open"
	case CondExpOpen:
		return "explicit-open"
	case CondClosed:
		return "closed"
	case CondReadOnly:
		return "read-only"
	case CondFull:
		return "full"
	case CondOffline:
		return "offline"
	}
	return fmt.Sprintf("cond-%#x", uint8(c))
}

// Type is a zone type. The values are those of enum blk_zone_type.
type Type uint8

// The zone types a host-managed device has.
const (
	TypeConventional Type = 1
	TypeSeqWriteReq  Type = 2
)

// Zone is one entry of a zone report. All fields are byte offsets on the
// device or lengths in bytes.
type Zone struct {
	Start    uint64
	Len      uint64
	Capacity uint64
	// WP is the absolute write pointer: what has been committed. It is
	// Start+Capacity for a full zone and Start for a conventional one.
	WP   uint64
	Type Type
	Cond Cond
}

// Geometry is what never changes about a zoned device while it is attached.
// Sizes are bytes.
type Geometry struct {
	Size         uint64 // NrZones * ZoneSize
	ZoneSize     uint64 // power of two
	ZoneCapacity uint64 // of every sequential zone, <= ZoneSize
	NrZones      uint32
	Conventional uint32 // the first N zones
	MaxOpen      uint32 // 0: no limit
	MaxActive    uint32 // 0: no limit
	MaxAppend    uint64 // largest zone append
	BlockSize    uint32 // write granularity: 512 or 4096
}

// ZoneOf returns the index of the zone that contains the byte offset off.
func (g Geometry) ZoneOf(off uint64) uint32 { return uint32(off / g.ZoneSize) }
