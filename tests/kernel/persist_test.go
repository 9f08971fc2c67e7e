//go:build kernel

package kernel

import "testing"

func TestZoneStatesSurviveDetachAndAttach(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=128M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=2,zone.max_open_zones=8,zone.max_active_zones=10")
	d := im.attach()
	k := d.open()
	z := k.zones()

	k.write(1, z[0].start+4096, 1<<20) // 0: conventional
	k.write(1, z[2].start, 512)        // 2: implicitly open
	k.must(blkOpenZone, z[3])          // 3: explicitly open and written
	k.write(1, z[3].start, 1<<20)      //
	k.must(blkOpenZone, z[4])          // 4: explicitly open, never written
	k.write(1, z[5].start, 70144)      // 5: closed
	k.must(blkCloseZone, z[5])         //
	k.write(1, z[6].start, zcap)       // 6: written full
	k.must(blkFinishZone, z[7])        // 7: finished empty
	k.write(1, z[8].start, 4096)       // 8: finished after a write
	k.must(blkFinishZone, z[8])        //
	k.write(1, z[9].start, 3<<20)      // 9: reset, and written a little
	k.must(blkResetZone, z[9])         //
	k.write(1, z[9].start, 1024)       //
	k.write(1, z[10].start, 3<<20)     // 10: reset
	k.must(blkResetZone, z[10])        //
	k.are(notWP, notWP, impOpen, expOpen, expOpen, closed, full, full, full, impOpen, empty, empty)

	for range 2 { // the second time nothing happens in between
		k.close()
		d.detach()
		d = im.attach()
		k = d.open()
		k.are(notWP, notWP, closed, closed, empty, closed, full, full, full, closed, empty, empty)
		for i, n := range map[int]int64{2: 512, 3: 1 << 20, 5: 70144, 9: 1024} {
			k.isIn(i, closed, n)
		}
		k.zeros(z[0].start, 4096)
		k.holds(1, z[0].start+4096, 1<<20)
		for i, n := range []int{2: 512, 3: 1 << 20, 4: 0, 5: 70144, 6: zcap, 7: 0, 8: 4096, 9: 1024, 10: 0} {
			if i >= 2 {
				k.holds(1, z[i].start, n)
				k.zeros(z[i].start+int64(n), zlen-n)
			}
		}
	}
	for _, i := range []int{2, 3, 5, 9} { // and every zone goes on where it was
		k.write(1, k.zone(i).wp, 4096)
	}
	k.holds(1, z[9].start, 1024+4096)
}

// The example's own test, with writes where it appends: an application cannot
// append to a block device; TestBtrfs lets a file system do it.
func TestTheFoundingExampleKeepsItsWritePointers(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", founding)
	d := im.attach()
	k := d.open()
	for _, i := range []int{0, 1} {
		start := k.zone(i).start
		at := start
		for _, n := range []int{0x1000, 0x2000, 0x1000, 0x2000} {
			k.write(1, at, n)
			at += int64(n)
		}
		k.isIn(i, impOpen, 0x30*512)
	}
	k.close()
	d.detach()
	d = im.attach()
	k = d.open()
	for i, z := range k.zones() {
		if i < 2 {
			k.isIn(i, closed, 0x30*512)
			k.holds(1, z.start, 0x30*512)
		} else {
			k.isIn(i, empty, 0)
		}
	}
	h.run("blkzone", "reset", d.node)
	for i := range 12 {
		k.isIn(i, empty, 0)
	}
}

func TestAResetGivesItsSpaceBackToTheHost(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	k := im.attach().open()
	const data = 8 * zcap
	for round := range 3 {
		for i := range int64(8) {
			k.write(uint64(round), i*zlen, zcap)
		}
		if n := im.allocated(); n < data {
			t.Errorf("%d bytes in a file of %d", data, n)
		}
		if err := k.mgmt(blkResetZone, 0, 16*zlen); err != nil {
			t.Fatal(err)
		}
		k.sync()
		// It may be given back a little later, but without further requests.
		h.wait("the clusters of reset zones are given back", func() bool { return im.allocated() < data/4 })
	}
}
