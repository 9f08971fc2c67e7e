package qcow2

import (
	"encoding/binary"
	"fmt"
)

// Layout names a form of the zoned extension's payload. An image keeps the one
// that it was found with.
type Layout uint8

const (
	LayoutV9    Layout = 1 + iota // versions 8 to 10 of the series; what create writes
	LayoutV7                      // version 7: 32-bit zone sizes
	Layout2026a                   // upstream's rework: the number of zones first
	Layout2026b                   // its newest, not final form: no append limit
)

func (l Layout) String() string {
	if int(l) < len(layouts) && layouts[l].name != "" {
		return layouts[l].name
	}
	return fmt.Sprintf("layout(%d)", uint8(l))
}

// MarshalText makes a layout its name in JSON.
func (l Layout) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// EntryForm is how the entries of zonedmeta are stored: their byte order, and
// the bit that marks a conventional zone. The header does not say it; it is
// found out from the entries (detectForm).
type EntryForm uint8

const (
	LittleEndian59 EntryForm = 1 + iota // every build of the series on x86
	BigEndian63                         // upstream's rework
	BigEndian59                         // a build of the series on a big-endian machine
)

// forms are the entry forms in the order in which they are tried.
var forms = [...]struct {
	order binary.ByteOrder
	flag  uint // the bit
}{
	LittleEndian59: {binary.LittleEndian, 59},
	BigEndian63:    {binary.BigEndian, 63},
	BigEndian59:    {binary.BigEndian, 59},
}

// ByteOrder names the byte order.
func (f EntryForm) ByteOrder() string {
	if forms[f].order == binary.ByteOrder(binary.BigEndian) {
		return "big-endian"
	}
	return "little-endian"
}

// FlagBit is the bit of a conventional zone.
func (f EntryForm) FlagBit() uint { return forms[f].flag }

// decode splits a stored entry.
func (f EntryForm) decode(b []byte) (wp uint64, conventional bool) {
	flag := uint64(1) << forms[f].flag
	v := forms[f].order.Uint64(b)
	return v &^ flag, v&flag != 0
}

// encode stores an entry.
func (f EntryForm) encode(b []byte, wp uint64, conventional bool) {
	if conventional {
		wp |= 1 << forms[f].flag
	}
	forms[f].order.PutUint64(b, wp)
}

// field is where a payload has a big-endian number. A layout without it has a
// width of 0.
type field struct{ at, width int }

func (f field) get(p []byte) (v uint64) {
	for _, b := range p[f.at : f.at+f.width] {
		v = v<<8 | uint64(b)
	}
	return v
}

func (f field) put(p []byte, v uint64) {
	for i := f.at + f.width - 1; i >= f.at; i-- {
		p[i], v = byte(v), v>>8
	}
}

// layout describes a payload. All begin with the model and three reserved
// bytes.
type layout struct {
	name  string
	size  int       // bytes
	usual EntryForm // of the entries, unless they say something else
	// finishFills: what finish stores for a zone is the end of the zone, not
	// that of its capacity.
	finishFills bool

	zoneSize, zoneCapacity        field
	conventional, nrZones         field
	maxActive, maxOpen, maxAppend field
	metaSize, metaOffset          field
}

var layouts = [...]layout{
	LayoutV9: {
		name: "v9", size: 56, usual: LittleEndian59, finishFills: true,
		zoneSize: field{4, 8}, zoneCapacity: field{12, 8}, conventional: field{20, 4}, nrZones: field{24, 4},
		maxActive: field{28, 4}, maxOpen: field{32, 4}, maxAppend: field{36, 4},
		metaSize: field{40, 8}, metaOffset: field{48, 8},
	},
	LayoutV7: {
		name: "v7", size: 48, usual: LittleEndian59, finishFills: true,
		zoneSize: field{4, 4}, zoneCapacity: field{8, 4}, conventional: field{12, 4}, nrZones: field{16, 4},
		maxActive: field{20, 4}, maxOpen: field{24, 4}, maxAppend: field{28, 4},
		metaSize: field{32, 8}, metaOffset: field{40, 8},
	},
	Layout2026a: {
		name: "2026a", size: 48, usual: BigEndian63,
		nrZones: field{4, 4}, zoneSize: field{8, 8}, zoneCapacity: field{16, 8}, conventional: field{24, 4},
		maxActive: field{28, 4}, maxOpen: field{32, 4}, maxAppend: field{36, 4},
		metaOffset: field{40, 8},
	},
	Layout2026b: {
		name: "2026b", size: 44, usual: BigEndian63,
		nrZones: field{4, 4}, zoneSize: field{8, 8}, zoneCapacity: field{16, 8}, metaOffset: field{24, 8},
		conventional: field{32, 4}, maxActive: field{36, 4}, maxOpen: field{40, 4},
	},
}

