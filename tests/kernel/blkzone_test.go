//go:build kernel

package kernel

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// blkzoneLine is a line of blkzone report; qzbd zones prints the same.
var blkzoneLine = regexp.MustCompile(
	`^  start: (0x[0-9a-f]+), len (0x[0-9a-f]+), cap (0x[0-9a-f]+), wptr (0x[0-9a-f]+) reset:0 non-seq:0, ` +
		`zcond: ?([0-9]+)\(([a-z]{2})\) \[type: ([0-9])\(([A-Z_]+)\)\]$`)

// parseZones reads the lines of a report. The write pointer of a full zone is
// not defined and left out.
func parseZones(t *testing.T, out string) (zones []zone) {
	t.Helper()
	for line := range strings.Lines(out) {
		m := blkzoneLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			t.Fatalf("not a line of a zone report: %q", line)
		}
		var n [4]int64
		for i := range n {
			v, err := strconv.ParseUint(m[i+1][2:], 16, 64)
			if err != nil {
				t.Fatalf("%v in %q", err, line)
			}
			n[i] = int64(v) * 512
		}
		c, _ := strconv.Atoi(m[5])
		kind, _ := strconv.Atoi(m[7])
		z := zone{start: n[0], length: n[1], capacity: n[2], wp: n[0] + n[3], kind: uint8(kind), cond: cond(c)}
		if z.cond.String() != m[6] {
			t.Errorf("condition %d is called %q", c, m[6])
		}
		zones = append(zones, z)
	}
	return zones
}

// withoutPointers makes reports comparable: see written.
func withoutPointers(zones []zone) string {
	var b strings.Builder
	for _, z := range zones {
		fmt.Fprintf(&b, "%#x+%#x cap %#x type %d %v written %#x\n",
			z.start, z.length, z.capacity, z.kind, z.cond, z.written())
	}
	return b.String()
}

// blkzone runs blkzone on zones n to n+count-1 of a device.
func (d *device) blkzone(command string, n, count int) string {
	d.im.h.t.Helper()
	return d.im.h.run("blkzone", d.blkzoneArgs(command, n, count)...)
}

func (d *device) blkzoneArgs(command string, n, count int) []string {
	sectors, err := strconv.Atoi(d.sysfs("queue/chunk_sectors"))
	if err != nil {
		d.im.h.t.Fatal(err)
	}
	return []string{command, "-o", fmt.Sprint(n * sectors), "-c", fmt.Sprint(count), d.node}
}

func TestBlkzoneReportsTheWholeDeviceOrAnyPartOfIt(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", founding).attach()
	k := d.open()

	all := parseZones(t, h.run("blkzone", "report", d.node))
	if len(all) != 12 {
		t.Fatalf("%d zones, want 12", len(all))
	}
	for i, z := range all {
		start := int64(i) * size("64M")
		if want := (zone{start, size("64M"), start, size("64M"), 2, empty}); z != want {
			t.Errorf("zone %d is %+v, want %+v", i, z, want)
		}
	}
	for _, part := range []struct{ first, count, want int }{
		{0, 12, 12}, {0, 1, 1}, {3, 2, 2}, {11, 2, 1}, {5, 100, 7},
	} {
		got := parseZones(t, d.blkzone("report", part.first, part.count))
		want := all[part.first : part.first+part.want]
		if withoutPointers(got) != withoutPointers(want) {
			t.Errorf("report of %d zones from %d on:\n%swant:\n%s", part.count, part.first,
				withoutPointers(got), withoutPointers(want))
		}
		ioctl := k.report(want[0].start, part.count)
		if withoutPointers(ioctl) != withoutPointers(want) {
			t.Errorf("BLKREPORTZONE of %d zones from %d on:\n%swant:\n%s", part.count, part.first,
				withoutPointers(ioctl), withoutPointers(want))
		}
	}
}

func TestBlkzoneMovesAZoneThroughItsConditions(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", founding).attach()
	k := d.open()

	for _, n := range ways(t, 0, []int{0, 11}) {
		in := func(c cond, written int64) {
			t.Helper()
			z := parseZones(t, d.blkzone("report", n, 1))[0]
			if z.cond != c || z.written() != written {
				t.Errorf("zone %d is %v with %#x bytes written, want %v with %#x", n, z.cond, z.written(), c, written)
			}
			k.isIn(n, c, written)
			k.isIn(n^2, empty, 0) // no other zone is touched
		}
		start := k.zone(n).start
		d.blkzone("open", n, 1)
		in(expOpen, 0)
		d.blkzone("open", n, 1) // once more changes nothing
		in(expOpen, 0)
		d.blkzone("close", n, 1)
		in(empty, 0)
		d.blkzone("finish", n, 1)
		in(full, size("64M"))
		k.refuse(eio, start, 4096)
		d.blkzone("finish", n, 1)
		in(full, size("64M"))
		k.zeros(start, 1<<20)
		d.blkzone("reset", n, 1)
		in(empty, 0)

		k.write(1, start, 8192)
		in(impOpen, 8192)
		d.blkzone("open", n, 1)
		in(expOpen, 8192)
		d.blkzone("close", n, 1)
		in(closed, 8192)
		d.blkzone("open", n, 1)
		in(expOpen, 8192)
		k.write(1, start+8192, 4096)
		in(expOpen, 12288)
		d.blkzone("close", n, 1)
		k.write(1, start+12288, 4096)
		in(impOpen, 16384)
		d.blkzone("finish", n, 1)
		in(full, size("64M"))
		k.holds(1, start, 16384)
		k.zeros(start+16384, 1<<20)
		d.blkzone("reset", n, 1)
		in(empty, 0)
		k.zeros(start, 1<<20)
		k.write(2, start, 4096)
		k.holds(2, start, 4096)
		k.zeros(start+4096, 12288) // nothing of what was there before
		d.blkzone("reset", n, 1)
	}
}

