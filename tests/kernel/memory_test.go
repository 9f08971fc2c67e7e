//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The flags of a thread that PR_SET_IO_FLUSHER sets (include/linux/sched.h):
// PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE.
const flusher = 0x00080000 | 0x00100000

// flags is field 9 of the stat file of a thread (proc_pid_stat(5)).
func threadFlags(stat string) (uint64, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 7 {
		return 0, fmt.Errorf("%q has no flags", stat)
	}
	return strconv.ParseUint(fields[6], 10, 64)
}

// flushers checks that every thread of the server is exempt from waiting for
// the writeback that it does itself, and returns how many there are.
func (d *device) flushers() (n int) {
	t := d.im.h.t
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", d.server()))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		stat, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		n++
		if flags, err := threadFlags(string(stat)); err != nil || flags&flusher != flusher {
			t.Errorf("%s: flags %#x, %v: %s", f, flags, err, stat)
		}
	}
	if n == 0 {
		t.Error("the server has no threads")
	}
	return n
}

// Writers with less memory than they write, by write and by mmap, through a file
// system on the device: all has to go through the server while there is hardly
// any memory.
func TestAServerWorksWhenThereIsNoMemory(t *testing.T) {
	for _, fs := range ways(t, 0, []string{"f2fs", "btrfs"}) {
		t.Run(fs, func(t *testing.T) {
			h := begin(t)
			h.onExt4() // not in memory
			im := h.create("a.qcow2", "size=1G,zone.size=16M,zone.conventional_zones=8")
			d := im.attach("--queues", queues())
			h.mkfs(fs, d)
			dir, unmount := h.mount(fs, d.node)
			hog := h.hog(80 << 20)
			t.Logf("%d MiB are left", h.available()>>20)
			fio := func(name string, args ...string) {
				h.run("fio", append([]string{"--name=" + name, "--directory=" + dir, "--bs=64k", "--size=32M",
					"--verify=crc32c", "--do_verify=0", "--end_fsync=1"}, args...)...)
			}
			fio("buffered", "--rw=write", "--numjobs=2")
			fio("mapped", "--rw=randwrite", "--ioengine=mmap", "--fallocate=none", "--iodepth=1", "--size=12M")
			threads := d.flushers()
			t.Logf("%d threads", threads)
			hog()
			h.run("sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
			fio("buffered", "--rw=read", "--numjobs=2", "--verify_only", "--do_verify=1")
			unmount()
			d.detach()
		})
	}
}

// available is how much memory could be had without swapping, in bytes.
func (h *host) available() int64 {
	h.t.Helper()
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	h.t.Fatal("/proc/meminfo has no MemAvailable")
	return 0
}

// hog takes memory, as huge pages that nobody uses, until only so much is left,
// and gives it back in the end.
func (h *host) hog(left int64) (release func()) {
	h.t.Helper()
	const pages, size = "/proc/sys/vm/nr_hugepages", 2 << 20
	set := func(n int64) {
		h.t.Helper()
		if err := os.WriteFile(pages, fmt.Appendln(nil, n), 0); err != nil {
			h.t.Fatal(err)
		}
	}
	h.t.Cleanup(func() { set(0) })
	for taken, more := int64(0), int64(1); more > 0; {
		if more = (h.available() - left) / size; more > 0 {
			taken += more
			set(taken)
		}
		b, err := os.ReadFile(pages)
		if err != nil {
			h.t.Fatal(err)
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil || n < taken {
			break // there are no more in one piece
		}
	}
	return func() { set(0) }
}
