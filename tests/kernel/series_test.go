//go:build kernel

package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/zns"
)

// What the series with which the format was introduced got wrong, as far as a
// kernel lets an application ask for it; tests/sim/series_test.go has the
// same list. The kernel gives an application no zone append: TestBtrfs does it.
func TestWhatTheSeriesGotWrong(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=64M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=1,zone.max_open_zones=2,zone.max_active_zones=3")
	d := im.attach()
	k := d.open()
	again := func() {
		k.close()
		d.detach()
		d = im.attach()
		k = d.open()
	}
	in := func(n int) zone { return zone{start: int64(n) * zlen, length: zlen} }
	for _, c := range []struct {
		name string
		f    func(t *testing.T)
	}{
		{"an I/O error was swallowed and the write pointer had advanced", func(t *testing.T) {
			k.write(1, zlen, 4096)
			k.refuse(eio, zlen+8192, 4096)
			k.isIn(1, impOpen, 4096)
		}},
		{"the write pointer hit the disk before the data", func(t *testing.T) {
			k.write(1, zlen, 1<<20)
			k.sync()
			c := im.copy("flushed.qcow2").attach()
			k2 := c.open()
			k2.isIn(1, closed, 1<<20)
			k2.holds(1, zlen, 1<<20)
			k2.close()
			c.detach()
		}},
		{"opening a zone twice crashed", func(t *testing.T) {
			k.must(blkOpenZone, in(1))
			k.must(blkOpenZone, in(1))
			k.must(blkOpenZone, in(2)) // so it counts once
			k.are(notWP, expOpen, expOpen, empty)
		}},
		{"all open zones explicit plus one write crashed", func(t *testing.T) {
			k.must(blkOpenZone, in(1))
			k.must(blkOpenZone, in(2))
			k.refuse(unix.ETOOMANYREFS, 3*zlen, 4096)
			k.are(notWP, expOpen, expOpen, empty)
			k.write(1, zlen, 4096)
		}},
		{"explicit open ignored max_open", func(t *testing.T) {
			k.must(blkOpenZone, in(1))
			k.must(blkOpenZone, in(2))
			if err := k.mgmt(blkOpenZone, 3*zlen, zlen); !errors.Is(err, unix.ETOOMANYREFS) {
				t.Errorf("a third zone opened: %v", err)
			}
		}},
		{"the active limit could be bypassed after a reopen", func(t *testing.T) {
			for i := int64(1); i <= 3; i++ {
				k.write(1, i*zlen, 4096)
			}
			again()
			k.refuse(unix.EOVERFLOW, 4*zlen, 4096)
			if err := k.mgmt(blkOpenZone, 4*zlen, zlen); !errors.Is(err, unix.EOVERFLOW) {
				t.Errorf("a fourth zone opened: %v", err)
			}
			k.are(notWP, closed, closed, closed, empty)
		}},
		{"a closed zone could not be written when active = max", func(t *testing.T) {
			for i := int64(1); i <= 3; i++ {
				k.write(1, i*zlen, 4096)
			}
			k.must(blkCloseZone, in(3))
			for i := int64(1); i <= 3; i++ {
				k.write(1, i*zlen+4096, 4096)
			}
			k.are(notWP, closed, impOpen, impOpen)
		}},
		{"opening a full zone made it open", func(t *testing.T) {
			k.must(blkFinishZone, in(1))
			if err := k.mgmt(blkOpenZone, zlen, zlen); err == nil {
				t.Error("a full zone was opened")
			}
			k.isIn(1, full, zcap)
		}},
		{"capacity was reported as zone size", func(t *testing.T) {
			if z := k.zone(1); z.capacity != zcap || z.length != zlen {
				t.Errorf("%+v", z)
			}
		}},
		{"full was missed when the capacity is no power of two", func(t *testing.T) {
			k.write(1, zlen, zcap-4096)
			k.isIn(1, impOpen, zcap-4096)
			k.write(1, zlen+zcap-4096, 4096)
			k.isIn(1, full, zcap)
			k.refuse(eio, zlen+zcap, 4096)
		}},
		{"the last zone never became full and could not be reset alone", func(t *testing.T) {
			k.write(1, 7*zlen, zcap)
			k.write(1, 6*zlen, 4096)
			k.isIn(7, full, zcap)
			k.must(blkResetZone, in(7))
			k.isIn(7, empty, 0)
			k.isIn(6, impOpen, 4096)
		}},
		{"write-zeroes and discard bypassed all zone rules", func(t *testing.T) {
			k.write(1, zlen, 4096)
			for _, at := range []uint64{zlen + 65536, zlen} { // not at the pointer
				if err := k.ioctl(unix.BLKZEROOUT, unsafe.Pointer(&[2]uint64{at, 4096})); err == nil {
					t.Errorf("zeroes at %#x succeeded", at)
				}
				k.isIn(1, impOpen, 4096)
			}
			for _, mode := range []uint32{unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_PUNCH_HOLE} {
				if err := unix.Fallocate(k.fd, mode|unix.FALLOC_FL_KEEP_SIZE, zlen+65536, 4096); err == nil {
					t.Errorf("fallocate %#x away from the pointer succeeded", mode)
				}
				k.isIn(1, impOpen, 4096)
			}
			if err := k.ioctl(unix.BLKDISCARD, unsafe.Pointer(&[2]uint64{zlen, zlen})); !errors.Is(err, unix.EOPNOTSUPP) {
				t.Errorf("discard: %v", err)
			}
			k.holds(1, zlen, 4096)
			k.refuse(eio, 2*zlen+4096, 4096)
			k.isIn(2, empty, 0)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			k.t = t
			defer func() { k.t = h.t }()
			c.f(t)
			if err := k.mgmt(blkResetZone, 0, 8*zlen); err != nil {
				t.Error(err)
			}
			k.are(notWP, empty, empty, empty, empty, empty, empty, empty)
		})
	}
}

