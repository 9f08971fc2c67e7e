package sim

import (
	"errors"
	"math/rand/v2"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

// fillZones writes zone z up to its capacity.
func (h *host) fillZones(z int) {
	h.t.Helper()
	if n := h.capacity(z) - len(h.zones[z].data); n > 0 {
		h.begin(zns.OpWrite, z, len(h.zones[z].data), n, false)
		h.drain()
	}
	h.check()
}

func (h *host) flush() {
	h.t.Helper()
	h.begin(zns.OpFlush, 0, 0, 0, false)
	h.drain()
	h.check()
}

func (h *host) resetAll() {
	h.t.Helper()
	h.begin(zns.OpResetAll, 0, 0, 0, false)
	h.drain()
	h.check()
}

// crash ends everything that is in flight and returns the disk that is left.
func (h *host) crash(end func(*crashfile.File) *crashfile.File) *crashfile.File {
	h.t.Helper()
	d := end(h.disk)
	// What is still in flight meets a dead disk.
	if h.virtual {
		h.wg.Wait()
	} else {
		h.flights, h.woken = nil, nil
	}
	h.im.Abandon()
	h.flights = nil
	h.check()
	return d
}

// recover opens the image after a cut or a kill, and takes over which of the
// allowed states it is in. With rng the power may go off again meanwhile.
func (h *host) recover(killed bool, rng *rand.Rand) {
	h.t.Helper()
	for again := true; again; {
		h.surveyWreck()
		phase := "open"
		if rng != nil && rng.IntN(3) == 0 {
			h.disk.CutIn(1 + rng.IntN(25))
		}
		var err error
		if rng != nil && rng.IntN(4) == 0 {
			phase = "in a repair"
			err = h.repair(qcow2.RepairLeaks + qcow2.RepairMode(rng.IntN(2)))
		}
		if err == nil {
			phase = "open"
			err = h.open()
		}
		again = rng != nil && errors.Is(err, crashfile.ErrCut)
		switch {
		case again:
			h.note("--- power cut: %s", phase)
			h.countCut(phase)
			h.disk = h.disk.Cut(rng)
		case err != nil:
			h.fatalf("%s: %v", phase, err)
		}
	}
	h.disk.CutIn(0)
	h.disk.CutInDurableWrite(0)
	active := uint32(0)
	for i := range h.zones {
		zn := &h.zones[i]
		rep := h.dev.Zone(uint32(i))
		wp := int(rep.WP-rep.Start) / 512
		n := int(h.g.ZoneSize / 512)
		var r zns.Request
		r.Start, r.Len = h.start(i), h.g.ZoneSize
		p := make([]byte, n*512)
		if err := zns.Do(h.dev, &r, h.disk, p); err != nil {
			h.fatalf("read zone %d: %v", i, err)
		}
		got := stamps(p)
		if !zn.conv {
			if wp > h.capacity(i) {
				h.fatalf("zone %d: write pointer %d beyond the capacity (I3)", i, wp)
			}
			for k, s := range got[wp:] {
				if s != 0 {
					h.fatalf("zone %d: sector %d above the write pointer reads as %d (I6)", i, wp+k, s)
				}
			}
			got = got[:wp]
			if wp > 0 && wp < h.capacity(i) {
				active++
			}
		}
		if err := zn.may(wp, h.capacity(i), got, killed); err != nil {
			h.fatalf("zone %d: %v", i, err)
		}
	}
	if h.g.MaxActive != 0 && active > h.g.MaxActive {
		h.fatalf("%d active zones, max_active_zones is %d (I15)", active, h.g.MaxActive)
	}
	h.note("opened, %d zones active", active)
}

// repair has check mend the image, after which there must be nothing to say.
func (h *host) repair(mode qcow2.RepairMode) error {
	h.t.Helper()
	_, after, err := qcow2.Repair(h.disk, mode, nil)
	if err != nil {
		return err
	}
	if after.ExitCode() != 0 || after.Dirty {
		h.fatalf("check after a repair: %+v (I5)", after)
	}
	h.note("repaired, mode %d", mode)
	h.seen.add([...]string{"repairs of leaks", "repairs of all"}[mode-qcow2.RepairLeaks])
	return nil
}

// surveyWreck checks an image that was not closed.
func (h *host) surveyWreck() {
	h.t.Helper()
	rep, err := qcow2.Check(h.disk, nil)
	if err != nil {
		h.fatalf("check before recovery: %v", err)
	}
	if rep.Corruptions != 0 {
		h.fatalf("check before recovery: %+v (I5)", rep)
	}
	if rep.Leaks != 0 {
		h.seen.add("leaks found before recovery")
	}
}
