package main

import (
	"fmt"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

// shortLast is an image of three zones and a short one, and its pointers.
func shortLast(change func(*qcow2.Zoned)) (*qcow2.Header, []uint64) {
	h := &qcow2.Header{Size: 3*64*mib + 36*mib, Zoned: qcow2.Zoned{
		ZoneSize: 64 * mib, ZoneCapacity: 48 * mib, NrZones: 4, MaxAppend: 64 << 10,
	}}
	change(&h.Zoned)
	return h, []uint64{0, 64 * mib, 128 * mib, 192*mib + 4096}
}

func TestAShortLastZoneIsLeftOutOnRequestOnly(t *testing.T) {
	want := zns.Geometry{
		Size: 192 * mib, ZoneSize: 64 * mib, ZoneCapacity: 48 * mib, NrZones: 3, MaxAppend: 64 << 10, BlockSize: 512,
	}
	limits := func(open, active uint32) zns.Geometry {
		g := want
		g.MaxOpen, g.MaxActive = open, active
		return g
	}
	const (
		empty = 192 * mib
		some  = 192*mib + 4096
		full  = 192*mib + 36*mib
	)
	for _, c := range []struct {
		what   string
		change func(*qcow2.Zoned)
		last   uint64
		want   zns.Geometry
		err    string
	}{
		{"no limits", func(*qcow2.Zoned) {}, some, want, ""},
		{"active, limits", func(z *qcow2.Zoned) { z.MaxActive, z.MaxOpen = 3, 3 }, some, limits(2, 2), ""},
		{"active, a lower limit of open ones", func(z *qcow2.Zoned) { z.MaxActive, z.MaxOpen = 3, 1 }, some, limits(1, 2), ""},
		{"active, no limit of open ones", func(z *qcow2.Zoned) { z.MaxActive = 3 }, some, limits(0, 2), ""},
		{"active, open ones limited only", func(z *qcow2.Zoned) { z.MaxOpen = 2 }, some, limits(2, 0), ""},
		{"empty, limits", func(z *qcow2.Zoned) { z.MaxActive, z.MaxOpen = 1, 1 }, empty, limits(1, 1), ""},
		{"full, limits", func(z *qcow2.Zoned) { z.MaxActive, z.MaxOpen = 1, 1 }, full, limits(1, 1), ""},
		{"active, a limit of one", func(z *qcow2.Zoned) { z.MaxActive, z.MaxOpen = 1, 1 }, some, zns.Geometry{},
			"its short last zone is neither empty nor full and max_active_zones is 1: without that zone no other could be written"},
		{"all others conventional", func(z *qcow2.Zoned) { z.Conventional = 3 }, empty, zns.Geometry{},
			"without its short last zone no sequential zone is left, and a zoned device needs one: it has 4 zones, 3 of them conventional"},
	} {
		t.Run(c.what, func(t *testing.T) {
			h, wps := shortLast(c.change)
			wps[3] = c.last
			g, err := geometry(h, wps, &attachOptions{blockSize: 512, dropShortZone: true})
			if fmt.Sprint(err) != c.err && (err != nil || c.err != "") || g != c.want {
				t.Errorf("got  %+v, %v\nwant %+v, %s", g, err, c.want, c.err)
			}
			if h.Zoned.NrZones != 4 {
				t.Error("the header was changed")
			}
			_, err = geometry(h, wps, &attachOptions{blockSize: 512})
			const refusal = "the last of its 4 zones is short (37748736 of 67108864 bytes), which no Linux kernel serves: attach it without that zone with --drop-short-zone; info, zones and check work on the file"
			if err == nil || err.Error() != refusal {
				t.Errorf("without the flag: %v", err)
			}
		})
	}
	h, wps := shortLast(func(*qcow2.Zoned) {})
	h.Size = 256 * mib
	g, err := geometry(h, wps, &attachOptions{blockSize: 512, dropShortZone: true})
	if err != nil || g.NrZones != 4 || g.Size != 256*mib {
		t.Errorf("the flag does something without a short zone: %+v, %v", g, err)
	}
}

func TestAnImageThatDoesNotFitTheBlockSizeIsRefused(t *testing.T) {
	for _, c := range []struct {
		change func(*qcow2.Zoned, []uint64)
		err    string
	}{
		{func(*qcow2.Zoned, []uint64) {}, ""},
		{func(_ *qcow2.Zoned, wps []uint64) { wps[1] += 512 }, "the write pointer of zone 1, 0x4000200, is not at a multiple of 4096: attach it with --block-size 512"},
		{func(z *qcow2.Zoned, wps []uint64) { z.Conventional, wps[1] = 1, 112*mib }, ""},
		{func(z *qcow2.Zoned, _ []uint64) { z.MaxAppend = 512 }, "zone.max_append_bytes 512 is less than a block of 4096: attach it with --block-size 512"},
	} {
		h, wps := shortLast(func(*qcow2.Zoned) {})
		c.change(&h.Zoned, wps)
		_, err := geometry(h, wps, &attachOptions{blockSize: 4096, dropShortZone: true})
		if err == nil != (c.err == "") || err != nil && err.Error() != c.err {
			t.Errorf("got  %v\nwant %s", err, c.err)
		}
	}
}

func TestAnImageWithoutAppendLimitGetsTheDevices(t *testing.T) {
	h, wps := shortLast(func(z *qcow2.Zoned) { z.MaxAppend = 0 })
	g, err := geometry(h, wps, &attachOptions{blockSize: 512, dropShortZone: true})
	if err != nil || g.MaxAppend != ublk.DefaultMaxIO {
		t.Errorf("%+v, %v", g, err)
	}
}
