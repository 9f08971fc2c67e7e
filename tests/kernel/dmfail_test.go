//go:build kernel

package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// moody is a mapped disk that fails on demand.
type moody struct {
	*mapped
	under string // the disk below
}

const moodySectors = 2 << 30 / 512

func (h *host) moodyDisk() *moody {
	h.t.Helper()
	h.run("modprobe", "dm-flakey")
	d := &moody{under: h.ramDisk(512).node}
	d.mapped = h.dm("qzbd-moody", d.linear(0, moodySectors))
	return d
}

func (d *moody) linear(from, to int64) string {
	return fmt.Sprintf("%d %d linear %s %d\n", from, to-from, d.under, from)
}

// become replaces the disk's table, under whoever uses it.
func (d *moody) become(table string) {
	h := d.h
	h.t.Helper()
	h.tool("dmsetup", "reload", d.name, "--table", table)
	h.tool("dmsetup", "suspend", "--nolockfs", "--noflush", d.name)
	h.tool("dmsetup", "resume", d.name)
}

func (d *moody) well() { d.h.t.Helper(); d.become(d.linear(0, moodySectors)) }

// fails makes all reads or all writes fail, by dm-flakey's feature of that
// name.
func (d *moody) fails(feature string) {
	d.h.t.Helper()
	d.become(fmt.Sprintf("0 %d flakey %s 0 0 3600 1 %s\n", moodySectors, d.under, feature))
}

// failsAt makes a range of bytes fail.
func (d *moody) failsAt(at, n int64) {
	d.h.t.Helper()
	from, to := at/512, (at+n)/512
	d.become(d.linear(0, from) + fmt.Sprintf("%d %d error\n", from, to-from) + d.linear(to, moodySectors))
}

func (d *device) state() string {
	d.im.h.t.Helper()
	for _, l := range d.im.h.list() {
		if l.Device == d.node {
			return l.State
		}
	}
	return "not listed"
}

// A disk that takes no writes at all: the image fails at the sync (I8), and when
// the disk is well and the file system mounted again, everything is there that was
// flushed. The file system has no journal: once it has to abort one, ext4 of Linux
// 6.12 lets nobody read any more.
func TestADiskThatTakesNoWritesFailsTheImageAtTheSync(t *testing.T) {
	h := begin(t)
	disk := h.moodyDisk()
	h.run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", disk.node)
	dir, unmount := h.mount("ext4", disk.node)
	im := &image{h, filepath.Join(dir, "a.qcow2")}
	h.run(qzbd, "create", "-o", mixed, im.path)
	d := im.attach("--queues", queues())
	k := d.open()
	k.write(1, 65536, 65536)
	k.write(2, 2*zlen, 1<<20)
	k.write(2, 3*zlen, zcap)
	k.sync()

	disk.fails("error_writes")
	// A round in the background may be first to meet the disk.
	more := k.pwrite(2*zlen+1<<20, pattern(2, 2*zlen+1<<20, 65536), 0)
	if more != nil && !errors.Is(more, unix.EIO) {
		t.Errorf("write: %v", more)
	}
	if err := unix.Fsync(k.fd); !errors.Is(err, unix.EIO) {
		t.Errorf("fsync: %v, want %v", err, unix.EIO)
	}
	if s := d.state(); s != "failed" {
		t.Errorf("after a failed sync the image is %s", s)
	}
	d.showsFailure()
	k.staysFailed()
	disk.well()
	k.staysFailed() // a disk that is well again brings nothing back that it has lost
	k.close()
	r := h.try(qzbd, "detach", d.node)
	_, err := os.Lstat(d.node)
	if d.gone = errors.Is(err, os.ErrNotExist); !d.gone || r.code != 1 {
		t.Errorf("%v, node: %v", r, err)
	}
	unmount()

	dir, _ = h.mount("ext4", disk.node)
	im = &image{h, filepath.Join(dir, "a.qcow2")}
	if r := h.try(qzbd, "check", im.path); r.code != 0 && r.code != 3 {
		t.Errorf("after the failure: %v", r)
	}
	d = im.attach()
	k = d.open()
	k.holds(1, 65536, 65536)
	n := k.zone(2).written()
	if n < 1<<20 || n > 1<<20+65536 {
		t.Errorf("zone 2 has %#x written, %#x were flushed", n, 1<<20)
	}
	k.holds(2, 2*zlen, int(n))
	k.zeros(2*zlen+n, 1<<20)
	k.holds(2, 3*zlen, zcap)
	k.isIn(3, full, zcap)
	k.write(2, 2*zlen+n, 4096)
	k.sync()
	if s := d.state(); s != "live" {
		t.Errorf("after the repair the image is %s", s)
	}
	k.close()
	d.detach()
	im.check()
}