// spoiled is a file that no check has to like.
func (im *image) spoiled(name string, spoil func(f *os.File)) string {
	im.h.t.Helper()
	path := strings.TrimSuffix(im.path, ".qcow2") + name
	im.h.run("cp", "--sparse=always", im.path, path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		im.h.t.Fatal(err)
	}
	defer f.Close()
	spoil(f)
	return path
}

func TestWhatTheSeriesAcceptedIsNotAttached(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	file, err := os.Open(im.path)
	if err != nil {
		t.Fatal(err)
	}
	hdr, err := qcow2.ReadHeader(qcow2.NewOSFile(file))
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	put := func(at int64, v uint64) func(*os.File) {
		return func(f *os.File) {
			if _, err := f.WriteAt(binary.BigEndian.AppendUint64(nil, v), at); err != nil {
				t.Fatal(err)
			}
		}
	}
	entry := func(zone int, wp uint64) func(*os.File) {
		return func(f *os.File) {
			if _, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, wp), int64(hdr.Zoned.MetaOffset)+int64(zone)*8); err != nil {
				t.Fatal(err)
			}
		}
	}
	model := func(f *os.File) {
		b := make([]byte, 512)
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		i := strings.Index(string(b), "\x00\x7a\x62\x64")
		if _, err := f.WriteAt([]byte{7}, int64(i)+8); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range []struct {
		name, why string
		spoil     func(*os.File)
	}{
		{"internal snapshots", "nb_snapshots", put(60, 1<<32)},
		{"a resized device", "nr_zones", put(24, 256<<20)},
		{"an unknown model", "zoned is 7", model},
		{"an entry of another zone", "zone 3", entry(3, 9*zlen)},
		{"an entry that is no sector", "zone 3", entry(3, 3*zlen+100)},
		{"a conventional entry", "zone 3", entry(3, 1<<59|3*zlen)},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := im.spoiled(fmt.Sprint("bad", i), c.spoil)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if msg := h.refused(qzbd, "attach", path); !strings.Contains(msg, c.why) {
				t.Errorf("the refusal does not speak of %q: %s", c.why, msg)
			}
			if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
				t.Errorf("the refused image has changed (%v)", err)
			}
		})
	}
}