const modelHostManaged = 1

// decodeZoned decodes the zoned extension's payload into h.Zoned, with the
// layout's usual form of entries. The fields' values are checked by checkZoned.
func (h *Header) decodeZoned(p []byte) error {
	id, err := h.layoutOf(p)
	if err != nil {
		return err
	}
	l := &layouts[id]
	h.Zoned = Zoned{
		Layout:       id,
		Form:         l.usual,
		ZoneSize:     l.zoneSize.get(p),
		ZoneCapacity: l.zoneCapacity.get(p),
		Conventional: uint32(l.conventional.get(p)),
		NrZones:      uint32(l.nrZones.get(p)),
		MaxActive:    uint32(l.maxActive.get(p)),
		MaxOpen:      uint32(l.maxOpen.get(p)),
		MaxAppend:    uint32(l.maxAppend.get(p)),
		MetaSize:     l.metaSize.get(p),
		MetaOffset:   int64(l.metaOffset.get(p)),
	}
	if l.metaSize.width == 0 {
		h.Zoned.MetaSize = 8 * uint64(h.Zoned.NrZones)
	}
	return nil
}

// layoutOf finds out a payload's layout: by its length, and where two have the
// same by the number of zones, which follows from the virtual size.
func (h *Header) layoutOf(p []byte) (Layout, error) {
	var fit []Layout
	known := false
	for id, l := range layouts {
		if l.name == "" || l.size != len(p) {
			continue
		}
		known = true
		if l.size != layouts[LayoutV7].size || h.zoneCount(l.zoneSize.get(p)) == l.nrZones.get(p) {
			fit = append(fit, Layout(id))
		}
	}
	switch {
	case !known:
		return 0, fmt.Errorf("its payload is %d bytes: layout v9 has %d, v7 and 2026a have %d, 2026b has %d",
			len(p), layouts[LayoutV9].size, layouts[LayoutV7].size, layouts[Layout2026b].size)
	case p[0] == 0:
		return 0, fmt.Errorf("zoned is 0 (not zoned), but feature bit 5 says that the image is zoned")
	case p[0] != modelHostManaged:
		return 0, fmt.Errorf("zoned is %d: only model 1 (host-managed) is known", p[0])
	case p[1]|p[2]|p[3] != 0:
		return 0, fmt.Errorf("reserved bytes 1 to 3 are %#02x %#02x %#02x: they must be zero", p[1], p[2], p[3])
	case len(fit) == 1:
		return fit[0], nil
	}
	v7, a := &layouts[LayoutV7], &layouts[Layout2026a]
	format := "its payload of %d bytes fits neither layout v7 (nr_zones %d, zone_size %d) nor layout 2026a (nr_zones %d, zone_size %d): nr_zones must be the number of zones of zone_size in %d bytes"
	if len(fit) > 1 {
		format = "its payload of %d bytes fits both layout v7 (nr_zones %d, zone_size %d) and layout 2026a (nr_zones %d, zone_size %d): only one nr_zones may be the number of zones of zone_size in %d bytes"
	}
	return 0, fmt.Errorf(format, len(p), v7.nrZones.get(p), v7.zoneSize.get(p), a.nrZones.get(p), a.zoneSize.get(p), h.Size)
}

// encode returns the payload in its layout.
func (z *Zoned) encode() []byte {
	l := &layouts[z.Layout]
	p := make([]byte, l.size)
	p[0] = modelHostManaged
	l.zoneSize.put(p, z.ZoneSize)
	l.zoneCapacity.put(p, z.ZoneCapacity)
	l.conventional.put(p, uint64(z.Conventional))
	l.nrZones.put(p, uint64(z.NrZones))
	l.maxActive.put(p, uint64(z.MaxActive))
	l.maxOpen.put(p, uint64(z.MaxOpen))
	l.maxAppend.put(p, uint64(z.MaxAppend))
	l.metaSize.put(p, z.MetaSize)
	l.metaOffset.put(p, uint64(z.MetaOffset))
	return p
}
