//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// usage is what a server needs of the machine.
type usage struct {
	fds, threads int
	memory       int64 // resident, in bytes
}

func (u usage) String() string {
	return fmt.Sprintf("%d files, %d threads, %dM", u.fds, u.threads, u.memory>>20)
}

func (h *host) usage(pid string) usage {
	h.t.Helper()
	b, err := os.ReadFile("/proc/" + pid + "/statm")
	if err != nil {
		h.t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
	if err != nil {
		h.t.Fatal(err)
	}
	return usage{
		fds:     count(h.t, "/proc/"+pid+"/fd/*"),
		threads: count(h.t, "/proc/"+pid+"/task/*"),
		memory:  pages * int64(os.Getpagesize()),
	}
}

// locks is the number of file locks on the machine.
func (h *host) locks() int {
	h.t.Helper()
	b, err := os.ReadFile("/proc/locks")
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.Count(string(b), "\n")
}

// Again and again the same: what is lost each time adds up.
func TestManyTurnsLeaveNothingBehind(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=32M,zone.size=2M")
	const zones, n = 16, 16 << 10
	turns := thoroughly[int64](100, 20)
	before, locks := look(t), h.locks()
	var size []int64
	var used []usage
	for i := range turns {
		d := im.attach()
		pids := processes()
		if len(pids) != 1 {
			t.Fatalf("turn %d: %d processes, want one server", i, len(pids))
		}
		k := d.open()
		at := i % zones * (2 << 20)
		at += i / zones * n
		if i >= zones {
			k.holds(1, at-n, n) // of sixteen turns ago
		}
		k.write(1, at, n)
		k.close()
		used = append(used, h.usage(pids[0]))
		d.detach()
		if after := look(t); len(after) != len(before) {
			before.compare(t, after)
			t.Fatalf("turn %d leaves something behind", i)
		}
		size = append(size, im.allocated())
	}
	if l := h.locks(); l > locks {
		t.Errorf("%d file locks, %d before", l, locks)
	}
	t.Logf("the server of the first turn: %v, of the last: %v; the image: %v bytes", used[0], used[turns-1], size[turns-1])
	for i, u := range used {
		if u.fds > used[0].fds+2 || u.threads > used[0].threads+8 || u.memory > used[0].memory*3/2 {
			t.Errorf("turn %d needs more than the first: %v, %v", i, u, used[0])
		}
	}
	if grown := size[turns-1] - size[0]; grown > (turns-1)*n+128<<10 {
		t.Errorf("%d bytes in all, but the image grows by %d: %v", (turns-1)*n, grown, size)
	}
	k := im.attach().open()
	for i := range int64(zones) {
		k.holds(1, i*2<<20, int(turns/zones*n))
	}
}

// Three different images at once, under load, and the others do not notice
// when one of them comes and goes.
func TestThreeDevicesAtOnce(t *testing.T) {
	h := begin(t)
	locks := h.locks()
	images := []*image{
		h.create("a.qcow2", "size=128M,zone.size=8M,zone.capacity=6M,zone.max_open_zones=5,zone.max_active_zones=6"),
		h.create("b.qcow2", "size=64M,zone.size=4M,zone.conventional_zones=8"),
		h.create("c.qcow2", "size=256M,zone.size=16M,cluster_size=4K"),
	}
	jobs := [][]string{
		{"--rw=randwrite", "--bsrange=4k-128k", "--blockalign=4k", "--max_open_zones=5", "--size=96M"},
		{"--rw=randwrite", "--bs=16k", "--size=48M", "--max_open_zones=4"},
		{"--rw=write", "--bs=64k", "--size=96M"},
	}
	var devices []*device
	for i, im := range images {
		devices = append(devices, im.attach("--queues", []string{"1", queues(), "1"}[i]))
	}
	// round has fio write and read back on some of the devices, all together.
	round := func(which ...int) {
		t.Helper()
		for _, i := range which {
			h.run("blkzone", "reset", devices[i].node)
		}
		args := []string{"--zonemode=zbd", "--ioengine=io_uring", "--iodepth=8", "--io_size=24M"}
		args = append(args, verified...)
		for _, i := range which {
			args = append(args, fmt.Sprint("--name=", i), "--filename="+devices[i].node)
			args = append(args, jobs[i]...)
		}
		done := h.fio(h.tool, args...)
		readBack(t, done)
		for _, j := range done {
			if j.Write.Bytes < 20<<20 {
				t.Errorf("job %s wrote %d bytes", j.Name, j.Write.Bytes)
			}
		}
	}
	servers := func() (all []usage) {
		t.Helper()
		for _, d := range devices {
			all = append(all, h.usage(fmt.Sprint(d.server())))
		}
		return all
	}
	round(0, 1, 2)
	first := servers()
	for range 2 {
		round(0, 1, 2)
	}
	last := servers()
	t.Logf("after the first round: %v, after the third: %v", first, last)
	for i := range last {
		if last[i].memory > first[i].memory*3/2+8<<20 || last[i].fds > first[i].fds || last[i].threads > first[i].threads+8 {
			t.Errorf("the server of %s grows: %v, then %v", devices[i].node, first[i], last[i])
		}
	}

	// fio works on two of them, the third comes and goes until that is over.
	over := make(chan struct{})
	turns := make(chan int)
	go func() {
		n := 0
		defer func() { turns <- n }()
		for {
			devices[1].detach()
			devices[1] = images[1].attach()
			n++
			select {
			case <-over:
				return
			default:
			}
		}
	}()
	round(0, 2)
	close(over)
	t.Logf("%d turns of the third meanwhile", <-turns)
	for _, d := range devices {
		d.detach()
	}
	if l := h.locks(); l > locks {
		t.Errorf("%d file locks, %d before", l, locks)
	}
}
