//go:build kernel

package kernel

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	eio = unix.EIO

	small = "size=128M,zone.size=8M,zone.capacity=6M"
	zlen  = 8 << 20 // zone size of small
	zcap  = 6 << 20 // and its capacity
)

func TestTheDeviceAnnouncesTheImagesGeometry(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", founding).attach("--queues", queues())
	for _, a := range []struct{ attribute, want string }{
		{"zoned", "host-managed"},
		{"nr_zones", "12"},
		{"chunk_sectors", "131072"},
		{"max_open_zones", "6"},
		{"max_active_zones", "8"},
		{"zone_append_max_bytes", "4096"},
		{"logical_block_size", "512"},
		{"physical_block_size", "4096"},
		{"zone_write_granularity", "512"},
		{"write_cache", "write back"},
		{"fua", "1"},
		{"rotational", "0"},
	} {
		if got := d.sysfs("queue/" + a.attribute); got != a.want {
			t.Errorf("%s is %q, want %q", a.attribute, got, a.want)
		}
	}
	if got := h.run("blockdev", "--getsize64", d.node); got != fmt.Sprintln(size("768M")) {
		t.Errorf("size %s", got)
	}
}

func TestWritesAtTheWritePointerAreTakenInEverySize(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", small).attach()
	k := d.open()
	at := int64(2 * zlen)
	for _, n := range []int{512, 512, 1024, 4096, 1536, 65536, 64512, 1 << 20, 131072 + 512, 2 << 20} {
		k.write(1, at, n)
		at += int64(n)
		k.isIn(2, impOpen, at-2*zlen)
	}
	k.holds(1, 2*zlen, int(at-2*zlen))
	k.isIn(1, empty, 0)
	k.isIn(3, empty, 0)
}

func TestAWriteElsewhereFailsAndAReportMendsTheZone(t *testing.T) {
	h := begin(t)
	k := h.create("a.qcow2", small).attach().open()
	k.write(1, 0, 8192)
	for _, wrong := range []int64{8192 + 4096, 4096, 0, zcap - 4096, 8192 + 512} {
		k.refuse(eio, wrong, 4096)
		// The kernel stops all writes to a zone in which one has failed until
		// somebody asks how the zone is.
		k.isIn(0, impOpen, 8192)
		wp := k.zone(0).wp
		k.write(1, wp, 4096)
		k.holds(1, 0, 8192+4096)
		k.must(blkResetZone, k.zone(0))
		k.write(1, 0, 8192)
	}
	// Nothing has come into an empty zone either, and the neighbour is fine.
	k.refuse(eio, zlen+4096, 4096)
	k.isIn(1, empty, 0)
	k.zeros(zlen, 65536)
	k.write(1, zlen, 4096)
	k.holds(1, zlen, 4096)
}

func TestReadsAboveTheWritePointerAreZeros(t *testing.T) {
	h := begin(t)
	k := h.create("a.qcow2", small).attach().open()
	const wp = 1<<20 + 512*3
	k.write(1, zlen, wp)
	across := append(pattern(1, zlen+1<<20, 1536), make([]byte, 65536-1536)...)
	k.same(zlen+1<<20, across)                                            // across the pointer
	k.zeros(zlen+wp, 1<<20)                                               // at it
	k.zeros(zlen+zcap-4096, 8192)                                         // across the capacity
	k.zeros(zlen+zcap, zlen-zcap)                                         // behind it
	k.zeros(2*zlen-4096, 8192)                                            // into the next zone
	k.zeros(15*zlen, zlen)                                                // the last zone
	k.holds(1, zlen, wp)                                                  // below the pointer, in one go
	k.holds(1, zlen+4096, 512)                                            // a part
	k.holds(1, zlen+wp-512, 512)                                          // the last block
	k.same(zlen-512, append(make([]byte, 512), pattern(1, zlen, 512)...)) // from the zone before
}

func TestNothingFitsBehindTheCapacity(t *testing.T) {
	h := begin(t)
	k := h.create("a.qcow2", "size=512M,zone.size=64M,zone.capacity=48M").attach().open()
	const zone, capacity = 64 << 20, 48 << 20
	for at := int64(zone); at < zone+capacity-8192; at += 4 << 20 {
		k.write(1, at, int(min(4<<20, zone+capacity-8192-at)))
	}
	k.isIn(1, impOpen, capacity-8192)
	k.refuse(eio, zone+capacity-8192, 16384)
	k.isIn(1, impOpen, capacity-8192)
	k.zeros(zone+capacity-8192, 16384)
	k.write(1, zone+capacity-8192, 8192)
	k.isIn(1, full, capacity)
	k.refuse(eio, zone+capacity, 4096)
	k.refuse(eio, zone, 4096)
	k.isIn(1, full, capacity)
	k.zeros(zone+capacity, 1<<20)
	for at := int64(zone); at < zone+capacity; at += 4 << 20 {
		k.holds(1, at, 4<<20)
	}
	if z := k.zone(1); z.capacity != capacity || z.length != zone {
		t.Errorf("length %#x, capacity %#x", z.length, z.capacity)
	}
}

func TestOneWriteMayReachFromAZoneIntoTheNext(t *testing.T) {
	h := begin(t)
	k := h.create("a.qcow2", "size=128M,zone.size=8M").attach().open()
	for at := int64(0); at < zlen-1<<20; at += 1 << 20 {
		k.write(1, at, 1<<20)
	}
	k.write(1, zlen-1<<20, 3<<20)
	k.are(full, impOpen, empty)
	k.isIn(1, impOpen, 2<<20)
	k.holds(1, 0, zlen+2<<20)
}