// staysFailed checks a failed image that had been written to and flushed, in zone
// 1, the beginning of zone 2, and zone 3.
func (k *disk) staysFailed() {
	t := k.t
	t.Helper()
	for _, at := range []int64{0, 65536, 2*zlen + 1<<20, 4 * zlen} {
		k.zones() // the kernel itself shall not refuse it
		k.refuse(unix.EIO, at, 4096)
	}
	for name, op := range map[string]uint{"reset": blkResetZone, "finish": blkFinishZone} {
		if err := k.mgmt(op, 2*zlen, zlen); !errors.Is(err, unix.EIO) {
			t.Errorf("%s: %v, want %v", name, err, unix.EIO)
		}
	}
	if err := unix.Fsync(k.fd); !errors.Is(err, unix.EIO) {
		t.Errorf("another fsync: %v, want %v", err, unix.EIO)
	}
	k.holds(1, 65536, 65536)
	k.holds(2, 2*zlen, 1<<20)
	k.holds(2, 3*zlen, zcap)
	k.isIn(3, full, zcap)
}

// An image that has failed has failed for every server of its device, whatever
// became of the last one, and whether or not its file can be written to (I8).
func TestAnotherServerOfAFailedImage(t *testing.T) {
	h := begin(t)
	disk := h.moodyDisk()
	h.run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", disk.node)
	dir, _ := h.mount("ext4", disk.node)
	im := &image{h, filepath.Join(dir, "a.qcow2")}
	h.run(qzbd, "create", "-o", mixed, im.path)
	d := im.attach("--queues", queues())
	k := d.open()
	k.write(1, 65536, 65536)
	k.write(2, 2*zlen, 1<<20)
	k.write(2, 3*zlen, zcap)
	k.sync()
	h.run("sync")
	disk.fails("error_writes")
	// A round in the background may be first to meet the disk.
	if err := k.pwrite(2*zlen+1<<20, pattern(2, 2*zlen+1<<20, 65536), 0); err != nil && !errors.Is(err, unix.EIO) {
		t.Errorf("write: %v", err)
	}
	if err := unix.Fsync(k.fd); !errors.Is(err, unix.EIO) {
		t.Errorf("fsync: %v, want %v", err, unix.EIO)
	}
	end := k.zone(2).wp
	disk.well()
	h.run("sync")
	for _, way := range []struct {
		name string
		next func()
	}{
		{"kill", func() { d.killed(); d.recovered() }},
		{"upgrade", func() { d.upgraded(qzbd) }},
		{"SIGTERM", func() { d.terminated(); d.recovered() }},
		{"kill and a read-only mount", func() { d.killed(); h.run("mount", "-o", "remount,bind,ro", dir); d.recovered() }},
	} {
		way.next()
		if s := d.state(); s != "failed" {
			t.Errorf("after %s the image is %s", way.name, s)
		}
		if wp := k.zone(2).wp; wp != end {
			t.Errorf("after %s the write pointer is %#x, it was %#x", way.name, wp, end)
		}
		k.staysFailed()
	}
	k.close()
	if r := h.try(qzbd, "detach", d.node); r.code != 1 {
		t.Error(r)
	}
	d.gone = true
	h.run("mount", "-o", "remount,bind,rw", dir)
	d = im.attach()
	k = d.open()
	k.holds(2, 2*zlen, 1<<20)
	k.write(1, 0, 4096)
	k.close()
	d.detach()
	im.check()
}

