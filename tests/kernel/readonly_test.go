//go:build kernel

package kernel

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// untouched fails the test if the file changes until its end.
func (im *image) untouched() {
	t := im.h.t
	t.Helper()
	look := func() (sum [32]byte, changed time.Time) {
		f, err := os.Open(im.path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			t.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return [32]byte(h.Sum(nil)), st.ModTime()
	}
	sum, changed := look()
	t.Cleanup(func() {
		if s, c := look(); s != sum || !c.Equal(changed) {
			t.Errorf("%s was written to: content the same %v, changed at %v, was %v", im.path, s == sum, c, changed)
		}
	})
}

// openReadOnly is open for a device that takes no writes.
func (d *device) openReadOnly() *disk {
	h := d.im.h
	h.t.Helper()
	fd, err := unix.Open(d.node, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		h.t.Fatalf("open %s: %v", d.node, err)
	}
	k := &disk{h.t, fd}
	h.t.Cleanup(k.close)
	return k
}

// refusesChanges tries everything that would change a device.
func (d *device) refusesChanges() {
	t := d.im.h.t
	t.Helper()
	if got := d.sysfs("ro"); got != "1" {
		t.Errorf("%s: ro is %s", d.node, got)
	}
	fd, err := unix.Open(d.node, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil { // some kernels refuse already this
		if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EPERM) {
			t.Errorf("open for writing: %v", err)
		}
		return
	}
	k := &disk{t, fd}
	defer k.close()
	if err := k.pwrite(k.zone(2).wp, pattern(9, 0, 4096), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("write: %v", err)
	}
	for name, op := range map[string]uint{"reset": blkResetZone, "open": blkOpenZone, "close": blkCloseZone, "finish": blkFinishZone} {
		if err := k.mgmt(op, 2*zlen, zlen); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAReadOnlyDeviceShowsAllAndChangesNothing(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", mixed)
	d := im.attach()
	k := d.open()
	k.write(1, 4096, 8192)
	k.write(2, 2*zlen, 69632)
	k.write(3, 3*zlen, zcap)
	k.write(4, 4*zlen, 4096)
	k.must(blkFinishZone, k.zone(4))
	k.sync()
	// What a machine leaves that loses its power: mappings ahead of pointers.
	dirty := &image{h, filepath.Join(h.dir, "dirty.qcow2")}
	h.run("cp", "--sparse=always", im.path, dirty.path)
	k.close()
	d.detach()
	for _, im := range []*image{im, dirty} {
		im.untouched()
		if err := os.Chmod(im.path, 0o400); err != nil {
			t.Fatal(err)
		}
		d := im.attach("--read-only", "--queues", queues())
		k := d.openReadOnly()
		k.are(notWP, notWP, closed, full, full, empty)
		k.isIn(2, closed, 69632)
		k.holds(1, 4096, 8192)
		k.zeros(0, 4096)
		k.holds(2, 2*zlen, 69632)
		k.zeros(2*zlen+69632, zlen-69632)
		k.holds(3, 3*zlen, zcap)
		k.holds(4, 4*zlen, 4096)
		k.zeros(4*zlen+4096, 1<<20)
		k.zeros(5*zlen, 1<<20)
		k.sync() // nothing to do
		d.refusesChanges()
		says(t, h.run(qzbd, "zones", im.path), "fu", "cl")
		k.close()
		d.detach()
	}
	if r := h.try(qzbd, "check", dirty.path); r.code != 3 {
		t.Errorf("read-only, the dirty image was mended: %v", r)
	}
}

func TestAReadOnlyFileSystemIsEnoughForAReadOnlyDevice(t *testing.T) {
	h := begin(t)
	h.create("a.qcow2", mixed)
	dir, err := os.MkdirTemp(h.dir, "ro")
	if err != nil {
		t.Fatal(err)
	}
	h.run("mount", "--bind", h.dir, dir)
	t.Cleanup(func() { h.run("umount", dir) })
	h.run("mount", "-o", "remount,bind,ro", dir)
	ro := &image{h, filepath.Join(dir, "a.qcow2")}
	ro.untouched()
	says(t, h.refused(qzbd, "attach", ro.path), ro.path, "read-only")
	for _, flags := range [][]string{{"--read-only"}, {"--read-only", "--direct"}} {
		d := ro.attach(flags...)
		k := d.openReadOnly()
		k.zeros(2*zlen, 1<<20)
		k.close()
		d.refusesChanges()
		d.detach()
	}
}

func TestReadersShareAnImageAndKeepWritersOut(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", mixed)
	d := im.attach()
	k := d.open()
	k.write(1, 2*zlen, 4096)
	k.close()
	says(t, h.refused(qzbd, "attach", "--read-only", im.path), im.path, d.node)
	for _, l := range h.list() {
		if l.Device != d.node || l.ReadOnly {
			t.Errorf("listed as %+v", l)
		}
	}
	d.detach()

	a, b := im.attach("--read-only"), im.attach("--read-only")
	if a.node == b.node {
		t.Fatal("two devices are one")
	}
	x, y := a.openReadOnly(), b.openReadOnly()
	if !bytes.Equal(x.read(2*zlen, 1<<20), y.read(2*zlen, 1<<20)) {
		t.Error("two devices of one image differ")
	}
	x.close()
	y.close()
	for _, l := range h.list() {
		if l.Image != im.path || !l.ReadOnly || l.State != "live" {
			t.Errorf("listed as %+v", l)
		}
	}
	says(t, h.refused(qzbd, "attach", im.path), im.path, a.node, b.node)
	says(t, h.refused(qzbd, "detach", im.path), im.path, a.node, b.node)
	if r := h.try(qzbd, "zones", im.path); r.code != 0 || !strings.Contains(r.stderr, a.node) {
		t.Errorf("zones of an image with two devices: %v", r)
	}
	a.detach()
	b.detachBy(im.path) // no longer ambiguous
	im.attach().open().holds(1, 2*zlen, 4096)
}
