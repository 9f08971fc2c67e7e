//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const busyImage = "size=256M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=2,zone.max_open_zones=6,zone.max_active_zones=8"

// keepsBusy runs a program again and again until stop is called, which lets it
// end. It must always succeed.
func (h *host) keepsBusy(program func() *exec.Cmd) (stop func()) {
	var enough atomic.Bool
	var ended sync.WaitGroup
	ended.Go(func() {
		for !enough.Load() {
			cmd := program()
			if out, err := cmd.CombinedOutput(); err != nil {
				h.t.Errorf("%v: %v\n%s", cmd, err, out)
				return
			}
		}
	})
	return func() {
		enough.Store(true)
		ended.Wait()
	}
}

// goesOn waits until a device that is in use has completed more requests.
func (d *device) goesOn() {
	h := d.im.h
	h.t.Helper()
	before := d.completed()
	h.wait(d.node+" completes requests", func() bool { return h.t.Failed() || d.completed() > before+5 })
}

// Of several devices each has a server of its own: while one waits for another
// server the others go on, and come and go.
func TestADeathOfTheServerIsNothingToOtherDevices(t *testing.T) {
	h := begin(t)
	seed, rng := seeded(t)
	var devices []*device
	var stops []func()
	for i := range 3 {
		d := h.create(fmt.Sprintf("%d.qcow2", i), busyImage).attach("--queues", queues())
		devices = append(devices, d)
		stops = append(stops, h.keepsBusy(func() *exec.Cmd { return verifying(d, "4M", engines[i%len(engines)], seed+uint64(i)) }))
	}
	four := h.create("4.qcow2", small)
	n := kills(2)
	for range n {
		i := rng.IntN(len(devices))
		d := devices[i]
		d.goesOn()
		d.killed()
		for k, other := range devices {
			if k != i {
				other.goesOn()
			}
		}
		if rng.IntN(2) == 0 {
			f := four.attach()
			k := f.open()
			k.write(1, 0, 4096)
			k.must(blkResetZone, k.zone(0))
			k.close()
			f.detach()
		}
		d.recovered()
	}
	var waiting []string
	for _, d := range devices {
		d.goesOn()
		d.killed()
		waiting = append(waiting, d.node)
	}
	f := four.attach()
	nodes := strings.Fields(h.run(qzbd, "recover", "--all"))
	if slices.Sort(nodes); !slices.Equal(nodes, waiting) {
		t.Errorf("recover --all said %v, want %v", nodes, waiting)
	}
	f.detach()
	for i, d := range devices {
		d.goesOn()
		stops[i]()
	}
	for _, d := range devices {
		d.detach()
	}
	t.Logf("%d kills survived by three devices", n+len(devices))
}

// footprint is what a recovery must not add to.
func (d *device) footprint() map[string]int {
	h := d.im.h
	h.t.Helper()
	f := map[string]int{}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.server()))
	if err != nil {
		h.t.Fatal(err)
	}
	f["open files of the server"] = len(fds)
	err = filepath.WalkDir("/run/qzbd", func(name string, e os.DirEntry, err error) error {
		if err == nil {
			f["entries of /run/qzbd"]++
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	nodes, _ := filepath.Glob("/dev/ublk*")
	f["nodes"] = len(nodes)
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		switch w := strings.Fields(line); w[0] {
		case "Shmem:", "Mlocked:": // of which journals are made
			kib, err := strconv.Atoi(w[1])
			if err != nil {
				h.t.Fatal(err)
			}
			f[w[0]+" in MiB"] = (kib + 512) >> 10
		}
	}
	return f
}

// A device can be recovered as often as servers die: nothing is left of those
// before.
func TestRecoveriesAfterTheDeathOfTheServerLeaveNothing(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	d := im.attach("--queues", queues())
	k := d.open()
	k.write(1, 0, 4096)
	k.close()
	d.killed()
	d.recovered()
	before := d.footprint()
	n := 2 * kills(thoroughly(5, 3))
	for range n {
		d.killed()
		d.recovered()
	}
	after := d.footprint()
	for what, n := range after {
		if n > before[what] {
			t.Errorf("%s: %d, were %d", what, n, before[what])
		}
	}
	st, err := os.Stat(d.logFile())
	if err != nil || st.Size() > int64(n+2)*4096 {
		t.Errorf("the log: %v, %v", st.Size(), err)
	}
	k = d.open()
	k.holds(1, 0, 4096)
	k.close()
	d.detach()
	t.Logf("%d kills survived, %v", n, after)
}
