package qcow2

import "fmt"

// zonedmeta is one 64-bit word per zone: the absolute byte offset of the write
// pointer on the device, and a flag for a conventional zone. What lies at or
// above start + capacity means full.

// encodeEntry stores zone i's write pointer, absolute on the device, into the
// first 8 bytes of b. A conventional zone's is always its start.
func (h *Header) encodeEntry(b []byte, i uint32, wp uint64) {
	conventional := i < h.Zoned.Conventional
	if conventional {
		wp = h.ZoneStart(i)
	}
	h.Zoned.Form.encode(b, wp, conventional)
}

// finishedPointer is what the layout stores for zone i when a finish made it
// full; writing it full stores start + capacity. Both read as full.
func (h *Header) finishedPointer(i uint32) uint64 {
	if layouts[h.Zoned.Layout].finishFills {
		return h.ZoneStart(i) + h.Zoned.ZoneSize
	}
	return h.ZoneStart(i) + h.ZoneCapacity(i)
}

// fault is what is wrong with an entry.
type fault uint8

const (
	sound fault = iota
	flagged
	unflagged
	outside
	unaligned
	moved
)

// readEntry splits zone i's entry in the first 8 bytes of b and judges it.
func (h *Header) readEntry(form EntryForm, b []byte, i uint32) (wp uint64, f fault) {
	wp, conventional := form.decode(b)
	start := h.ZoneStart(i)
	switch {
	case conventional && i >= h.Zoned.Conventional:
		return wp, flagged
	case !conventional && i < h.Zoned.Conventional:
		return wp, unflagged
	case wp < start || wp > start+h.Zoned.ZoneSize:
		return wp, outside
	case wp%sectorSize != 0:
		return wp, unaligned
	case conventional && wp != start:
		return wp, moved
	}
	return wp, sound
}

// storedPointer returns zone i's write pointer from the first 8 bytes of b as
// it is stored: that of a full zone may lie above its capacity. It is an error
// if the entry is not one of that zone.
func (h *Header) storedPointer(b []byte, i uint32) (uint64, error) {
	form := h.Zoned.Form
	wp, f := h.readEntry(form, b, i)
	rule := ""
	switch start := h.ZoneStart(i); f {
	case sound:
		return wp, nil
	case flagged:
		rule = fmt.Sprintf("the conventional flag, bit %d, must not be set, as only the first %d zones are conventional", form.FlagBit(), h.Zoned.Conventional)
	case unflagged:
		rule = fmt.Sprintf("the conventional flag, bit %d, must be set, as the first %d zones are conventional", form.FlagBit(), h.Zoned.Conventional)
	case outside:
		rule = fmt.Sprintf("the write pointer must be %#x to %#x", start, start+h.Zoned.ZoneSize)
	case unaligned:
		rule = fmt.Sprintf("the write pointer must be a multiple of %d", sectorSize)
	case moved:
		rule = fmt.Sprintf("that of a conventional zone must be its start, %#x", start)
	}
	return 0, fmt.Errorf("zonedmeta of zone %d is %#x (%s): %s", i, forms[form].order.Uint64(b), form.ByteOrder(), rule)
}

// decodeEntry is storedPointer with a full zone's pointer at start + capacity.
func (h *Header) decodeEntry(b []byte, i uint32) (uint64, error) {
	wp, err := h.storedPointer(b, i)
	return min(wp, h.ZoneStart(i)+h.ZoneCapacity(i)), err
}

// detectForm sets h.Zoned.Form to the form in which every entry is one that its
// zone may have: if that of the layout is, to that, and else to the first. An
// image in which none is is corrupt; it gets the form that fits most entries, so
// that whoever decodes them finds those that are wrong.
//
// Reading in the layout's own form is stable: whatever is written in it is read
// in it again. So is a form of the other byte order where it cannot happen that
// all entries make sense either way (checkForm). Forms that differ in nothing
// but the flag are the same unless a zone is conventional.
func (h *Header) detectForm(meta []byte) {
	usual := layouts[h.Zoned.Layout].usual
	best, most := usual, uint32(0)
	for _, form := range [...]EntryForm{usual, LittleEndian59, BigEndian63, BigEndian59} {
		n := uint32(0)
		for i := range h.Zoned.NrZones {
			if _, f := h.readEntry(form, meta[8*i:], i); f == sound {
				n++
			}
		}
		if n > most {
			best, most = form, n
		}
		if n == h.Zoned.NrZones {
			break
		}
	}
	h.Zoned.Form = best
}

// maxTurnedZone is the zone size up to which an entry in the wrong byte order is
// recognised whatever it is: pointers of 0 apart, which are the same in both,
// one of the two has a bit above the end of the zone.
const maxTurnedZone = 2 << 30

// checkForm refuses to write to an image whose entries are not stored as its
// layout usually has them if what is written could make both byte orders fit:
// then a later open would read other pointers. A conventional zone's flag tells
// the forms apart for ever.
func (h *Header) checkForm() error {
	z := &h.Zoned
	usual := layouts[z.Layout].usual
	if z.Form.ByteOrder() == usual.ByteOrder() || z.Conventional != 0 || z.ZoneSize <= maxTurnedZone {
		return nil
	}
	return fmt.Errorf("zonedmeta is %s, where layout %s is usually %s: with a zone_size of %d, more than %d, and no conventional zone write pointers can come to fit both, so that the image can only be read",
		z.Form.ByteOrder(), z.Layout, usual.ByteOrder(), z.ZoneSize, maxTurnedZone)
}

// decodePointers decodes all of zonedmeta with decode, which is decodeEntry or
// storedPointer.
func decodePointers(h *Header, meta []byte, decode func(b []byte, i uint32) (uint64, error)) ([]uint64, error) {
	wps := make([]uint64, h.Zoned.NrZones)
	for i := range wps {
		wp, err := decode(meta[8*i:], uint32(i))
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
	h, meta, err := readHeader(f)
	if err != nil {
		return nil, nil, err
	}
	wps, err := decodePointers(h, meta, h.decodeEntry)
	if err != nil {
		return nil, nil, err
	}
	return h, wps, nil
}