// Zones of 2 and 4 GiB: their beginning is written by the device, their middle
// is zeros that cost nothing, and their end is reached through the kernel.
func TestHugeZonesWorkUpToTheirEnds(t *testing.T) {
	for _, gib := range []int64{2, 4} {
		t.Run(fmt.Sprintf("%dG", gib), func(t *testing.T) {
			h := begin(t)
			im := h.create("a.qcow2", fmt.Sprintf("size=%dG,zone.size=%dG", 4*gib, gib))
			size := gib << 30
			im.inside(func(f *os.File, dev *zns.Device) {
				q := &zns.Request{Op: zns.OpWriteZeroes, Start: uint64(3 * size), Len: uint64(size - 8192)}
				if err := zns.Do(dev, q, f, nil); err != nil {
					t.Fatal(err)
				}
			})
			d := im.attach()
			k := d.open()
			k.isIn(3, closed, size-8192)
			k.write(1, 4*size-8192, 4096)
			k.isIn(3, impOpen, size-4096)
			k.write(1, 4*size-4096, 4096)
			k.isIn(3, full, size)
			k.write(1, 2*size, 4096)
			k.must(blkFinishZone, zone{start: 2 * size, length: size})
			for again := range 2 {
				k.are(empty, empty, full, full)
				k.holds(1, 4*size-8192, 8192)
				k.zeros(4*size-16384, 8192)
				k.holds(1, 2*size, 4096)
				k.zeros(3*size-4096, 4096)
				if again == 0 {
					k.close()
					d.detach()
					d = im.attach()
					k = d.open()
				}
			}
			k.must(blkResetZone, zone{start: 3 * size, length: size})
			k.are(empty, empty, full, empty)
			k.zeros(4*size-8192, 8192)
			k.write(2, 3*size, 4096)
			k.isIn(3, impOpen, 4096)
		})
	}
}

// inside lets f work on the image without a kernel.
func (im *image) inside(f func(*os.File, *zns.Device)) {
	im.h.t.Helper()
	file, err := os.OpenFile(im.path, os.O_RDWR, 0)
	if err != nil {
		im.h.t.Fatal(err)
	}
	x, err := qcow2.Open(qcow2.NewOSFile(file), qcow2.Options{})
	if err != nil {
		im.h.t.Fatal(err)
	}
	dev, err := zns.New(geometryOf(x), x)
	if err != nil {
		im.h.t.Fatal(err)
	}
	f(file, dev)
	if err := x.Close(); err != nil {
		im.h.t.Fatal(err)
	}
}

// geometryOf is what the image says of its zones.
func geometryOf(x *qcow2.Image) zns.Geometry {
	hdr := x.Header()
	z := hdr.Zoned
	return zns.Geometry{
		Size: hdr.Size, ZoneSize: z.ZoneSize, ZoneCapacity: z.ZoneCapacity, NrZones: z.NrZones, Conventional: z.Conventional,
		MaxOpen: z.MaxOpen, MaxActive: z.MaxActive, MaxAppend: 64 << 10, BlockSize: 512,
	}
}

// Zeros with and without unmap: both move the pointer of a sequential zone, in
// a conventional one both read as zeros and leave the rest alone.
func TestZeroRangeAndPunchHoleAreWriteZeroes(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=64M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=1")
	d := im.attach()
	k := d.open()
	for i, mode := range []uint32{unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_PUNCH_HOLE} {
		n := int64(i + 1)
		start := n * zlen
		k.write(1, start, 8192)
		if err := unix.Fallocate(k.fd, mode|unix.FALLOC_FL_KEEP_SIZE, start+8192, 65536); err != nil {
			t.Errorf("fallocate %#x at the pointer: %v", mode, err)
		}
		k.isIn(int(n), impOpen, 8192+65536)
		k.write(1, start+8192+65536, 4096)
		if err := unix.Fallocate(k.fd, mode|unix.FALLOC_FL_KEEP_SIZE, start+zcap-4096, 8192); err == nil {
			t.Errorf("fallocate %#x across the capacity succeeded", mode)
		}
		k.isIn(int(n), impOpen, 8192+65536+4096)
		k.write(1, 0, 1<<20)
		if err := unix.Fallocate(k.fd, mode|unix.FALLOC_FL_KEEP_SIZE, 65536+4096, 512<<10); err != nil {
			t.Errorf("fallocate %#x in a conventional zone: %v", mode, err)
		}
		k.holds(1, 0, 65536+4096)
		k.zeros(65536+4096, 512<<10)
		k.holds(1, 65536+4096+512<<10, 1<<20-(65536+4096+512<<10))
	}
	k.close()
	d.detach()
	k = im.attach().open()
	for n := int64(1); n < 3; n++ {
		k.isIn(int(n), closed, 8192+65536+4096)
		k.holds(1, n*zlen, 8192)
		k.zeros(n*zlen+8192, 65536)
		k.holds(1, n*zlen+8192+65536, 4096)
	}
	k.zeros(65536+4096, 512<<10)
}
