package ublk

import (
	"strings"
	"testing"

	"github.com/qzbd/qzbd/zns"
)

// good is a geometry with nothing wrong.
func good() zns.Geometry {
	return zns.Geometry{
		Size: 64 << 20, ZoneSize: 4 << 20, ZoneCapacity: 3 << 20, NrZones: 16, Conventional: 2,
		MaxAppend: 1 << 20, BlockSize: 512,
	}
}

func goodZone(g zns.Geometry, i uint32) zns.Zone {
	z := zns.Zone{Start: uint64(i) * g.ZoneSize, Len: g.ZoneSize, Capacity: g.ZoneCapacity, Type: zns.TypeSeqWriteReq, Cond: zns.CondEmpty}
	if i < g.Conventional {
		z.Capacity, z.Type, z.Cond = g.ZoneSize, zns.TypeConventional, zns.CondNotWP
	}
	z.WP = z.Start
	return z
}

func TestWhatTheKernelWouldRefuseIsExplained(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func(*Config, *zns.Geometry)
		want   string // in the error, "" for none
	}{
		{"nothing", func(*Config, *zns.Geometry) {}, ""},
		{"negative id", func(c *Config, _ *zns.Geometry) { c.ID = -2 }, "device id -2"},
		{"huge id", func(c *Config, _ *zns.Geometry) { c.ID = 1 << 20 }, "device id 1048576"},
		{"any id", func(c *Config, _ *zns.Geometry) { c.ID = -1 }, ""},
		{"negative queues", func(c *Config, _ *zns.Geometry) { c.Queues = -1 }, "-1 queues"},
		{"too many queues", func(c *Config, _ *zns.Geometry) { c.Queues = 4097 }, "4097 queues"},
		{"negative depth", func(c *Config, _ *zns.Geometry) { c.Depth = -3 }, "depth of -3"},
		{"deepest", func(c *Config, _ *zns.Geometry) { c.Depth = 4096 }, ""},
		{"too deep", func(c *Config, _ *zns.Geometry) { c.Depth = 4097 }, "depth of 4097"},
		{"odd largest request", func(c *Config, _ *zns.Geometry) { c.MaxIO = 6000 }, "6000 bytes"},
		{"largest request", func(c *Config, _ *zns.Geometry) { c.MaxIO = 32 << 20 }, ""},
		{"too large a request", func(c *Config, _ *zns.Geometry) { c.MaxIO = 33 << 20 }, "34603008 bytes"},
		{"no data file", func(c *Config, _ *zns.Geometry) { c.DataFD = -1 }, "descriptor is -1"},
		{"direct I/O in larger blocks", func(c *Config, _ *zns.Geometry) { c.DataAlign = 4096 }, "multiples of 4096"},
		{"direct I/O in the same blocks", func(c *Config, g *zns.Geometry) { c.DataAlign, g.BlockSize = 4096, 4096 }, ""},
		{"block size", func(_ *Config, g *zns.Geometry) { g.BlockSize = 1024 }, "block size of 1024"},
		{"no zone size", func(_ *Config, g *zns.Geometry) { g.ZoneSize = 0 }, "zone size of 0"},
		{"zone size 3M", func(_ *Config, g *zns.Geometry) { g.ZoneSize = 3 << 20 }, "not a power of two"},
		{"tiny zones", func(_ *Config, g *zns.Geometry) { g.ZoneSize = 2048 }, "zone size of 2048"},
		{"giant zones", func(_ *Config, g *zns.Geometry) { g.ZoneSize = 2 << 40 }, "zone size of 2199023255552"},
		{"no zones", func(_ *Config, g *zns.Geometry) { g.NrZones = 0 }, "no whole zone"},
		{"most zones", func(_ *Config, g *zns.Geometry) { g.NrZones, g.Size = MaxZones, MaxZones<<22 }, ""},
		{"too many zones", func(_ *Config, g *zns.Geometry) { g.NrZones, g.Size = MaxZones+1, (MaxZones+1)<<22 }, "16385 zones"},
		{"report larger than a request", func(c *Config, g *zns.Geometry) {
			g.NrZones, g.Size, c.MaxIO = 65, 65<<22, 4096
		}, "takes 8192 bytes"},
		{"report as large as a request", func(c *Config, g *zns.Geometry) {
			g.NrZones, g.Size, c.MaxIO = 64, 64<<22, 4096
		}, ""},
		{"short last zone", func(_ *Config, g *zns.Geometry) { g.Size -= 4096 }, "last zone must not be short"},
		{"only conventional", func(_ *Config, g *zns.Geometry) { g.Conventional = 16 }, "at least one must be sequential"},
		{"one sequential", func(_ *Config, g *zns.Geometry) { g.Conventional = 15 }, ""},
		{"no capacity", func(_ *Config, g *zns.Geometry) { g.ZoneCapacity = 0 }, "capacity of 0"},
		{"capacity above size", func(_ *Config, g *zns.Geometry) { g.ZoneCapacity = 5 << 20 }, "capacity of 5242880"},
		{"unaligned capacity", func(_ *Config, g *zns.Geometry) { g.ZoneCapacity, g.BlockSize = 3<<20+512, 4096 }, "use a block size of 512"},
		{"no append", func(_ *Config, g *zns.Geometry) { g.MaxAppend = 0 }, "append limit of 0"},
	} {
		cfg, g := Config{}.withDefaults(), good()
		c.change(&cfg, &g)
		_, err := deviceParams(cfg, g)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.what, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: error %v, want one with %q", c.what, err, c.want)
		case err != nil && strings.Contains(err.Error(), "\n"):
			t.Errorf("%s: more than a line: %v", c.what, err)
		}
	}
}

