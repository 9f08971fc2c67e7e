package sim

import "github.com/qzbd/qzbd/zns"

// This is the zone state machine in the plainest words, for a host that does
// one thing after the other.

// committed is where the pointer is when every request that can be answered
// has been.
func (z *zone) committed() int {
	for _, p := range z.pieces {
		if !p.ended {
			break
		}
		z.done = max(z.done, p.end)
	}
	return z.done
}

// expect says why a request must be refused, and moves the conditions that
// change when it begins. h.mu is held.
func (h *host) expect(f *flight) error {
	zn := &h.zones[f.z]
	capacity := h.capacity(f.z)
	if f.r.Start+f.r.Len > h.g.Size {
		return zns.ErrInvalid
	}
	switch f.r.Op {
	case zns.OpRead:
		if f.at+f.n > int(h.g.ZoneSize/512) {
			return zns.ErrBoundary
		}
		return nil
	case zns.OpFlush, zns.OpResetAll:
		return nil
	case zns.OpWrite, zns.OpWriteZeroes, zns.OpAppend:
		at := f.at
		if f.r.Op == zns.OpAppend {
			at = 0
		}
		switch {
		case at+f.n > int(h.g.ZoneSize/512):
			return zns.ErrBoundary
		case zn.conv && f.r.Op == zns.OpAppend:
			return zns.ErrConventional
		case zn.conv:
			return nil
		case f.r.Op == zns.OpAppend && f.r.Len > h.g.MaxAppend:
			return zns.ErrAppendSize
		case len(zn.data) == capacity:
			return zns.ErrFull
		case f.r.Op != zns.OpAppend && f.at != len(zn.data):
			return zns.ErrNotAtWP
		case f.n > capacity-len(zn.data):
			return zns.ErrBoundary
		}
		return h.opens(f.z, zns.CondImpOpen)
	}
	if zn.conv {
		return zns.ErrConventional
	}
	switch f.r.Op {
	case zns.OpOpen:
		if zn.cond == zns.CondFull {
			return zns.ErrFull
		}
		return h.opens(f.z, zns.CondExpOpen)
	case zns.OpClose:
		switch {
		case !zn.cond.Active():
			return zns.ErrCond
		case zn.cond.Open() && len(zn.data) == 0:
			zn.cond = zns.CondEmpty
		default:
			zn.cond = zns.CondClosed
		}
	case zns.OpFinish:
		if zn.cond != zns.CondFull && !zn.cond.Open() {
			return h.opens(f.z, zns.CondImpOpen)
		}
	}
	return nil
}

// opens makes a zone open if the limits allow that.
func (h *host) opens(z int, to zns.Cond) error {
	zn := &h.zones[z]
	h.clock++
	zn.used = h.clock
	if zn.cond == zns.CondExpOpen || zn.cond == to {
		return nil
	}
	open, active := uint32(0), uint32(0)
	for i := range h.zones {
		if h.zones[i].cond.Open() {
			open++
		}
		if h.zones[i].cond.Active() {
			active++
		}
	}
	if !zn.cond.Active() && h.g.MaxActive != 0 && active >= h.g.MaxActive {
		return zns.ErrActiveLimit
	}
	if !zn.cond.Open() && h.g.MaxOpen != 0 && open >= h.g.MaxOpen {
		var oldest *zone
		for i := range h.zones {
			if v := &h.zones[i]; v.cond == zns.CondImpOpen && (oldest == nil || v.used < oldest.used) {
				oldest = v
			}
		}
		if oldest == nil {
			return zns.ErrOpenLimit
		}
		oldest.cond = zns.CondClosed
	}
	zn.cond = to
	return nil
}

// transit moves the conditions that change when a request is answered.
func (h *host) transit(f *flight) {
	for i := range h.zones {
		zn := &h.zones[i]
		switch {
		case zn.conv:
		case zn.committed() == h.capacity(i):
			zn.cond = zns.CondFull
		case zn.cond == zns.CondFull, f.r.Op == zns.OpResetAll, f.r.Op == zns.OpReset && i == f.z:
			zn.cond = zns.CondEmpty
		}
	}
}