func TestWriteZeroesMoveTheWritePointer(t *testing.T) {
	h := begin(t)
	k := h.create("a.qcow2", small).attach().open()
	zeroout := func(at, n uint64) error {
		return k.ioctl(unix.BLKZEROOUT, unsafe.Pointer(&[2]uint64{at, n}))
	}
	k.write(1, 0, 4096)
	k.write(1, zlen, 4096)
	k.must(blkResetZone, k.zone(0)) // old data that must not shine through
	k.write(1, 0, 512)
	if err := zeroout(512, 1<<20); err != nil {
		t.Fatalf("BLKZEROOUT at the write pointer: %v", err)
	}
	k.isIn(0, impOpen, 1<<20+512)
	k.write(1, 512+1<<20, 4096)
	k.holds(1, 0, 512)
	k.zeros(512, 1<<20)
	k.holds(1, 512+1<<20, 4096)

	if err := zeroout(zlen+65536, 4096); err == nil {
		t.Error("BLKZEROOUT away from the write pointer succeeded")
	}
	k.isIn(1, impOpen, 4096)
	if err := zeroout(zlen+4096, zcap-4096); err != nil {
		t.Fatalf("BLKZEROOUT of the rest of a zone: %v", err)
	}
	k.isIn(1, full, zcap)
	k.holds(1, zlen, 4096)
	k.zeros(zlen+4096, zcap-4096)
}

func TestConventionalZonesTakeOverwritesAnywhere(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=64M,zone.size=8M,zone.conventional_zones=3")
	d := im.attach("--queues", queues())
	k := d.open()
	const blocks = 3 * zlen / 512
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	content := make([]uint64, blocks) // seed of the last write to a block
	for i := uint64(1); i <= 400; i++ {
		n := 1 + rnd.IntN(300)
		first := rnd.IntN(blocks - n)
		if i%4 == 0 { // again where others have written
			first &= 1023
		}
		k.write(i<<32, int64(first)*512, n*512)
		for b := first; b < first+n; b++ {
			content[b] = i << 32
		}
	}
	compare := func() {
		t.Helper()
		for b := 0; b < blocks; {
			n := 1
			for b+n < blocks && content[b+n] == content[b] {
				n++
			}
			if content[b] == 0 {
				k.zeros(int64(b)*512, n*512)
			} else {
				k.holds(content[b], int64(b)*512, n*512)
			}
			b += n
		}
	}
	compare()
	k.are(notWP, notWP, notWP, empty)
	k.close()
	d.detach()
	k = im.attach().open()
	compare()
}

func TestWhatIsFlushedIsInTheFile(t *testing.T) {
	for _, c := range []struct {
		name  string
		flush func(k *disk, at int64, n int)
	}{
		{"fsync", func(k *disk, at int64, n int) {
			k.write(1, at, n)
			k.sync()
		}},
		{"FUA", func(k *disk, at int64, n int) {
			if err := k.pwrite(at, pattern(1, at, n), unix.RWF_DSYNC); err != nil {
				k.t.Fatalf("RWF_DSYNC: %v", err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := begin(t)
			im := h.create("a.qcow2", "size=128M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=1")
			d := im.attach()
			k := d.open()
			c.flush(k, 65536, 12288) // conventional
			k.write(1, zlen, 4096)
			for i := int64(1); i < 4; i++ {
				c.flush(k, i*zlen+k.zone(int(i)).written(), 69632)
			}
			k.must(blkFinishZone, k.zone(3))
			k.sync()
			if err := k.mgmt(blkResetZone, 2*zlen, zlen); err != nil {
				t.Fatal(err)
			}

			// The file as it is now is what a machine finds that lost its power.
			k2 := im.copy("b.qcow2").attach().open()
			k2.are(notWP, closed, empty, full, empty)
			k2.isIn(1, closed, 4096+69632)
			k2.holds(1, zlen, 4096+69632)
			k2.zeros(2*zlen, 1<<20)
			k2.holds(1, 3*zlen, 69632)
			k2.zeros(3*zlen+69632, 1<<20)
			k2.holds(1, 65536, 12288)
		})
	}
}

func TestBlocksOf4KLeaveNoRoomForSmallerWrites(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", small).attach("--block-size", "4096")
	for _, a := range []string{"logical_block_size", "zone_write_granularity"} {
		if got := d.sysfs("queue/" + a); got != "4096" {
			t.Errorf("%s is %s", a, got)
		}
	}
	k := d.open()
	if err := k.pwrite(0, pattern(1, 0, 512), 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("write of 512 bytes: %v", err)
	}
	k.write(1, 0, 4096)
	k.write(1, 4096, zcap-4096)
	k.isIn(0, full, zcap)
	k.holds(1, 0, zcap)
}

func TestBufferedReadsSeeWhatDirectWritesPutThere(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", small).attach()
	k := d.open()
	k.write(1, 0, 1<<20)
	k.write(1, zlen, zcap)
	h.run("cmp", "-n", fmt.Sprint(zcap), d.node, d.node) // read it all
	want := h.run("sh", "-c", fmt.Sprintf("dd if=%s bs=1M count=8 skip=8 iflag=direct status=none | sha256sum", d.node))
	got := h.run("sh", "-c", fmt.Sprintf("dd if=%s bs=1M count=8 skip=8 status=none | sha256sum", d.node))
	if got != want {
		t.Errorf("through the page cache %s, past it %s", got, want)
	}
}
