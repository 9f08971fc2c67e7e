//go:build kernel

package kernel

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/qcow2"
)

// stored is a zone's write pointer in the image file, in bytes from its start.
func (im *image) stored(zone int) int64 {
	im.h.t.Helper()
	f, err := os.Open(im.path)
	if err != nil {
		im.h.t.Fatal(err)
	}
	defer f.Close()
	h, wps, err := qcow2.ReadPointers(qcow2.NewOSFile(f))
	if err != nil {
		im.h.t.Fatal(err)
	}
	return int64(wps[zone] - h.ZoneStart(uint32(zone)))
}

// What nobody flushes is in the image when the device has been idle, or after
// the interval; without one it is not. A server that is killed shows it.
func TestWhatNobodyFlushesIsDurableInTime(t *testing.T) {
	for _, c := range []struct {
		name     string
		interval string
		durable  bool
	}{
		{"at idle, long before the interval is over", "1h", true},
		{"after an interval that is shorter than idle time", "50ms", true},
		{"never", "0", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := begin(t)
			im := h.create("a.qcow2", small)
			d := im.attach("--no-recovery", "--sync-interval", c.interval)
			k := d.open()
			if !c.durable { // somebody's flush in between would be ours
				k.write(1, 3*zlen, 4096)
				k.sync()
			}
			k.write(2, 2*zlen, 8192)
			if c.durable {
				h.wait("the write pointer is in the image", func() bool { return im.stored(2) == 8192 })
			} else if n := im.stored(2); n != 0 {
				t.Errorf("%d bytes are durable without a flush", n)
			}
			k.close()
			d.kill()
			r := h.try(qzbd, "attach", im.path)
			says(t, r.stderr, "warning", "not closed", "may be lost")
			if r.code != 0 {
				t.Fatal(r)
			}
			d = &device{im: im, node: strings.TrimSpace(r.stdout)}
			t.Cleanup(d.cleanup)
			k = d.open()
			if c.durable {
				k.holds(2, 2*zlen, 8192)
				k.isIn(2, closed, 8192)
			} else if z := k.zone(2); z.written() != 0 {
				t.Logf("the cache of the host was written back: %#x", z.written())
			}
			k.close()
			d.detach()
		})
	}
}

func TestABadSyncIntervalIsRefused(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	says(t, h.refused(qzbd, "attach", "--sync-interval", "1ms", im.path), "--sync-interval 1ms", "10ms", "or 0")
}

// A disk that cannot take what the host has in its page cache: buffered, it
// shows at the sync, and nobody can say which data was meant.
func TestAFailingDiskFailsTheImageAtTheFlush(t *testing.T) {
	h := begin(t)
	disk := h.ramDisk(512)
	h.onFileSystem("ext4", disk.node)
	im := h.create("a.qcow2", "preallocation=full,"+mixed)
	d := im.attach("--sync-interval", "0")
	k := d.open()
	k.write(1, 0, 1<<20)      // conventional
	k.write(2, 2*zlen, 1<<20) // sequential
	k.write(3, 3*zlen, 65536)
	k.sync()
	bad := extentOf(t, im.path, h.placeOf(im, 2, 2*zlen)+1<<20)
	old := extentOf(t, im.path, h.placeOf(im, 1, 65536))
	disk.fail(bad, 4096, true)
	disk.fail(old, 4096, true)

	k.write(2, 2*zlen+1<<20, 65536) // into the page cache
	k.write(5, 65536, 4096)
	k.holds(2, 2*zlen+1<<20, 65536)
	if err := unix.Fsync(k.fd); !errors.Is(err, unix.EIO) {
		t.Errorf("flush: %v, want EIO", err)
	}
	// Writes, resets and flushes are refused; reads of what was flushed go on.
	k.refuse(unix.EIO, 2*zlen+1<<20+65536, 4096)
	k.refuse(unix.EIO, 4*zlen, 4096)
	k.refuse(unix.EIO, 0, 4096)
	for _, op := range []uint{blkResetZone, blkFinishZone} {
		if err := k.mgmt(op, 3*zlen, zlen); !errors.Is(err, unix.EIO) {
			t.Errorf("operation %#x: %v, want EIO", op, err)
		}
	}
	if err := unix.Fsync(k.fd); !errors.Is(err, unix.EIO) {
		t.Errorf("flush: %v, want EIO", err)
	}
	k.holds(1, 0, 65536)
	k.holds(2, 2*zlen, 1<<20)
	k.holds(3, 3*zlen, 65536)
	if _, err := k.tryRead(2*zlen+1<<20, 65536); !errors.Is(err, unix.EIO) {
		t.Errorf("read of what was not flushed: %v, want EIO", err)
	}

	// Everybody says so.
	r := h.try(qzbd, "list")
	says(t, r.stdout, d.node, "failed")
	says(t, r.stderr, d.node, "fdatasync", "input/output error")
	for _, name := range []string{d.node, im.path} {
		says(t, h.run(qzbd, "info", name), "attached:", d.node+", failed: ", "fdatasync", "input/output error")
		var in struct{ Device, State, Failure string }
		if err := json.Unmarshal([]byte(h.run(qzbd, "info", "--json", name)), &in); err != nil {
			t.Fatal(err)
		}
		if in.Device != d.node || in.State != "failed" || !strings.Contains(in.Failure, "input/output error") {
			t.Errorf("info --json %s: %+v", name, in)
		}
	}
	log, err := os.ReadFile(d.logFile())
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(log, []byte("fdatasync")); n != 1 {
		t.Errorf("%d lines of the log tell of the failure:\n%s", n, log)
	}
	state, err := os.ReadFile(filepath.Join(filepath.Dir(d.logFile()), "state.json"))
	if err != nil || !strings.Contains(string(state), "input/output error") {
		t.Errorf("the record for who comes after a death has %s, %v", state, err)
	}

	k.close()
	r = h.try(qzbd, "detach", d.node)
	_, err = os.Lstat(d.node)
	if d.gone = errors.Is(err, os.ErrNotExist); !d.gone || r.code != 1 {
		t.Errorf("%v, node: %v", r, err)
	}
	says(t, r.stderr, d.node, "is detached", "input/output error", "may be lost")

	// The page cache has what the disk never got, and calls it clean.
	disk.fail(bad, 4096, false)
	disk.fail(old, 4096, false)
	r = h.try(qzbd, "attach", im.path)
	says(t, r.stderr, "warning", "not closed", "may be lost")
	if r.code != 0 {
		t.Fatal(r)
	}
	d = &device{im: im, node: strings.TrimSpace(r.stdout)}
	t.Cleanup(d.cleanup)
	k = d.open()
	k.isIn(2, closed, 1<<20)
	k.holds(2, 2*zlen, 1<<20)
	k.holds(1, 0, 1<<20) // not the overwrite, which was only there
	k.write(4, 2*zlen+1<<20, 65536)
	k.sync()
	k.holds(4, 2*zlen+1<<20, 65536)
	k.close()
	d.detach()
}

