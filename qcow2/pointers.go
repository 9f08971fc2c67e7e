package qcow2

import (
	"slices"
	"sync"
)

// pointers are the write pointers in two images: staged, what requests have
// reached, and synced, what a sync has covered. zonedmeta is only ever written
// from synced: 64 zones share a sector, and writing it for one zone must not
// make a neighbour's newer pointer durable before that neighbour's data.
//
// A pointer is an absolute byte offset on the device as zonedmeta stores it,
// without the flag; a finished zone's lies above start+capacity.
//
// There are as many of everything as the device has zones: memory counts.
type pointers struct {
	h *Header // its zones never change

	mu     sync.Mutex // guards what follows; order: 6, innermost
	staged []uint64
	moved  bitmap   // zones whose staged pointer may differ from synced
	list   []uint32 // the same, in the order of moving
	// meta are the synced ones as zonedmeta has them, in whole sectors. Stored
	// by the syncer only, which reads it without the lock.
	meta []byte
}

// move is one zone's way in a round.
type move struct {
	zone uint32
	wp   uint64
}

func (p *pointers) init(h *Header, wps []uint64) {
	p.h = h
	p.staged = wps
	p.meta = make([]byte, (len(wps)+zonesPerSector-1)/zonesPerSector*sectorSize)
	for zone, wp := range wps {
		p.setSynced(uint32(zone), wp)
	}
	p.moved = newBitmap(int64(len(wps)))
}

// synced returns up to where a sync has covered the zone. mu is held, or the
// caller is the syncer.
func (p *pointers) synced(zone uint32) uint64 {
	wp, _ := p.h.Zoned.Form.decode(p.meta[zone*8:])
	return wp
}

func (p *pointers) setSynced(zone uint32, wp uint64) { p.h.encodeEntry(p.meta[zone*8:], zone, wp) }

func (p *pointers) stage(zone uint32, wp uint64) {
	p.mu.Lock()
	p.staged[zone] = wp
	if !p.moved.has(int64(zone)) {
		p.moved.set(int64(zone))
		p.list = append(p.list, zone)
	}
	p.mu.Unlock()
}

// capture returns the pointers that have moved since the last capture, in the
// order of their zones, in buf.
func (p *pointers) capture(buf []move) []move {
	buf = buf[:0]
	p.mu.Lock()
	for _, zone := range p.list {
		p.moved.unset(int64(zone))
		if wp := p.staged[zone]; wp != p.synced(zone) {
			buf = append(buf, move{zone, wp})
		}
	}
	p.list = p.list[:0]
	p.mu.Unlock()
	slices.SortFunc(buf, func(a, b move) int { return int(a.zone) - int(b.zone) })
	return buf
}

// publish takes over what a sync has covered.
func (p *pointers) publish(moves []move) {
	p.mu.Lock()
	for _, m := range moves {
		p.setSynced(m.zone, m.wp)
	}
	p.mu.Unlock()
}

// reset sets both pointers of zone and reports whether the synced one has
// changed.
func (p *pointers) reset(zone uint32, wp uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.staged[zone] = wp
	changed := p.synced(zone) != wp
	p.setSynced(zone, wp)
	return changed
}

// at reports whether both pointers of zone are wp.
func (p *pointers) at(zone uint32, wp uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.staged[zone] == wp && p.synced(zone) == wp
}

// pending reports whether a round has pointers to write.
func (p *pointers) pending() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.list) != 0
}

func (p *pointers) get(zone uint32) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.staged[zone]
}

// durable returns up to where a sync has covered the zone.
func (p *pointers) durable(zone uint32) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.synced(zone)
}

// Pointer returns the zone's absolute write pointer as last staged, or as the
// image had it: start+capacity for a full zone, start for an empty or
// conventional one.
func (im *Image) Pointer(zone uint32) uint64 {
	return min(im.pointers.get(zone), im.zoneEnd(zone))
}

// Stage records that everything in the zone below the absolute byte offset wp
// has been written. The next Round makes it durable.
func (im *Image) Stage(zone uint32, wp uint64) {
	im.pointers.stage(zone, wp)
	im.syncer.changed()
}
