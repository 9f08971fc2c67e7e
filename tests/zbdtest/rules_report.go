package zbdtest

import (
	"fmt"
	"slices"
	"strconv"
	"syscall"

	"github.com/qzbd/qzbd/zns"
)

func itoa(i int) string  { return strconv.Itoa(i) }
func hex(n int64) string { return fmt.Sprintf("%#x", n) }

// most is the most zones that a single test reports or opens one by one.
const most = 256

var reportRules = []rule{
	{"a report of everything covers the device without gap or overlap", nil, func(b *bed) {
		zones := b.report(0, b.s.Zones)
		if len(zones) != b.s.Zones {
			b.Fatalf("%d zones reported, there are %d", len(zones), b.s.Zones)
		}
		for i, z := range zones {
			b.sound(i, z)
		}
	}},
	{"all sequential zones are empty after a reset of the whole device", nil, func(b *bed) {
		for i, z := range b.report(0, b.s.Zones) {
			if i >= b.s.Conventional && (z.Cond != zns.CondEmpty || z.WP != z.Start) {
				b.Errorf("%s is %v", b.name(i), z)
			}
		}
	}},
	{"a report gives no more zones than it was asked for", nil, func(b *bed) {
		for _, n := range []int{1, 2, b.s.Zones - 1} {
			if got := b.report(0, n); len(got) != n {
				b.Errorf("%d zones, want %d", len(got), n)
			}
		}
	}},
	{"a report for more zones than there are gives all", nil, func(b *bed) {
		if got := b.report(0, b.s.Zones+10); len(got) != b.s.Zones {
			b.Errorf("%d zones, want %d", len(got), b.s.Zones)
		}
	}},
	{"a report from the middle begins there", nil, func(b *bed) {
		i := b.s.Zones / 2
		b.write(b.s.Zones-1, 0, b.piece)
		b.sameReports(b.report(b.s.Start(i), b.s.Zones), b.report(0, b.s.Zones)[i:])
	}},
	{"a report that starts within a zone begins with that zone", nil, func(b *bed) {
		for _, off := range []int64{b.s.Block, b.s.ZoneSize / 2, b.s.ZoneSize - b.s.Block} {
			i := b.seq(1)
			want := b.s.Start(i)
			if off >= b.s.Capacity && b.kind.differs(gapZones) {
				want += b.s.ZoneSize
			}
			if got := b.report(b.at(i, off), 1); len(got) != 1 || got[0].Start != want {
				b.Errorf("from %#x within %s: %+v", off, b.name(i), got)
			}
		}
	}},
	{"a report for two zones that starts at the last gives one", nil, func(b *bed) {
		if got := b.report(b.s.Start(b.s.Zones-1), 2); len(got) != 1 || got[0].Start != b.s.Start(b.s.Zones-1) {
			b.Errorf("%+v", got)
		}
	}},
	{"a report from beyond the end gives nothing", nil, func(b *bed) {
		for _, from := range []int64{b.s.Size(), b.s.Size() + b.s.ZoneSize, 1 << 60} {
			if got := b.report(from, 4); len(got) != 0 {
				b.Errorf("from %#x: %+v", from, got)
			}
		}
	}},
	{"a report for no zones is EINVAL", needsBlockDevice, func(b *bed) {
		_, err := b.d.Report(0, 0)
		b.want(syscall.EINVAL, err, "report of no zones")
	}},
	{"reports in parts make up the report of everything", nil, func(b *bed) {
		for k := range min(4, b.usable()) {
			b.write(b.seq(k), 0, int64(k+1)*b.piece)
		}
		all := b.report(0, min(b.s.Zones, 4*most))
		for _, n := range []int{1, 3, 7} {
			var parts []Zone
			for len(parts) < len(all) {
				parts = append(parts, b.report(b.s.Start(len(parts)), min(n, len(all)-len(parts)))...)
			}
			b.sameReports(parts, all)
		}
	}},
}

func (b *bed) report(from int64, n int) []Zone {
	b.Helper()
	zones, err := b.d.Report(from, n)
	if err != nil {
		b.Fatal(err)
	}
	return zones
}

// sameReports compares two reports; the write pointer of a full zone is not
// defined.
func (b *bed) sameReports(a, c []Zone) {
	b.Helper()
	if !slices.EqualFunc(a, c, func(x, y Zone) bool {
		return x == y || x.Cond == zns.CondFull && y.Cond == zns.CondFull && x.Start == y.Start
	}) {
		b.Errorf("the reports differ:\n%+v\n%+v", a, c)
	}
}

// sound checks what has to hold for zone i while nothing is in flight in it.
func (b *bed) sound(i int, z Zone) { b.Helper(); b.soundAt(i, z, 1) }

// soundAt is sound for a zone that has to have so many bytes written to be
// implicitly open or closed. That is 0 while its first write is in flight.
func (b *bed) soundAt(i int, z Zone, least int64) {
	b.Helper()
	capacity := b.s.Capacity
	if i < b.s.Conventional {
		capacity = b.s.ZoneSize
	}
	bad := func(format string, args ...any) {
		b.Helper()
		b.Errorf("zone %d, %+v: %s", i, z, fmt.Sprintf(format, args...))
	}
	if z.Start != b.s.Start(i) || z.Len != b.s.ZoneSize || z.Capacity != capacity {
		bad("want start %#x, length %#x, capacity %#x", b.s.Start(i), b.s.ZoneSize, capacity)
	}
	if z.Conventional != (i < b.s.Conventional) {
		bad("its type is another one than at first")
	}
	if z.Conventional {
		if z.Cond != zns.CondNotWP {
			bad("a conventional zone has no condition")
		}
		return
	}
	wp := z.WP - z.Start
	switch z.Cond {
	case zns.CondEmpty:
		if wp != 0 {
			bad("empty, but written")
		}
	case zns.CondImpOpen, zns.CondClosed:
		if wp < least || wp >= capacity {
			bad("its write pointer is not between start and capacity")
		}
	case zns.CondExpOpen:
		if wp < 0 || wp >= capacity {
			bad("its write pointer is not below the capacity")
		}
	case zns.CondFull:
		return
	default:
		bad("no such condition is possible")
	}
	if wp%b.s.Block != 0 {
		bad("its write pointer is within a block")
	}
}

var attributeRules = []rule{
	{"what sysfs says about the device agrees with the report", needsBlockDevice, func(b *bed) {
		d := b.d.(*BlockDevice)
		number := func(name string) int64 {
			b.Helper()
			n, err := d.attribute(name)
			if err != nil {
				b.Errorf("%v", err)
			}
			return n
		}
		same := func(name string, want int64) {
			b.Helper()
			if got := number(name); got != want {
				b.Errorf("%s is %d, want %d", name, got, want)
			}
		}
		zones := b.report(0, b.s.Zones+1)
		same("nr_zones", int64(len(zones)))
		same("chunk_sectors", zones[0].Len/sector)
		if g := number("zone_write_granularity"); g%number("logical_block_size") != 0 || g == 0 {
			b.Errorf("zone_write_granularity is %d", g)
		}
		if n := number("zone_append_max_bytes"); n <= 0 || n%b.s.Block != 0 || n > b.s.ZoneSize {
			b.Errorf("zone_append_max_bytes is %d", n)
		}
		open, active := number("max_open_zones"), number("max_active_zones")
		if active != 0 && (open > active || active > int64(b.s.Sequential())) {
			b.Errorf("limits of %d open and %d active zones, of %d", open, active, b.s.Sequential())
		}
	}},
}
