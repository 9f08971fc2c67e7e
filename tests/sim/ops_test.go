package sim

import (
	"time"

	"github.com/qzbd/qzbd/zns"
)

// step does one random thing.
func (h *host) step() {
	h.t.Helper()
	z := h.pick(len(h.zones))
	if first := int(h.s.Conventional); z < first && h.pick(2) == 0 {
		z = first + h.pick(len(h.zones)-first)
	}
	h.mu.Lock()
	zn := &h.zones[z]
	busy, conv, at := zn.busy, zn.conv, len(zn.data)
	h.mu.Unlock()
	fua := h.pick(12) == 0
	switch k := h.pick(100); {
	case k < 58 && conv:
		h.overwrite(z, fua)
	case busy:
	case k < 30:
		h.write(zns.OpWrite, z, at, fua)
	case k < 50:
		for range 1 + h.pick(4) {
			h.write(zns.OpAppend, z, 0, fua)
		}
	case k < 58:
		h.write(zns.OpWriteZeroes, z, at, fua)
	case k < 68:
		n := int(h.g.ZoneSize / 512)
		at := h.pick(n/h.block) * h.block
		h.begin(zns.OpRead, z, at, h.length(n-at), false)
	case k < 78:
		h.begin(zns.OpFlush, z, 0, 0, false)
	case k < 80 && !conv:
		h.manage(zns.OpFinish, z)
	case k < 88 && !conv:
		h.manage(zns.OpReset, z)
	case k < 89:
		for i := range h.zones {
			h.mu.Lock()
			busy = busy || h.zones[i].busy
			h.mu.Unlock()
		}
		if !busy {
			h.manage(zns.OpResetAll, -1)
		}
	case k < 92 && !(h.virtual && conv):
		h.begin(zns.OpOpen, z, 0, 0, false)
	case k < 94 && !(h.virtual && conv):
		h.begin(zns.OpClose, z, 0, 0, false)
	case k < 96 && !h.virtual:
		h.wrong(z)
	case k < 97:
		h.verify()
	}
	if h.virtual {
		time.Sleep(time.Duration(h.pick(8)) * 300)
		for h.inFlight() > 10 {
			time.Sleep(time.Microsecond)
		}
	} else {
		for n := h.pick(4); n > 0 && len(h.flights) > 0 || len(h.flights) > 10; n-- {
			h.move(h.flights[h.pick(len(h.flights))])
		}
	}
	h.report()
}

func (h *host) inFlight() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.flights)
}

// length picks how much to do of room: often little, sometimes everything.
func (h *host) length(room int) int {
	n := room / h.block
	switch h.pick(8) {
	case 0:
	case 1, 2:
		n = 1 + h.pick(n)
	default:
		n = 1 + h.pick(min(n, 24))
	}
	return n * h.block
}

// write writes at the pointer of a sequential zone, or appends.
func (h *host) write(op zns.Op, z, at int, fua bool) {
	room := h.capacity(z)
	h.mu.Lock()
	room -= len(h.zones[z].data)
	h.mu.Unlock()
	if room < h.block {
		if op == zns.OpAppend && !h.virtual { // it is refused
			h.begin(op, z, 0, h.block, fua)
		}
		return
	}
	n := h.length(room)
	if op == zns.OpAppend {
		n = min(n, int(h.g.MaxAppend/512)/h.block*h.block)
	}
	h.begin(op, z, at, n, fua)
}

// overwrite writes somewhere in a conventional zone where nothing is in flight.
func (h *host) overwrite(z int, fua bool) {
	room := h.capacity(z)
	at := h.pick(room/h.block) * h.block
	n := h.length(min(room-at, 64*h.block))
	h.mu.Lock()
	for i := range n {
		if h.zones[z].writing[at+i] {
			n = i / h.block * h.block
			break
		}
	}
	h.mu.Unlock()
	if n == 0 {
		return
	}
	op := zns.OpWrite
	if h.pick(4) == 0 {
		op = zns.OpWriteZeroes
	}
	h.begin(op, z, at, n, fua)
}

// manage resets or finishes. Without virtual time nothing may be in flight
// where it waits for that.
func (h *host) manage(op zns.Op, z int) {
	if h.virtual {
		h.begin(op, max(z, 0), 0, 0, false)
		return
	}
	for again := true; again; {
		again = false
		for _, f := range h.flights {
			if z < 0 || f.z == z {
				h.move(f)
				again = len(h.flights) > 0
				break
			}
		}
	}
	h.begin(op, max(z, 0), 0, 0, false)
}

// tooMuch asks for more than a sequential zone has left.
func (h *host) tooMuch(z int) {
	if at := len(h.zones[z].data); at*512 < int(h.g.ZoneSize) {
		h.begin(zns.OpWriteZeroes, z, at, h.capacity(z)-at+h.block, false)
	}
}

// wrong asks for something that is probably refused.
func (h *host) wrong(z int) {
	n := int(h.g.ZoneSize / 512)
	switch at := h.pick(n/h.block) * h.block; h.pick(4) {
	case 0:
		if !h.zones[z].conv {
			h.begin(zns.OpWrite, z, at, h.block, false)
		}
	case 1:
		h.begin(zns.OpAppend, z, 0, min(n, int(h.g.MaxAppend/512)/h.block*h.block+h.block), false)
	case 2:
		h.begin(zns.OpRead, z, at, n, false)
	case 3:
		if h.zones[z].conv {
			h.manage(zns.OpReset, z)
		} else {
			h.tooMuch(z)
		}
	}
}
