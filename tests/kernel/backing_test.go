//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// backing is a file system that image files lie in.
type backing struct {
	name string
	use  func(h *host) // makes it the place of the test's images
}

// backings are those with direct I/O: where TMPDIR is, a tmpfs in the virtual
// machines, and an ext4.
var backings = []backing{
	{"TMPDIR", func(*host) {}},
	{"ext4", (*host).onExt4},
}

// onExt4 puts the test's images into an ext4: that on the disk which the
// virtual machine has for it, or else one in a file.
func (h *host) onExt4() {
	h.t.Helper()
	if dir := os.Getenv("QZBD_VM_SCRATCH"); dir != "" {
		dir, err := os.MkdirTemp(dir, "qzbd")
		if err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() { os.RemoveAll(dir) })
		h.dir = dir
		return
	}
	file := filepath.Join(h.dir, "ext4")
	h.run("truncate", "-s", "4G", file)
	h.run("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", file)
	h.dir, _ = h.mount("ext4", file, "loop")
}

// onFileSystem makes a file system on a device and puts the images there.
func (h *host) onFileSystem(fs, node string, options ...string) {
	h.t.Helper()
	if fs == "ext4" {
		h.run("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,nodiscard", node)
	}
	h.dir, _ = h.mount(fs, node, options...)
}

// ram is a disk in memory that can be told to fail.
type ram struct {
	h    *host
	dir  string // in configfs
	node string
}

var rams atomic.Int32

// ramDisk makes a disk of 2G with blocks of the given size.
func (h *host) ramDisk(blockSize int) *ram {
	h.t.Helper()
	h.run("modprobe", "null_blk", "nr_devices=0")
	name := fmt.Sprintf("qzbd-ram%d", rams.Add(1))
	r := &ram{h, filepath.Join("/sys/kernel/config/nullb", name), ""}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		r.set("power", "0")
		if err := os.Remove(r.dir); err != nil {
			h.t.Error(err)
		}
	})
	before, err := filepath.Glob("/dev/nullb*")
	if err != nil {
		h.t.Fatal(err)
	}
	r.set("memory_backed", "1")
	r.set("size", "2048")
	r.set("blocksize", fmt.Sprint(blockSize))
	r.set("power", "1")
	seen := map[string]bool{}
	for _, n := range before {
		seen[n] = true
	}
	for _, n := range []string{"/dev/nullb0", "/dev/nullb1", "/dev/nullb2", "/dev/" + name} {
		if _, err := os.Stat(n); err == nil && !seen[n] {
			r.node = n
		}
	}
	if r.node == "" {
		h.t.Fatal("null_blk made no disk")
	}
	return r
}

func (r *ram) set(attribute, value string) {
	r.h.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, attribute), []byte(value), 0); err != nil {
		r.h.t.Fatal(err)
	}
}

// fail makes every request fail that touches a byte range of the disk, or, with
// false, work again.
func (r *ram) fail(at, n int64, fails bool) {
	r.h.t.Helper()
	sign := "-"
	if fails {
		sign = "+"
	}
	r.set("badblocks", fmt.Sprintf("%s%d-%d", sign, at/512, (at+n)/512-1))
}

// extentOf returns where on its disk the byte off of a file lies.
func extentOf(t *testing.T, path string, off int64) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const fiemap = 0xc020660b // FS_IOC_FIEMAP of linux/fs.h
	// struct fiemap with one struct fiemap_extent (linux/fiemap.h).
	var m struct {
		start, length                  uint64
		flags, mapped, count, reserved uint32
		logical, physical, size        uint64
		reserved64                     [2]uint64
		extentFlags                    uint32
		reserved32                     [3]uint32
	}
	m.start, m.length, m.count = uint64(off), 512, 1
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemap, uintptr(unsafe.Pointer(&m))); e != 0 {
		t.Fatalf("FIEMAP of %s: %v", path, e)
	}
	if m.mapped != 1 {
		t.Fatalf("%s has nothing at %#x", path, off)
	}
	return int64(m.physical) + off - int64(m.logical)
}
