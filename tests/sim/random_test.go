package sim

import (
	"testing"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
	"pgregory.net/rapid"
)

// drawSpec draws a small image.
func drawSpec(t *rapid.T) spec {
	n := func(name string, from, to int) uint64 { return uint64(rapid.IntRange(from, to).Draw(t, name)) }
	s := spec{block: 512}
	s.ClusterSize = uint64(512) << (3 * n("cluster", 0, 2))
	if n("large cluster", 0, 7) == 7 {
		s.ClusterSize = 64 << 10
	}
	s.RefcountBits = 1 << n("refcount", 0, 6)
	s.ZoneSize = max(s.ClusterSize, 4<<10) << n("zone", 0, 3)
	zones := n("zones", 2, 12)
	if n("many zones", 0, 3) == 3 { // several sectors of zonedmeta
		s.ZoneSize = max(s.ClusterSize, 4<<10)
		zones = n("zones", 65, 200)
	}
	if s.ClusterSize == 512 && n("narrow", 0, 3) == 3 {
		s.narrow, s.RefcountBits, s.ZoneSize, zones = true, 64, 128<<10, 20
	}
	s.Size = zones * s.ZoneSize
	if n("block", 0, 2) == 2 {
		s.block = 4096
	}
	blocks := s.ZoneSize / uint64(s.block)
	s.ZoneCapacity = s.ZoneSize
	if blocks > 1 && n("short", 0, 1) == 1 {
		s.ZoneCapacity = uint64(s.block) * n("capacity", 1, int(blocks))
	}
	s.Conventional = n("conventional", 0, int(min(3, zones-1)))
	sequential := int(zones - s.Conventional)
	if n("limits", 0, 1) == 1 {
		s.MaxActive = n("active", 1, min(sequential, 6))
		s.MaxOpen = n("open", 1, int(s.MaxActive))
	}
	if most := s.ZoneCapacity/512 - 1; most > uint64(s.block/512)+1 && n("append", 0, 1) == 1 {
		s.MaxAppend = 512 * n("max append", int(s.block/512), int(most-1))
	}
	return s
}

func TestWhateverAHostDoesTheDeviceIsWhatTheModelSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSpec(t)
		pick := func(n int) int {
			if n <= 1 {
				return 0
			}
			return rapid.IntRange(0, n-1).Draw(t, "")
		}
		h := newHost(t, pick, s)
		if pick(2) == 0 {
			h.options.CacheBytes = 1 // the smallest cache there is
		}
		if err := h.open(); err != nil {
			t.Fatalf("open: %v", err)
		}
		defer func() { h.im.Abandon() }()
		for range rapid.IntRange(1, 4).Draw(t, "lives") {
			for range rapid.IntRange(10, 80).Draw(t, "steps") {
				h.step()
			}
			if pick(3) == 0 {
				h.kill()
			} else if err := h.reopen(); err != nil {
				h.fatalf("close and open: %v", err)
			}
			h.report()
			h.verify()
		}
		if err := h.reopen(); err != nil {
			h.fatalf("close and open: %v", err)
		}
		h.verify()
	})
}

// kill ends the process that has the image open, without a word.
func (h *host) kill() {
	h.t.Helper()
	h.mu.Lock()
	h.note("killed")
	h.mu.Unlock()
	h.disk = h.crash(func(d *crashfile.File) *crashfile.File { return d.Kill() })
	h.recover(true, nil)
}

func TestResetGivesTheSpaceBackWhileTheImageIsOpen(t *testing.T) {
	s := spec{CreateOptions: qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096, RefcountBits: 16, ZoneSize: 64 << 10}}
	h := newHost(t, func(int) int { return 0 }, s)
	if err := h.open(); err != nil {
		t.Fatal(err)
	}
	defer h.im.Abandon()
	h.fillZones(1)
	empty := h.disk.Allocated()
	for z := range h.zones {
		h.fillZones(z)
	}
	full := h.disk.Allocated()
	h.flush()
	h.resetAll()
	h.flush()
	h.flush()
	h.flush() // punches happen after the answer of the flush before
	if got := h.disk.Allocated(); got > empty+64<<10 {
		t.Errorf("the file takes %d bytes after everything was reset; %d when full, %d with one zone", got, full, empty)
	}
}
