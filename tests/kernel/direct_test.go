//go:build kernel

package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mixed has zones of both kinds, and room for them in an ext4 of a few GB.
const mixed = "size=64M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=2"

// zeroout is a write-zeroes that may punch.
func (k *disk) zeroout(at, n int64) {
	k.t.Helper()
	if err := k.ioctl(unix.BLKZEROOUT, unsafe.Pointer(&[2]uint64{uint64(at), uint64(n)})); err != nil {
		k.t.Fatalf("BLKZEROOUT of %d bytes at %#x: %v", n, at, err)
	}
}

// whole reads the device.
func (k *disk) whole() []byte {
	k.t.Helper()
	b := make([]byte, 0, size("64M"))
	for len(b) < cap(b) {
		b = append(b, k.read(int64(len(b)), 1<<20)...)
	}
	return b
}

// atRest is a report of zones as it will be when the device is attached again.
func atRest(zones []zone) string {
	for i := range zones {
		if zones[i].cond == impOpen || zones[i].cond == expOpen {
			zones[i].cond = closed
		}
	}
	return fmt.Sprint(zones)
}

// directFiles counts the server's descriptors of the image by whether they go
// past the page cache.
func (d *device) directFiles() (direct, buffered int) {
	t := d.im.h.t
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", d.server())
	fds, err := os.ReadDir(dir + "fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(dir + "fd/" + fd.Name()); to != d.im.path {
			continue
		}
		b, err := os.ReadFile(dir + "fdinfo/" + fd.Name())
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), "flags:\t")
		line, _, _ := strings.Cut(rest, "\n")
		flags, err := strconv.ParseUint(line, 8, 32)
		if err != nil {
			t.Fatal(err)
		}
		if flags&unix.O_DIRECT != 0 {
			direct++
		} else {
			buffered++
		}
	}
	return direct, buffered
}

// Every way in which bytes come into an image, with and without the page cache.
func TestDataPastThePageCacheIsTheSameData(t *testing.T) {
	for _, b := range ways(t, 0, backings) {
		t.Run(b.name, func(t *testing.T) {
			h := begin(t)
			b.use(h)
			im := h.create("a.qcow2", mixed)
			d := im.attach("--direct", "--queues", queues())
			if direct, buffered := d.directFiles(); direct != 1 || buffered != 1 {
				t.Errorf("the server has the image open %d times past the page cache and %d times through it", direct, buffered)
			}
			k := d.open()
			z := k.zones()
			for i, at := 0, int64(0); i < 20; i++ { // conventional, over each other
				k.write(uint64(i+1)<<32, at, 512*(1+i*i))
				at += 512 * int64(i)
			}
			k.write(2, zlen, 1<<20)
			k.zeroout(zlen+512, 1024)           // in a cluster, and in a page
			k.zeroout(zlen+65536-1536, 3*65536) // over clusters, not with them
			k.write(3, zlen+512, 512)
			at := z[2].start // sequential: writes and zeros in turn
			for i := range 40 {
				n := 512 * (1 + 7*i)
				if i%3 == 2 {
					k.zeroout(at, int64(n))
				} else {
					k.write(4, at, n)
				}
				at += int64(n)
			}
			k.write(5, z[3].start, zcap) // full, and from the start again
			k.must(blkResetZone, z[3])
			k.write(6, z[3].start, 3*512)
			k.write(7, z[4].start, 65536+1536) // finished in a cluster
			k.must(blkFinishZone, z[4])
			k.write(8, z[5].start, 2<<20)
			k.must(blkFinishZone, z[5])
			k.write(9, z[6].start, 4<<20) // only reset
			k.must(blkResetZone, z[6])
			k.holds(3, zlen+512, 512)
			k.zeros(zlen+1024, 512)
			k.holds(7, z[4].start, 65536+1536)
			k.zeros(z[4].start+65536+1536, zcap-65536-1536)
			k.sync()
			want, zones := k.whole(), atRest(k.zones())

			// The file as it is now is what a machine finds that lost its power.
			cut := im.copy("cut.qcow2").attach().open()
			if !bytes.Equal(cut.whole(), want) {
				t.Error("after the flush the file holds something else")
			}
			for i, flags := range [][]string{{}, {"--direct"}, {"--read-only", "--direct"}} {
				k.close()
				d.detach()
				im.check()
				d = im.attach(flags...)
				k = d.open()
				if !bytes.Equal(k.whole(), want) {
					t.Errorf("attached with %v the device holds something else", flags)
				}
				if now := atRest(k.zones()); now != zones {
					t.Errorf("attached with %v the zones are %v, were %v", flags, now, zones)
				}
				if i > 1 {
					continue
				}
				wp := k.zone(2).wp // something for the next one to find
				k.write(10, wp, 70144)
				k.write(11, zlen+1<<20, 4096+512)
				want, zones = k.whole(), atRest(k.zones())
			}
		})
	}
}

func TestFioPastThePageCache(t *testing.T) {
	for _, b := range ways(t, 1, backings) {
		t.Run(b.name, func(t *testing.T) {
			h := begin(t)
			b.use(h)
			im := h.create("a.qcow2", "size=128M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=4,zone.max_open_zones=5,zone.max_active_zones=6")
			d := im.attach("--direct", "--queues", queues())
			d.fio("--ioengine=io_uring", "--iodepth=16", "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned=0", "--blockalign=512",
				"--size=32M", "--io_size=4M", "--name=conventional")
			d.fio("--zonemode=zbd", "--ioengine=libaio", "--iodepth=8", "--rw=write", "--bs=64k", "--offset=32M", "--size=96M", "--io_size=12M", "--name=seq")
			d.fio("--zonemode=zbd", "--ioengine=io_uring", "--iodepth=16", "--rw=randwrite", "--bsrange=4k-128k", "--blockalign=4k",
				"--max_open_zones=5", "--offset=32M", "--size=96M", "--io_size=8M", "--name=random")
			d.fio("--zonemode=zbd", "--ioengine=io_uring", "--iodepth=16", "--rw=randrw", "--bs=16k",
				"--max_open_zones=5", "--offset=32M", "--size=96M", "--io_size=4M", "--name=both")
		})
	}
}