// What is not in the page cache is read from the disk; if that fails, this read
// does, and nothing else.
func TestADiskThatRefusesReadsFailsTheReads(t *testing.T) {
	h := begin(t)
	disk := h.moodyDisk()
	h.onFileSystem("ext4", disk.node)
	im := h.create("a.qcow2", mixed)
	d := im.attach()
	k := d.open()
	k.write(1, 0, 1<<20)
	k.write(2, 2*zlen, 1<<20)
	k.close()
	d.detach()
	d = im.attach("--queues", queues())
	k = d.open()
	k.holds(2, 2*zlen, 65536) // the tables are in memory now
	forget := func() {
		t.Helper()
		h.run("sync")
		f, err := os.Open(im.path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
	}
	forget()
	disk.fails("error_reads")
	for _, at := range []int64{0, 2 * zlen} {
		if _, err := k.tryRead(at, 4096); !errors.Is(err, unix.EIO) {
			t.Errorf("read at %#x: %v, want %v", at, err, unix.EIO)
		}
	}
	k.zeros(2*zlen+1<<20, 1<<20) // the disk is not asked
	k.zeros(5*zlen, 1<<20)
	// The first write needs the header, and changes nothing if it is refused.
	k.refuse(unix.EIO, 2*zlen+1<<20, 65536)
	k.isIn(2, closed, 1<<20)
	disk.well()
	k.write(2, 2*zlen+1<<20, 65536)
	k.write(1, 1<<20, 65536)
	k.sync()
	forget()
	disk.fails("error_reads")
	if _, err := k.tryRead(2*zlen+1<<20, 4096); !errors.Is(err, unix.EIO) {
		t.Errorf("read of what was written: %v, want %v", err, unix.EIO)
	}
	disk.well()
	k.holds(1, 0, 1<<20+65536)
	k.holds(2, 2*zlen, 1<<20+65536)
	k.sync()
	if s := d.state(); s != "live" {
		t.Errorf("failed reads have made the image %s", s)
	}
	k.close()
	d.detach()
}

// With direct I/O a disk that fails in one zone's place fails the requests of
// this zone, with others in flight beside them.
func TestADiskThatFailsInOneZoneLeavesTheOthersAlone(t *testing.T) {
	h := begin(t)
	disk := h.moodyDisk()
	h.onFileSystem("ext4", disk.node)
	im := h.create("a.qcow2", mixed+",preallocation=full")
	d := im.attach("--direct", "--queues", queues())
	k := d.open()
	const first, last, bad, piece = 2, 5, 3, 16384
	var written [8]int64
	for i := int64(first); i <= last; i++ {
		k.write(1, i*zlen, 1<<20)
		written[i] = 1 << 20
	}
	k.sync()
	// One extent of the file has all data of the zone from 512K on.
	content, err := os.ReadFile(im.path)
	if err != nil {
		t.Fatal(err)
	}
	off := int64(strings.Index(string(content), string(pattern(1, bad*zlen+512<<10, 65536))))
	if off < 0 {
		t.Fatal("the image does not hold what was written")
	}
	place := extentOf(t, im.path, off)
	const room = zcap - 512<<10
	if end := extentOf(t, im.path, off+room-512); end != place+room-512 {
		t.Fatalf("the file lies in pieces: %#x is at %#x, %#x at %#x", off, place, off+room-512, end)
	}
	write := func() (refused int) {
		t.Helper()
		var writers sync.WaitGroup
		for i := int64(first); i <= last; i++ {
			k := d.open()
			writers.Go(func() {
				defer k.close()
				for range 40 {
					at := i*zlen + written[i]
					err := k.pwrite(at, pattern(1, at, piece), 0)
					switch {
					case err == nil:
						written[i] += piece
					case i != bad || !errors.Is(err, unix.EIO):
						t.Errorf("write to zone %d: %v", i, err)
						return
					default:
						refused++
						if n := k.zone(int(i)).written(); n != written[i] {
							t.Errorf("zone %d has %#x written after an error, %#x was answered", i, n, written[i])
							return
						}
					}
				}
			})
		}
		writers.Wait()
		return refused
	}
	disk.failsAt(place, room)
	if n := write(); n != 40 {
		t.Errorf("%d of 40 writes to the zone with the bad disk were refused", n)
	}
	for i := int64(first); i <= last; i++ {
		_, err := k.tryRead(i*zlen+768<<10, 4096)
		if want := i == bad; errors.Is(err, unix.EIO) != want || (err != nil) != want {
			t.Errorf("read of zone %d: %v", i, err)
		}
		k.holds(1, i*zlen, 512<<10)
	}
	k.sync()
	if s := d.state(); s != "live" {
		t.Errorf("errors of data have made the image %s", s)
	}
	disk.well()
	if n := write(); n != 0 {
		t.Errorf("%d writes were refused by a disk that is well again", n)
	}
	verify := func() {
		t.Helper()
		for i := int64(first); i <= last; i++ {
			if n := k.zone(int(i)).written(); n != written[i] {
				t.Errorf("zone %d has %#x written, want %#x", i, n, written[i])
			}
			k.holds(1, i*zlen, int(written[i]))
			k.zeros(i*zlen+written[i], 1<<20)
		}
	}
	verify()
	k.close()
	d.detach()
	d = im.attach()
	k = d.open()
	verify()
	k.close()
	d.detach()
}
