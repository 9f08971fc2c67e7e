//go:build kernel

package kernel

import (
	"os"
	"regexp"
	"testing"
)

// f2fs keeps its own tables in conventional zones.
func TestF2fs(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=768M,zone.size=8M,zone.conventional_zones=16,zone.max_open_zones=6,zone.max_active_zones=8,cluster_size=64K")
	fileSystem(im, "f2fs", []string{"mkfs.f2fs", "-f", "-m"}, []string{"fsck.f2fs", "-f"})
}

// btrfs writes its data by zone append and its trees by writes, and finishes
// and resets zones.
func TestBtrfs(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=1G,zone.size=16M,zone.capacity=12M,zone.max_open_zones=12,zone.max_active_zones=16,zone.max_append_bytes=1M")
	fileSystem(im, "btrfs",
		[]string{"mkfs.btrfs", "-q", "-O", "zoned", "-m", "single", "-d", "single"}, []string{"btrfs", "check"})
}

// Small appends, as in the founding example: the kernel splits what btrfs
// writes into many, in flight together.
func TestBtrfsWithAppendsOf4K(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", "size=512M,zone.size=16M,zone.max_append_bytes=4096").
		attach("--queues", queues(), "--log-level", "debug")
	h.run("mkfs.btrfs", "-q", "-O", "zoned", "-m", "single", "-d", "single", d.node)
	tr := newTree(t)
	dir, unmount := h.mount("btrfs", d.node)
	const total = 16 << 20
	tr.add(dir, "a", total)
	unmount()
	h.run("btrfs", "check", d.node)
	dir, unmount = h.mount("btrfs", d.node)
	tr.check(dir)
	unmount()

	log, err := os.ReadFile(d.logFile())
	if err != nil {
		t.Fatal(err)
	}
	// What is a few bytes long is kept among the metadata.
	if n := len(appended.FindAll(log, -1)); n < total/4096*9/10 {
		t.Errorf("%d appends of 4096 bytes, want about %d", n, total/4096)
	}
}

// appended matches the log entry of a successful append of 4 KiB.
var appended = regexp.MustCompile(`"op": ?"append".*"bytes": ?4096,.*"result": ?4096,`)

// fileSystem takes a file system through its life on an image.
func fileSystem(im *image, fs string, mkfs, fsck []string) {
	h := im.h
	h.t.Helper()
	d := im.attach("--queues", queues())
	with := func(command []string) {
		h.t.Helper()
		h.run(command[0], append(command[1:len(command):len(command)], d.node)...)
	}
	with(mkfs)
	tr := newTree(h.t)
	dir, unmount := h.mount(fs, d.node)
	tr.add(dir, "a", thoroughly(80<<20, 48<<20))
	tr.churn(dir)
	tr.add(dir, "b", thoroughly(32<<20, 24<<20))
	unmount()
	with(fsck)

	dir, unmount = h.mount(fs, d.node)
	tr.check(dir)
	unmount()
	d.detach()
	im.check()

	d = im.attach()
	dir, unmount = h.mount(fs, d.node)
	tr.check(dir)
	tr.churn(dir) // the zones go on, too
	unmount()
	with(fsck)
	dir, unmount = h.mount(fs, d.node)
	tr.check(dir)
	unmount()
	d.detach()
}
