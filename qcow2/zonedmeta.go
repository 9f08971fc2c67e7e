package qcow2

import (
	"encoding/binary"
	"fmt"
)

// zonedmeta is one 64-bit word per zone: the absolute byte offset of the write
// pointer on the device, and a flag for a conventional zone. What lies at or
// above start + capacity means full.

// entryForm is how a layout stores an entry.
type entryForm struct {
	order        binary.ByteOrder
	conventional uint64 // the flag
}

const v9Conventional = 1 << 59

// form returns how the image's entries are stored.
func (z *Zoned) form() entryForm {
	return entryForm{binary.LittleEndian, v9Conventional}
}

// decode splits a stored entry.
func (e entryForm) decode(b []byte) (wp uint64, conventional bool) {
	v := e.order.Uint64(b)
	return v &^ e.conventional, v&e.conventional != 0
}

// encode stores an entry.
func (e entryForm) encode(b []byte, wp uint64, conventional bool) {
	if conventional {
		wp |= e.conventional
	}
	e.order.PutUint64(b, wp)
}

// encodeEntry stores zone i's write pointer, absolute on the device, into the
// first 8 bytes of b. A conventional zone's is always its start.
func (h *Header) encodeEntry(b []byte, i uint32, wp uint64) {
	conventional := i < h.Zoned.Conventional
	if conventional {
		wp = h.ZoneStart(i)
	}
	h.Zoned.form().encode(b, wp, conventional)
}

// finishedPointer is what layout v9 stores for zone i when a finish made it
// full; writing it full stores start + capacity. Both read as full.
func (h *Header) finishedPointer(i uint32) uint64 { return h.ZoneStart(i) + h.Zoned.ZoneSize }

// decodeEntry returns zone i's write pointer from the first 8 bytes of b:
// absolute on the device, from the zone's start to its start + capacity. It is
// an error if the entry is not one of that zone.
func (h *Header) decodeEntry(b []byte, i uint32) (uint64, error) {
	wp, conventional := h.Zoned.form().decode(b)
	start, end := h.ZoneStart(i), h.finishedPointer(i)
	switch {
	case conventional && i >= h.Zoned.Conventional:
		return 0, fmt.Errorf("zonedmeta of zone %d is %#x with the conventional flag: only the first %d zones are conventional",
			i, wp, h.Zoned.Conventional)
	case !conventional && i < h.Zoned.Conventional:
		return 0, fmt.Errorf("zonedmeta of zone %d is %#x without the conventional flag: the first %d zones are conventional",
			i, wp, h.Zoned.Conventional)
	case wp < start || wp > end:
		return 0, fmt.Errorf("zonedmeta of zone %d is %#x: the write pointer must be %#x to %#x", i, wp, start, end)
	case wp%sectorSize != 0:
		return 0, fmt.Errorf("zonedmeta of zone %d is %#x: the write pointer must be a multiple of %d", i, wp, sectorSize)
	case conventional && wp != start:
		return 0, fmt.Errorf("zonedmeta of zone %d is %#x: that of a conventional zone must be its start, %#x", i, wp, start)
	}
	return min(wp, start+h.ZoneCapacity(i)), nil
}

// readZonedMeta returns every zone's write pointer, absolute on the device and
// at most start + capacity; a conventional zone's is its start.
func readZonedMeta(f File, h *Header) ([]uint64, error) {
	raw := make([]byte, h.Zoned.MetaSize) // at most 8 * MaxZones
	if err := readPadded(f, raw, h.Zoned.MetaOffset); err != nil {
		return nil, fmt.Errorf("read zonedmeta: %w", err)
	}
	wps := make([]uint64, h.Zoned.NrZones)
	for i := range wps {
		wp, err := h.decodeEntry(raw[8*i:], uint32(i))
		if err != nil {
			return nil, err
		}
		wps[i] = wp
	}
	return wps, nil
}

// ReadPointers reads an image's header and its zones' write pointers: absolute
// on the device, in bytes, from a zone's start to its start + capacity.
// A conventional zone's is its start.
func ReadPointers(f File) (*Header, []uint64, error) {
	h, err := ReadHeader(f)
	if err != nil {
		return nil, nil, err
	}
	wps, err := readZonedMeta(f, h)
	if err != nil {
		return nil, nil, err
	}
	return h, wps, nil
}