func TestEveryZoneOfTheReportIsChecked(t *testing.T) {
	for _, c := range []struct {
		what   string
		zone   uint32
		change func(*zns.Zone)
		want   string
	}{
		{"nothing", 5, func(*zns.Zone) {}, ""},
		{"gap", 5, func(z *zns.Zone) { z.Start += 512 }, "starts at byte"},
		{"length", 5, func(z *zns.Zone) { z.Len /= 2 }, "length"},
		{"last zone short", 15, func(z *zns.Zone) { z.Len -= 4096 }, "length"},
		{"capacity", 5, func(z *zns.Zone) { z.Capacity -= 4096 }, "capacity"},
		{"capacity of a conventional zone", 1, func(z *zns.Zone) { z.Capacity = 3 << 20 }, "capacity"},
		{"capacity of an offline zone", 5, func(z *zns.Zone) { z.Cond, z.Capacity = zns.CondOffline, 0 }, "capacity"},
		{"type", 5, func(z *zns.Zone) { z.Type = 3 }, "type"},
		{"conventional in the midst", 5, func(z *zns.Zone) { z.Type, z.Cond = zns.TypeConventional, zns.CondNotWP }, "type"},
		{"unknown condition", 5, func(z *zns.Zone) { z.Cond = 7 }, "condition"},
		{"sequential without pointer", 5, func(z *zns.Zone) { z.Cond = zns.CondNotWP }, "sequential and in condition"},
		{"open conventional", 1, func(z *zns.Zone) { z.Cond = zns.CondExpOpen }, "conventional and in condition"},
		{"open", 5, func(z *zns.Zone) { z.Cond, z.WP = zns.CondExpOpen, z.Start+512 }, ""},
		{"closed", 5, func(z *zns.Zone) { z.Cond, z.WP = zns.CondClosed, z.Start+512 }, ""},
		{"pointer below", 5, func(z *zns.Zone) { z.Cond, z.WP = zns.CondClosed, z.Start-512 }, "lies outside"},
		{"pointer above", 5, func(z *zns.Zone) { z.Cond, z.WP = zns.CondClosed, z.Start+z.Capacity+512 }, "lies outside"},
		{"odd pointer", 5, func(z *zns.Zone) { z.Cond, z.WP = zns.CondClosed, z.Start+100 }, "not a multiple"},
		{"full", 5, func(z *zns.Zone) { z.Cond, z.WP = zns.CondFull, z.Start+z.Capacity }, ""},
		{"full below its end", 5, func(z *zns.Zone) { z.Cond = zns.CondFull }, "full with its write pointer"},
		{"empty above its start", 5, func(z *zns.Zone) { z.WP += 512 }, "empty with its write pointer"},
		{"read-only", 5, func(z *zns.Zone) { z.Cond, z.WP = zns.CondReadOnly, 0 }, ""},
		{"offline", 5, func(z *zns.Zone) { z.Cond, z.WP = zns.CondOffline, 1<<60 }, ""},
	} {
		g := good()
		err := checkZones(g, func(i uint32) zns.Zone {
			z := goodZone(g, i)
			if i == c.zone {
				c.change(&z)
			}
			return z
		})
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.what, err, c.want)
		}
	}
}