// placeOf is where in the image file 4K of a pattern lie.
func (h *host) placeOf(im *image, seed uint64, at int64) int64 {
	h.t.Helper()
	content, err := os.ReadFile(im.path)
	if err != nil {
		h.t.Fatal(err)
	}
	off := bytes.Index(content, pattern(seed, at, 4096))
	if off < 0 {
		h.t.Fatalf("the image does not hold what was written at %#x", at)
	}
	return int64(off)
}

// A file system that is full, under an image whose metadata has holes because
// it was copied sparsely: whatever is asked for is done or refused with ENOSPC,
// and the image goes on.
func TestAFullFileSystemFailsNoImage(t *testing.T) {
	for _, c := range []struct {
		name string
		use  func(h *host)
	}{
		{"tmpfs", func(h *host) { h.onFileSystem("tmpfs", "none", "size=24M") }},
		{"ext4", func(h *host) {
			node := h.ramDisk(512).node
			h.run("mkfs.ext4", "-q", "-E", "nodiscard", node, "24M")
			h.dir, _ = h.mount("ext4", node)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := begin(t)
			c.use(h)
			// Many zones, so that zonedmeta and the tables have pages of their own.
			im := h.create("a.qcow2", "cluster_size=4K,size=4G,zone.size=1M,zone.conventional_zones=2").copy("b.qcow2")
			d := im.attach("--sync-interval", "0")
			k := d.open()
			z := k.zones()
			k.write(1, 0, 65536)
			k.write(2, z[100].start, 65536)
			k.write(3, z[101].start, 65536)
			k.sync()
			k.close()
			d.detach()
			im = im.copy("c.qcow2")
			d = im.attach("--sync-interval", "0")
			k = d.open()
			h.fillUp()

			ask := func(what string, err error) {
				t.Helper()
				if err != nil && !errors.Is(err, unix.ENOSPC) {
					t.Errorf("%s: %v", what, err)
				}
			}
			ask("flush", unix.Fsync(k.fd))
			ask("overwrite", k.pwrite(0, pattern(9, 0, 4096), 0))
			ask("write to a mapped cluster", k.pwrite(z[100].start+65536, pattern(2, z[100].start+65536, 4096), 0))
			ask("reset", k.mgmt(blkResetZone, z[101].start, 1<<20))
			for _, i := range []int{3, 900, 2000, 3000, 4000} { // sectors of zonedmeta that nothing has been in
				ask("finish", k.mgmt(blkFinishZone, z[i].start, 1<<20))
				ask("write", k.pwrite(z[i+1].start, pattern(4, z[i+1].start, 4096), 0))
				ask("write zeroes", k.ioctl(unix.BLKZEROOUT, unsafe.Pointer(&[2]uint64{uint64(z[i+2].start), 4096})))
				ask("flush", unix.Fsync(k.fd))
			}
			if l := h.list(); len(l) != 1 || l[0].State != "live" {
				t.Errorf("a full file system has failed the image: %s", h.run(qzbd, "info", d.node))
			}
			k.holds(2, z[100].start, 65536)

			// With room again, everything goes on.
			h.empty()
			k.write(5, 4096, 4096)
			for _, i := range []int{100, 500, 3500} {
				k.write(2, k.zone(i).wp, 512)
			}
			h.fillUp()
			// Now what is written in place has its space, and so has the rest
			// of a cluster.
			k.write(5, 4096, 4096)
			for _, i := range []int{100, 500, 3500} {
				k.write(2, k.zone(i).wp, 512)
			}
			k.sync()
			k.must(blkFinishZone, k.zone(500))
			k.must(blkResetZone, k.zone(3500))
			k.must(blkFinishZone, k.zone(1500))
			k.sync()
			h.empty()
			k.sync()
			k.close()
			d.detach()
		})
	}
}

// fillUp takes all space of the file system of the images.
func (h *host) fillUp() {
	h.t.Helper()
	for n := 1 << 20; n > 0; n /= 4 {
		f, err := os.OpenFile(filepath.Join(h.dir, "ballast"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			h.t.Fatal(err)
		}
		for err == nil {
			if _, err = f.Write(make([]byte, n)); err == nil {
				err = f.Sync() // so that space is taken and not promised
			}
		}
		if err := f.Close(); err != nil || n < 512 {
			return
		}
	}
}

// empty gives that space back.
func (h *host) empty() {
	h.t.Helper()
	if err := os.Remove(filepath.Join(h.dir, "ballast")); err != nil {
		h.t.Fatal(err)
	}
}
