package sim

import (
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

// mustSurvive is what enough lives of servers are known to meet.
var mustSurvive = []string{
	"deaths", "deaths while starting", "writes lost before a recovery", "deaths in a row", "orderly leaves", "failed syncs",
	"power cuts after deaths", "power cuts after leaves", "power cuts after flushes",
	"write sent again", "write-zeroes sent again", "append sent again", "flush sent again",
	"reset sent again", "finish sent again", "open sent again", "close sent again",
	"writes grown", "FUA writes answered", "overwrites in doubt",
}

// cover is what a flush covers of a zone, at least.
type cover struct {
	gen     int
	sectors int
}

// expect notes what may become of e before it is sent. w.mu is held.
func (w *world) expect(e *errand) {
	z := &w.zones[e.zone]
	switch {
	case e.op == zns.OpFlush:
		for i := range w.zones {
			e.covers = append(e.covers, cover{w.zones[i].gen, w.zones[i].answered()})
		}
	case e.op == zns.OpAppend:
		z.sent[e.stamp] = true
	case z.conv:
		for k := range e.n {
			z.since[e.sector+k] = append(z.since[e.sector+k], e.stamp)
		}
	}
}

// answered is how many sectors from the zone's start on have been answered.
func (z *clientZone) answered() int {
	if !z.appends {
		return z.written
	}
	n := 0
	for k := range z.sectors {
		n = max(n, k+1)
	}
	return n
}

// covered takes over what a completed flush covers. w.mu is held.
func (w *world) covered(e *errand) {
	for i, c := range e.covers {
		if z := &w.zones[i]; z.gen == c.gen && !z.conv {
			z.durable = max(z.durable, c.sectors)
		}
	}
}

// coveredByFUA takes over what a FUA write that went to sector first of its zone
// covers. w.mu is held.
func (w *world) coveredByFUA(e *errand, first int) {
	if e.op != zns.OpWrite && e.op != zns.OpWriteZeroes && e.op != zns.OpAppend {
		return
	}
	w.seen.add("FUA writes answered")
	z := &w.zones[e.zone]
	if !z.conv {
		z.durable = max(z.durable, first+e.n)
		return
	}
	for k := range e.n {
		z.flushed[e.sector+k] = e.stamp
		delete(z.since, e.sector+k)
	}
}

// allDurable takes over that everything is durable. Nothing is in flight.
func (w *world) allDurable() {
	for i := range w.zones {
		z := &w.zones[i]
		z.durable = z.answered()
		z.flushed, z.since = maps.Clone(z.sectors), map[int][]uint64{}
	}
}

// powerCut turns the machine off after its server has ended: its page cache and
// the journal are gone.
func (w *world) powerCut(what string) {
	w.note("%s", what)
	w.seen.add(what)
	w.seen.add(crashStates)
	w.disk = w.disk.Kill().Cut(w.rng)
	w.cut = true
}

var errBroken = errors.New("the disk is broken")

// fails lets the clients work until a sync fails, and the image with it, and ends
// the server. It reports whether it came to that.
func (l *life) fails() bool {
	w := l.w
	left, kind := w.rng.IntN(12), [...]crashfile.Kind{crashfile.Sync, crashfile.WriteDurable}[w.rng.IntN(2)]
	l.disk.Fault(func(op crashfile.Op) error {
		if op.Kind == kind {
			if left--; left < 0 {
				return errBroken
			}
		}
		return nil
	})
	var wg sync.WaitGroup
	for c := range clients {
		rng := rand.New(rand.NewPCG(w.rng.Uint64(), uint64(c)))
		wg.Go(func() {
			for l.serve(c, rng) {
			}
		})
	}
	wg.Wait()
	if err := l.im.Failed(); !errors.Is(err, errBroken) {
		w.fatalf("the image has failed: %v", err)
	}
	l.end()
	return true
}

// afterCut verifies what a power cut has left, and has new clients go on from
// there.
func (l *life) afterCut() {
	w := l.w
	room := int(w.s.ZoneCapacity / 512)
	for i := range w.zones {
		z := &w.zones[i]
		var open []*errand
		for _, e := range w.open {
			if e != nil && e.zone == i && e.op != zns.OpFlush {
				open = append(open, e)
			}
		}
		doing := func(op zns.Op) bool {
			return slices.ContainsFunc(open, func(e *errand) bool { return e.op == op })
		}
		rep := l.dev.Zone(uint32(i))
		wp := int(rep.WP-rep.Start) / 512
		p := make([]byte, w.s.ZoneSize)
		if err := zns.Do(l.dev, &zns.Request{Op: zns.OpRead, Slot: clients, Start: rep.Start, Len: w.s.ZoneSize}, l.disk, p); err != nil {
			w.fatalf("read zone %d: %v", i, err)
		}
		if !z.conv && wp < z.durable && !doing(zns.OpReset) {
			w.fatalf("zone %d: write pointer %d, %d sectors are durable", i, wp, z.durable)
		}
		found := map[int]uint64{}
		for k := range int(w.s.ZoneSize / 512) {
			got := binary.BigEndian.Uint64(p[k*512:])
			want, known := z.sectors[k]
			ok := false
			switch {
			case z.conv:
				if ok = got == z.flushed[k] || slices.Contains(z.since[k], got); got != want {
					w.seen.add("overwrites in doubt")
				}
			case k >= wp:
				ok = got == 0
			case known:
				ok = got == want
			case z.appends:
				ok = z.sent[got] || got == 0 && (z.full || doing(zns.OpFinish))
			case doing(zns.OpFinish):
				ok = got == 0
			default:
				ok = slices.ContainsFunc(open, func(e *errand) bool {
					return (e.op == zns.OpWrite || e.op == zns.OpWriteZeroes) && k >= e.sector && k < e.sector+e.n && got == e.stamp
				})
			}
			if !ok {
				w.fatalf("zone %d, pointer %d: sector %d reads as %d; answered: %d, %v; flushed: %d, since: %v", i, wp, k, got, want, known, z.flushed[k], z.since[k])
			}
			if z.conv && got != 0 || !z.conv && k < wp {
				found[k] = got
			}
		}
		gen := z.gen
		*z = newClientZone(z.conv, z.appends)
		z.gen, z.sectors = gen+1, found
		if z.conv {
			z.flushed = maps.Clone(found)
			continue
		}
		z.durable, z.full = wp, wp == room
		if !z.appends || z.full {
			z.written = wp
		}
	}
	w.open = [clients]*errand{}
	w.cut = false
	w.note("verified after a power cut")
}