func TestDirectIOInLargerBlocksNeedsThemOnTheDevice(t *testing.T) {
	h := begin(t)
	h.onFileSystem("ext4", h.ramDisk(4096).node)
	im := h.create("a.qcow2", mixed)
	before, err := os.ReadFile(im.path)
	if err != nil {
		t.Fatal(err)
	}
	says(t, h.refused(qzbd, "attach", "--direct", im.path), im.path, "4096", "--block-size 4096", "--direct")
	if after, err := os.ReadFile(im.path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the refusal changed the image (%v)", err)
	}
	d := im.attach("--direct", "--block-size", "4096")
	k := d.open()
	k.write(1, zlen, 12288)
	k.zeroout(zlen+4096, 4096)
	k.write(1, 2*zlen, 65536+4096)
	k.must(blkFinishZone, k.zone(2))
	k.close()
	d.detach()
	k = im.attach().open()
	k.holds(1, zlen, 4096)
	k.zeros(zlen+4096, 4096)
	k.holds(1, 2*zlen, 65536+4096)
	k.zeros(2*zlen+65536+4096, zcap-65536-4096)
}

func TestAFileSystemWithoutDirectIOIsNamedAsTheReason(t *testing.T) {
	for _, c := range []struct {
		name string
		use  func(h *host)
	}{
		{"ramfs", func(h *host) { h.onFileSystem("ramfs", "none") }},
		{"data=journal", func(h *host) { h.onFileSystem("ext4", h.ramDisk(512).node, "data=journal") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := begin(t)
			c.use(h)
			im := h.create("a.qcow2", mixed)
			says(t, h.refused(qzbd, "attach", "--direct", im.path), im.path, "no direct I/O", "attach it without --direct")
			k := im.attach().open()
			k.write(1, 2*zlen, 4096)
		})
	}
	h := begin(t)
	im := h.create("small.qcow2", "cluster_size=2K,"+mixed)
	says(t, h.refused(qzbd, "attach", "--direct", im.path), im.path, "clusters of 2048", "without --direct")
}

// With direct I/O an error of the disk is seen at once, by whoever asked for
// the bytes, and by nobody else: neither the zone nor the image suffers.
func TestAnErrorOfTheDiskReachesExactlyTheRequestConcerned(t *testing.T) {
	h := begin(t)
	disk := h.ramDisk(512)
	h.onFileSystem("ext4", disk.node)
	im := h.create("a.qcow2", mixed)
	d := im.attach("--direct")
	k := d.open()
	k.write(1, 0, 1<<20)      // conventional
	k.write(2, 2*zlen, 1<<20) // sequential
	k.sync()
	// Room on the disk, so that it is known what will be written where.
	f, err := os.OpenFile(im.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := func(seed uint64, place int64) int64 { // in the file
		content, err := os.ReadFile(im.path)
		if err != nil {
			t.Fatal(err)
		}
		off := bytes.Index(content, pattern(seed, place, 4096))
		if off < 0 {
			t.Fatalf("the image does not hold what was written at %#x", place)
		}
		return int64(off)
	}
	conv, seq := at(1, 65536), at(2, 2*zlen+65536)
	if err := unix.Fallocate(int(f.Fd()), 0, seq, 2<<20); err != nil {
		t.Fatal(err)
	}
	badConv, badOld, badNew := extentOf(t, im.path, conv), extentOf(t, im.path, seq), extentOf(t, im.path, seq+1<<20-65536)
	for _, bad := range []int64{badConv, badOld, badNew} {
		disk.fail(bad, 4096, true)
	}
	b := aligned(8192)
	for _, c := range []struct {
		at   int64
		n    int
		want error
	}{
		{65536, 4096, unix.EIO}, {65536 - 4096, 4096, nil}, {65536 + 4096, 8192, nil}, {65536 - 4096, 8192, unix.EIO},
		{2*zlen + 65536, 512, unix.EIO}, {2 * zlen, 8192, nil},
	} {
		if _, err := unix.Pread(k.fd, b[:c.n], c.at); !errors.Is(err, c.want) {
			t.Errorf("read of %d bytes at %#x: %v, want %v", c.n, c.at, err, c.want)
		}
	}
	k.refuse(unix.EIO, 65536, 4096)
	k.write(3, 0, 4096)
	k.refuse(unix.EIO, 2*zlen+1<<20, 65536)
	k.isIn(2, impOpen, 1<<20)
	k.write(4, 3*zlen, 65536) // another zone
	k.sync()
	for _, bad := range []int64{badConv, badOld, badNew} {
		disk.fail(bad, 4096, false)
	}
	k.write(2, 2*zlen+1<<20, 65536)
	k.write(5, 65536, 4096)
	k.sync()
	if l := h.list(); len(l) != 1 || l[0].State != "live" {
		t.Errorf("listed as %+v: errors of data have failed the image", l)
	}
	k.holds(2, 2*zlen, 1<<20+65536)
	k.holds(5, 65536, 4096)
	k.holds(3, 0, 4096)
	k.close()
	f.Close()
	d.detach()
}
