package ublk

import (
	"fmt"
	"unsafe"

	"github.com/qzbd/qzbd/zns"
)

// report answers REPORT_ZONES: entries from the zone at the start sector on,
// always as many as asked for. Beyond the last zone they are zero.
func (q *queue) report(r *request, d ioDesc) {
	g := &q.dev.geometry
	r.Start, r.Len = d.StartSector.bytes(), uint64(d.NrSectors)*blkZoneSize
	if r.Len > uint64(q.dev.cfg.MaxIO) {
		r.Err = errTooLarge
		q.answer(r)
		return
	}
	slot, buf := q.bufs.take()
	first := r.Start / g.ZoneSize
	entries := unsafe.Slice((*blkZone)(unsafe.Pointer(&buf[0])), d.NrSectors)
	for i := range entries {
		if n := first + uint64(i); n < uint64(g.NrZones) {
			entries[i] = reportEntry(q.target.Zone(uint32(n)))
		} else {
			entries[i] = blkZone{}
		}
	}
	if err := q.copyOut(r, 0, buf[:r.Len]); err != nil {
		r.Err = fmt.Errorf("report %d zones: %w", d.NrSectors, err)
	}
	q.bufs.give(slot)
	r.bytes = int32(r.Len)
	q.answer(r)
}

// reportEntry is a zone as the kernel wants it: a write pointer only where
// there is one to write at.
func reportEntry(z zns.Zone) blkZone {
	e := blkZone{
		Start: sectorsOf(z.Start), Len: sectorsOf(z.Len), WP: sectorsOf(z.WP),
		Type: uint8(z.Type), Cond: uint8(z.Cond), Capacity: sectorsOf(z.Capacity),
	}
	switch z.Cond {
	case zns.CondNotWP, zns.CondFull, zns.CondReadOnly, zns.CondOffline:
		e.WP = noSector
	}
	return e
}
