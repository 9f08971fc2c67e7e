//go:build kernel

package kernel

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// names are other ways to a file: links and a bind mount of its directory.
func (im *image) names() []string {
	h := im.h
	h.t.Helper()
	hard, soft, bind := filepath.Join(h.dir, "hard"), filepath.Join(h.dir, "soft"), filepath.Join(h.dir, "bind")
	for _, err := range []error{os.Link(im.path, hard), os.Symlink(im.path, soft), os.Mkdir(bind, 0o755)} {
		if err != nil {
			h.t.Fatal(err)
		}
	}
	h.run("mount", "--bind", h.dir, bind)
	h.t.Cleanup(func() { h.run("umount", bind) })
	return []string{im.path, hard, soft, filepath.Join(bind, filepath.Base(im.path))}
}

// One program writes to an image, or several read it, whatever they call it;
// QEMU's tools keep to that as well (I14).
func TestQEMUKeepsOutOfAnAttachedImage(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", mixed)
	names := im.names()
	out := filepath.Join(h.dir, "out")
	d := im.attach()
	k := d.open()
	k.write(1, 2*zlen, 65536)
	k.sync()
	for _, name := range names {
		says(t, h.refused(qzbd, "attach", name), name, d.node)
		says(t, h.refused(qzbd, "attach", "--read-only", name), name, d.node)
		r := h.try("qemu-io", "-f", "raw", "-c", "write -P 1 0 64k", name)
		if says(t, r.stderr, `"write" lock`); r.code == 0 {
			t.Error(r)
		}
	}
	for _, args := range [][]string{
		{"qemu-img", "info", im.path}, {"qemu-img", "check", im.path},
		{"qemu-img", "convert", "-f", "raw", "-O", "raw", im.path, out},
		{"qemu-nbd", "-f", "raw", "-k", filepath.Join(h.dir, "nbd"), im.path},
	} {
		r := h.try(args[0], args[1:]...)
		if says(t, r.stderr, `lock`); r.code == 0 {
			t.Error(r)
		}
	}
	h.run("qemu-img", "info", "--force-share", "-f", "raw", im.path)
	k.holds(1, 2*zlen, 65536)
	k.write(1, 2*zlen+65536, 4096)
	k.close()
	d.detach()

	// Readers share, by any name.
	ro := im.attach("--read-only")
	for _, name := range names[1:] {
		says(t, h.refused(qzbd, "attach", name), name, ro.node)
	}
	r := h.try("qemu-io", "-f", "raw", "-c", "write -P 1 0 64k", im.path)
	if says(t, r.stderr, `"write" lock`); r.code == 0 {
		t.Error(r)
	}
	h.run("qemu-img", "convert", "-f", "raw", "-O", "raw", im.path, out)
	for _, name := range names[1:] {
		(&image{h, name}).attach("--read-only").detach()
	}
	ro.detach()

	// An image that QEMU has open.
	for _, readOnly := range []bool{false, true} {
		pid := filepath.Join(h.dir, "pid")
		args := []string{"-f", "raw", "--fork", "--persistent", "--pid-file", pid, "-k", filepath.Join(h.dir, "nbd"), im.path}
		if readOnly {
			args = append([]string{"-r"}, args...)
		}
		h.run("qemu-nbd", args...)
		says(t, h.refused(qzbd, "attach", im.path), im.path, "in use by another process")
		if readOnly {
			im.attach("--read-only").detach()
		} else {
			says(t, h.refused(qzbd, "attach", "--read-only", im.path), im.path, "in use by another process")
			r := h.try(qzbd, "check", im.path)
			if says(t, r.stderr, im.path, "in use"); r.code != 1 {
				t.Error(r)
			}
		}
		b, err := os.ReadFile(pid)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(n, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		h.wait("qemu-nbd ends", func() bool { return !alive(n) })
	}
	k = im.attach().open()
	k.holds(1, 2*zlen, 65536+4096)
}
