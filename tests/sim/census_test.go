package sim

import (
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"testing"

	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

// A census counts what the simulated lives meet, so that no change of what hosts
// do can lose any of it unseen. Nothing is asked of the engine: it is all seen in
// what goes to the disk and in what hosts are answered.
type census struct {
	mu sync.Mutex
	n  map[string]int
}

// crashStates is what one power cut or kill leaves, and an open that follows.
const crashStates = "crash states"

// mustMeet is what enough power cuts are known to meet.
var mustMeet = []string{
	"power cuts", "kills",
	"cuts in a write", "cuts in a sync", "cuts in a truncate", "cuts in a punch", "cuts in a reserve",
	"cuts in a durable write of the header", "cuts in a durable write of zonedmeta",
	"cuts while closing", "cuts in a rebuild", "cuts in a repair", "cuts after a failure",
	"L2 tables made", "refcount blocks added", "refcount tables moved",
	"clusters mapped again after a reset",
	"leaks found before recovery", "repairs of leaks", "repairs of all",
	"appends beside appends", "FUA writes", "overwrites", "resets", "finishes", "flushes",
	"failed reads", "failed writes", "short writes", "failed syncs", "failed durable writes",
	"requests refused by the disk", "requests refused by a failed image",
}

func (c *census) add(what string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[what]++
}

// report logs the counts; none of must may be missing.
func (c *census) report(t *testing.T, must []string) {
	t.Helper()
	for _, what := range slices.Sorted(maps.Keys(c.n)) {
		t.Logf("%9d %s", c.n[what], what)
	}
	for _, what := range must {
		if c.n[what] == 0 {
			t.Errorf("these lives had no %s", what)
		}
	}
}

// observer follows what one opened image does to its file.
type observer struct {
	*census
	cs               int64
	refTable, refLen int64           // bytes
	l1, l1Len        int64           // bytes
	tables           map[int64]bool  // L2
	entries          map[int64]int64 // by its place in the file: the cluster it referred to last
	cleared          map[int64]bool  // clusters whose entry has been cleared since the image was opened
}

// observe begins to follow what is done to the file that is about to be opened.
func (h *host) observe() {
	if h.seen == nil {
		return
	}
	var b [64]byte
	if _, err := h.disk.ReadAt(b[:], 0); err != nil {
		return // the power is off
	}
	o := &observer{census: h.seen, cs: int64(h.s.ClusterSize), tables: map[int64]bool{}, entries: map[int64]int64{}, cleared: map[int64]bool{}}
	o.l1, o.l1Len = int64(binary.BigEndian.Uint64(b[40:])), 8*int64(binary.BigEndian.Uint32(b[36:]))
	o.place(b[:])
	l1 := make([]byte, o.l1Len)
	if _, err := h.disk.ReadAt(l1, o.l1); err != nil {
		return
	}
	for ; len(l1) > 0; l1 = l1[8:] {
		o.tables[offset(l1)] = true
	}
	h.disk.Watch(o.change)
}

// offset is what an entry of any table refers to.
func offset(entry []byte) int64 { return int64(binary.BigEndian.Uint64(entry) & 0x00fffffffffffe00) }

// place takes over where a header has the refcount table.
func (o *observer) place(header []byte) (moved bool) {
	at := int64(binary.BigEndian.Uint64(header[48:]))
	moved = at != o.refTable
	o.refTable, o.refLen = at, o.cs*int64(binary.BigEndian.Uint32(header[56:]))
	return moved
}

// change is told of everything that changes the file.
func (o *observer) change(op crashfile.Op, p []byte) {
	if op.Kind == crashfile.WriteDurable && op.Off == 0 {
		if o.place(p) {
			o.add("refcount tables moved")
		}
		return
	}
	if op.Kind != crashfile.Write {
		return
	}
	switch at := op.Off; {
	case at >= o.l1 && at < o.l1+o.l1Len && len(p) == 8:
		o.add("L2 tables made")
		o.tables[offset(p)] = true
	case at >= o.refTable && at < o.refTable+o.refLen && len(p) == 8:
		o.add("refcount blocks added")
	case o.tables[at&^(o.cs-1)] && int64(len(p)) < o.cs:
		for ; len(p) >= 8; p, at = p[8:], at+8 {
			c := offset(p)
			if c == 0 {
				o.cleared[o.entries[at]] = true
			} else if o.cleared[c] {
				o.add("clusters mapped again after a reset")
			}
			o.entries[at] = c
		}
	}
}

// countCut notes where the power went off.
func (h *host) countCut(phase string) {
	h.seen.add("power cuts")
	h.seen.add(crashStates)
	op, ok := h.disk.CutOp()
	if !ok {
		return
	}
	kind := [...]string{"read", "write", "durable write", "sync", "truncate", "punch", "reserve"}[op.Kind]
	switch {
	case phase == "open" && op.Kind == crashfile.Sync:
		h.seen.add("cuts while opening") // clean or not
	case phase == "open":
		h.seen.add("cuts in a rebuild")
	case phase != "":
		h.seen.add("cuts " + phase)
	case op.Kind == crashfile.WriteDurable && op.Off == 0:
		h.seen.add("cuts in a durable write of the header")
	case op.Kind == crashfile.WriteDurable:
		h.seen.add("cuts in a durable write of zonedmeta")
	default:
		h.seen.add("cuts in a " + kind)
	}
}

// countAnswer notes what a host was answered. h.mu is held.
func (h *host) countAnswer(f *flight) {
	switch {
	case h.seen == nil:
		return
	case f.r.Err != nil && h.im.Failed() != nil:
		h.seen.add("requests refused by a failed image")
		return
	case f.r.Err != nil:
		if h.loose && f.want == nil && !byCondition(f.r.Err) {
			h.seen.add("requests refused by the disk")
		}
		return
	}
	switch f.r.Op {
	case zns.OpFlush:
		h.seen.add("flushes")
	case zns.OpReset, zns.OpResetAll:
		h.seen.add("resets")
	case zns.OpFinish:
		h.seen.add("finishes")
	case zns.OpWrite, zns.OpWriteZeroes, zns.OpAppend:
		if h.zones[f.z].conv {
			h.seen.add("overwrites")
		}
		if f.r.FUA {
			h.seen.add("FUA writes")
		}
		if f.r.Op == zns.OpAppend && slices.ContainsFunc(h.flights, func(g *flight) bool { return g.r.Op == zns.OpAppend && g.z == f.z }) {
			h.seen.add("appends beside appends")
		}
	}
}
