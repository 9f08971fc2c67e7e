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
			d := im.attach("--sync-interval", c.interval)
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
