//go:build kernel

package kernel

import (
	"testing"
)

// XFS has its tables on an ordinary device and files on the zoned one, which
// is its realtime device. What a kernel from before 6.15 does with it is
// refuse.
func TestXFS(t *testing.T) {
	if kernelHas(t, 6, 15) {
		t.Run("keeps its files in our zones", xfsKeepsItsFiles)
	} else {
		t.Run("is refused by a kernel without zoned XFS", xfsIsRefused)
	}
}

const xfsImage = "size=1G,zone.size=16M,zone.capacity=12M,zone.max_open_zones=12,zone.max_active_zones=16"

func xfsKeepsItsFiles(t *testing.T) {
	h := begin(t)
	data := h.loop(h.dir+"/data", "512M")
	im := h.create("a.qcow2", xfsImage)
	d := im.attach("--queues", queues())
	mount := func() (string, func()) {
		t.Helper()
		return h.mount("xfs", data, "rtdev="+d.node)
	}
	consistent := func() { // as far as a check without mending goes
		t.Helper()
		h.tool("xfs_repair", "-n", "-r", d.node, data)
	}
	h.tool("mkfs.xfs", "-q", "-r", "zoned=1,rtdev="+d.node, data)
	tr := newTree(t)
	dir, unmount := mount()
	says(t, h.refused(qzbd, "detach", d.node), d.node, dir)
	tr.add(dir, "a", thoroughly(64<<20, 40<<20))
	tr.churn(dir)
	tr.add(dir, "b", thoroughly(24<<20, 16<<20))
	h.tool("xfs_scrub", "-n", dir)
	unmount()
	consistent()
	if n, files := countWritten(d), tr.size(); n < files {
		t.Errorf("only %d bytes are in the zones, the files have %d: they are somewhere else", n, files)
	}

	dir, unmount = mount()
	tr.check(dir)
	unmount()
	d.detach()
	im.check()

	d = im.attach()
	dir, unmount = mount()
	tr.check(dir)
	tr.churn(dir) // the zones go on, too
	unmount()
	consistent()
	dir, unmount = mount()
	tr.check(dir)
	unmount()
	d.detach()
}

func xfsIsRefused(t *testing.T) {
	h := begin(t)
	data := h.loop(h.dir+"/data", "512M")
	d := h.create("a.qcow2", xfsImage).attach()
	h.tool("mkfs.xfs", "-q", "-r", "zoned=1,rtdev="+d.node, data)
	if r := h.try("mount", "-t", "xfs", "-o", "rtdev="+d.node, data, t.TempDir()); r.code == 0 {
		t.Errorf("mounted: %v", r)
	}
	d.detach() // nobody holds it
}

// countWritten is the number of bytes below the write pointers.
func countWritten(d *device) (n int64) {
	d.im.h.t.Helper()
	k := d.open()
	defer k.close()
	for _, z := range k.zones() {
		n += z.written()
	}
	return n
}
