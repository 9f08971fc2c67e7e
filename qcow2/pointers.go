package qcow2

import (
	"slices"
	"sync"
)

// pointers are the write pointers in two images: staged, what requests have
// reached, and synced, what a sync has covered. zonedmeta is only ever composed
// from synced: 64 zones share a sector, and writing it for one zone must not
// make a neighbour's newer pointer durable before that neighbour's data.
//
// A pointer is an absolute byte offset on the device as zonedmeta stores it,
// without the flag; a finished zone's lies above start+capacity.
type pointers struct {
	mu     sync.Mutex // guards what follows; order: 6, innermost
	staged []uint64
	moved  bitmap   // zones whose staged pointer may differ from synced
	list   []uint32 // the same, in the order of moving
	synced []uint64 // stored by the syncer only, which reads it without the lock
}

// move is one zone's way in a round.
type move struct {
	zone uint32
	wp   uint64
}

func (p *pointers) init(wps []uint64) {
	p.staged = wps
	p.synced = slices.Clone(wps)
	p.moved = newBitmap(int64(len(wps)))
}

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
		if wp := p.staged[zone]; wp != p.synced[zone] {
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
		p.synced[m.zone] = m.wp
	}
	p.mu.Unlock()
}

// reset sets both pointers of zone and reports whether the synced one has
// changed.
func (p *pointers) reset(zone uint32, wp uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.staged[zone] = wp
	changed := p.synced[zone] != wp
	p.synced[zone] = wp
	return changed
}

// at reports whether both pointers of zone are wp.
func (p *pointers) at(zone uint32, wp uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.staged[zone] == wp && p.synced[zone] == wp
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
	return p.synced[zone]
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
