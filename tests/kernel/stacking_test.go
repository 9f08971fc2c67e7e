//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// An image is never served from the device that it makes, nor from one without a
// server: whoever tried would wait for itself for ever.
func TestAnImageOnItsOwnDevice(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=768M,zone.size=8M,zone.conventional_zones=16")
	d := im.attach()
	h.run("mkfs.f2fs", "-f", "-m", d.node)
	dir, unmount := h.mount("f2fs", d.node)
	inside := filepath.Join(dir, "copy.qcow2")
	h.run(qzbd, "create", inside, "64M", "-o", "zone.size=8M")
	h.run("sync", "-f", dir)

	// On a device that is served it may lie.
	b := &image{h: h, path: inside}
	b.attach().detach()

	// A loop device on a file on it, for images further up.
	disk := filepath.Join(dir, "disk")
	if err := os.WriteFile(disk, make([]byte, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	h.run("modprobe", "loop")
	h.run("mke2fs", "-q", "-t", "ext4", disk)
	upper, unmountUpper := h.mount("ext4", disk, "loop")
	further := filepath.Join(upper, "further.qcow2")
	h.run(qzbd, "create", further, "8M", "-o", "zone.size=1M")

	// The image's own directory, seen from within.
	bind := filepath.Join(dir, "bind")
	if err := os.Mkdir(bind, 0o700); err != nil {
		t.Fatal(err)
	}
	h.run("mount", "--bind", h.dir, bind)
	t.Cleanup(func() { h.try("umount", bind) })
	h.run("sync", "-f", dir)

	link := filepath.Join(h.dir, "link.qcow2")
	if err := os.Symlink(inside, link); err != nil {
		t.Fatal(err)
	}
	hard := filepath.Join(h.dir, "hard.qcow2")
	if err := os.Link(im.path, hard); err != nil {
		t.Fatal(err)
	}
	d.killed()
	for _, path := range []string{inside, link, further} {
		says(t, h.refused(qzbd, "attach", path), "lies on "+d.node, "recover")
		says(t, h.refused(qzbd, "attach", "--foreground", path), d.node, "recover")
	}

	// The image has been moved onto its device.
	away := im.path + ".away"
	if err := os.Rename(im.path, away); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(inside, im.path); err != nil {
		t.Fatal(err)
	}
	says(t, h.refused(qzbd, "recover", d.node), d.node+" itself")
	if err := os.Remove(im.path); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, im.path); err != nil {
		t.Fatal(err)
	}

	// Other names of it outside are as good as its own.
	for _, path := range []string{filepath.Join(bind, filepath.Base(im.path)), hard, im.path} {
		if out := h.run(qzbd, "attach", path); out != fmt.Sprintln(d.node) {
			t.Errorf("attach %s said %q", path, out)
		}
		d.killed()
	}
	d.recovered()
	h.run("umount", bind)
	unmountUpper()
	if err := os.Remove(hard); err != nil {
		t.Fatal(err)
	}
	unmount()
	d.detach()
}