func TestBlkzoneResetsOneZoneARangeOrTheWholeDevice(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", "size=96M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=2").attach()
	k := d.open()

	k.write(1, 0, 1<<20) // conventional, survives everything
	for i := 2; i < 12; i++ {
		k.write(1, k.zone(i).start, i<<16)
	}
	d.blkzone("reset", 4, 1)
	k.are(notWP, notWP, impOpen, impOpen, empty, impOpen, impOpen, impOpen, impOpen, impOpen, impOpen, impOpen)
	d.blkzone("reset", 6, 3)
	k.are(notWP, notWP, impOpen, impOpen, empty, impOpen, empty, empty, empty, impOpen, impOpen, impOpen)
	for i, z := range k.zones() {
		switch {
		case z.cond == impOpen:
			k.holds(1, z.start, i<<16)
		case i >= 2:
			k.zeros(z.start, i<<16)
		}
	}
	d.blkzone("finish", 10, 2)
	d.blkzone("open", 3, 1)
	h.run("blkzone", "reset", d.node)
	k.are(notWP, notWP, empty, empty, empty, empty, empty, empty, empty, empty, empty, empty)
	for i := 2; i < 12; i++ {
		k.zeros(k.zone(i).start, i<<16)
	}
	k.holds(1, 0, 1<<20)
}

func TestBlkzoneCountsTheUsableCapacity(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", "size=96M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=2").attach()
	for _, c := range []struct {
		n, count int
		want     string
	}{
		{0, 12, "76M"}, {0, 1, "8M"}, {2, 1, "6M"}, {1, 2, "14M"}, {11, 1, "6M"},
	} {
		out := strings.TrimSpace(d.blkzone("capacity", c.n, c.count))
		got, err := strconv.ParseInt(strings.TrimPrefix(out, "0x"), 16, 64)
		if err != nil || got*512 != size(c.want) {
			t.Errorf("capacity of %d zones from %d on: %s sectors, want %s", c.count, c.n, out, c.want)
		}
	}
}

func TestConventionalZonesRefuseZoneCommands(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", "size=96M,zone.size=8M,zone.conventional_zones=2").attach()
	k := d.open()
	k.write(1, 0, 8192)
	for _, command := range []string{"open", "close", "finish", "reset"} {
		if r := h.try("blkzone", d.blkzoneArgs(command, 0, 1)...); r.code == 0 {
			t.Errorf("a conventional zone took it: %v", r)
		}
	}
	k.are(notWP, notWP, empty)
	for i, z := range k.zones()[:3] {
		if (z.kind == conventional) != (i < 2) {
			t.Errorf("zone %d has type %d", i, z.kind)
		}
	}
	k.holds(1, 0, 8192)
}

func TestQzbdZonesAgreesWithTheKernel(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=96M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=2")
	d := im.attach()
	k := d.open()
	k.write(1, k.zone(3).start, 4096)
	k.must(blkOpenZone, k.zone(4))
	k.write(1, k.zone(5).start, 8192)
	k.must(blkCloseZone, k.zone(5))
	k.must(blkFinishZone, k.zone(6))
	k.close()

	kernel := parseZones(t, h.run("blkzone", "report", d.node))
	for _, name := range []string{d.node, im.path} {
		if got := parseZones(t, h.run(qzbd, "zones", name)); withoutPointers(got) != withoutPointers(kernel) {
			t.Errorf("qzbd zones %s:\n%swant:\n%s", name, withoutPointers(got), withoutPointers(kernel))
		}
	}
	d.detach()
	kernel[3].cond, kernel[4].cond = closed, empty // what was open
	if got := parseZones(t, h.run(qzbd, "zones", im.path)); withoutPointers(got) != withoutPointers(kernel) {
		t.Errorf("qzbd zones of the file:\n%swant:\n%s", withoutPointers(got), withoutPointers(kernel))
	}
}
