//go:build kernel

package kernel

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

const limited = "size=128M,zone.size=8M,zone.capacity=6M,zone.max_open_zones=3,zone.max_active_zones=5"

func TestAnApplicationSeesTheLimitOfOpenZones(t *testing.T) {
	h := begin(t)
	k := h.create("a.qcow2", limited).attach().open()
	zones := k.zones()
	for i := range 3 {
		k.must(blkOpenZone, zones[i])
	}
	if err := k.mgmt(blkOpenZone, zones[3].start, zlen); !errors.Is(err, unix.ETOOMANYREFS) {
		t.Errorf("a fourth zone opened: %v", err)
	}
	// Zones that somebody opened explicitly do not give way to a write.
	k.refuse(unix.ETOOMANYREFS, zones[3].start, 4096)
	k.are(expOpen, expOpen, expOpen, empty)

	k.write(1, zones[1].start, 4096)
	k.must(blkCloseZone, zones[1])
	k.write(1, zones[3].start, 4096)
	k.are(expOpen, closed, expOpen, impOpen)
	k.must(blkCloseZone, zones[0]) // never written: empty again
	k.must(blkOpenZone, zones[4])
	k.are(empty, closed, expOpen, impOpen, expOpen)
	// Those that a write has opened do: for a write as for an explicit opening.
	k.must(blkOpenZone, zones[1])
	k.are(empty, expOpen, expOpen, closed, expOpen)
	k.refuse(unix.ETOOMANYREFS, zones[3].start+4096, 4096)
	k.isIn(3, closed, 4096)
	k.must(blkFinishZone, zones[4])
	k.write(1, zones[3].start+4096, 4096)
	k.are(empty, expOpen, expOpen, impOpen, full)
	k.holds(1, zones[3].start, 8192)
}

func TestAnApplicationSeesTheLimitOfActiveZones(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", limited)
	d := im.attach()
	k := d.open()
	zones := k.zones()
	for i := range 5 {
		k.write(1, zones[i].start, 4096) // writes close each other's zones
	}
	k.are(closed, closed, impOpen, impOpen, impOpen, empty)
	k.refuse(unix.EOVERFLOW, zones[5].start, 4096)
	if err := k.mgmt(blkOpenZone, zones[6].start, zlen); !errors.Is(err, unix.EOVERFLOW) {
		t.Errorf("a sixth zone became active: %v", err)
	}
	k.are(closed, closed, impOpen, impOpen, impOpen, empty, empty)

	// The active ones can all be used.
	for i := range 5 {
		k.write(1, zones[i].start+4096, 4096)
	}
	k.must(blkFinishZone, zones[0])
	k.write(1, zones[5].start, 4096)
	k.refuse(unix.EOVERFLOW, zones[6].start, 4096)
	k.isIn(6, empty, 0) // the report lets the kernel write to it again
	k.must(blkResetZone, zones[1])
	k.write(1, zones[6].start, 4096)
	k.close()

	// Closed zones are active, so the limit holds after a new start as well.
	d.detach()
	k = im.attach().open()
	k.are(full, empty, closed, closed, closed, closed, closed, empty)
	k.refuse(unix.EOVERFLOW, zones[7].start, 4096)
	k.write(1, zones[6].start+4096, 4096)
	k.must(blkFinishZone, zones[6])
	k.isIn(7, empty, 0)
	k.write(1, zones[7].start, 4096)
	for i, n := range []int{0, 0, 8192, 8192, 8192, 4096, 8192, 4096} {
		k.holds(1, zones[i].start, n)
	}
}

func TestWithoutLimitsEveryZoneMayBeOpen(t *testing.T) {
	h := begin(t)
	k := h.create("a.qcow2", small).attach().open()
	for i, z := range k.zones() {
		if i%2 == 0 {
			k.must(blkOpenZone, z)
		} else {
			k.write(1, z.start, 4096)
		}
	}
	for i, z := range k.zones() {
		want := impOpen
		if i%2 == 0 {
			want = expOpen
		}
		if z.cond != want {
			t.Errorf("zone %d is %v, want %v", i, z.cond, want)
		}
	}
}