func TestParametersAreInSectors(t *testing.T) {
	cfg, g := Config{ReadOnly: true}.withDefaults(), good()
	g.MaxOpen, g.MaxActive = 4, 6
	p, err := deviceParams(cfg, g)
	if err != nil {
		t.Fatal(err)
	}
	want := params{
		Len: 152, Types: 1 | 2 | 8,
		Basic: paramsBasic{
			Attrs: 1 | 4 | 8, LogicalShift: 9, PhysicalShift: 12, IOMinShift: 12,
			MaxSectors: 2048, ChunkSectors: 8192, DevSectors: 16 * 8192,
		},
		Discard: paramsDiscard{Granularity: 4096, MaxWriteZeroesSectors: 8192},
		Zoned:   paramsZoned{MaxOpenZones: 4, MaxActiveZones: 6, MaxZoneAppendSectors: 2048},
	}
	if p != want {
		t.Errorf("%+v\nwant %+v", p, want)
	}
}

func TestAppendsAndZeroesStayWithinTheirLimits(t *testing.T) {
	for _, c := range []struct {
		append, capacity uint64
		maxIO            int
		block            uint32
		want             uint32 // sectors
	}{
		{1 << 20, 3 << 20, 1 << 20, 512, 2048},
		{64 << 10, 3 << 20, 1 << 20, 512, 128},
		{1 << 20, 3 << 20, 64 << 10, 512, 128},
		{1 << 20, 32 << 10, 1 << 20, 512, 64},
		{5000, 3 << 20, 1 << 20, 512, 9},
		{9000, 3 << 20, 1 << 20, 4096, 16},
	} {
		g := good()
		g.MaxAppend, g.ZoneCapacity, g.BlockSize = c.append, c.capacity, c.block
		p, err := deviceParams(Config{MaxIO: c.maxIO}.withDefaults(), g)
		if err != nil || p.Zoned.MaxZoneAppendSectors != c.want {
			t.Errorf("%+v: %d sectors (%v)", c, p.Zoned.MaxZoneAppendSectors, err)
		}
	}
	g := good()
	g.ZoneSize, g.Size, g.NrZones = 4<<30, 16<<30, 4
	if p, err := deviceParams(Config{}.withDefaults(), g); err != nil || p.Discard.MaxWriteZeroesSectors != 1<<21 {
		t.Errorf("write zeroes in 4 GiB zones: %d sectors (%v)", p.Discard.MaxWriteZeroesSectors, err)
	}
}

func TestZoneLimitsAreWhatTheKernelTakes(t *testing.T) {
	for _, c := range []struct{ open, active, wantOpen, wantActive uint32 }{
		{0, 0, 0, 0},
		{6, 8, 6, 8},
		{6, 0, 6, 0},
		{0, 8, 0, 8},
		{9, 8, 8, 8},   // more open than active ones is not possible anyway
		{14, 14, 0, 0}, // all 14 sequential zones: no limit
		{100, 100, 0, 0},
		{13, 14, 13, 0},
		{14, 13, 13, 13},
	} {
		g := good()
		g.MaxOpen, g.MaxActive = c.open, c.active
		if o, a := zoneLimits(g); o != c.wantOpen || a != c.wantActive {
			t.Errorf("open %d and active %d become %d and %d", c.open, c.active, o, a)
		}
	}
}
