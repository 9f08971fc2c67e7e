//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// terminated tells the server of d to stop, which leaves a device that is in use.
func (d *device) terminated() {
	h := d.im.h
	h.t.Helper()
	pid := d.server()
	if pid == 0 {
		h.t.Fatalf("no server for %s", d.node)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		h.t.Fatal(err)
	}
	h.wait("the server is gone", func() bool { return !alive(pid) })
	if s := d.state(); s != "waiting" {
		h.t.Errorf("a device in use is %s after its server was told to stop", s)
	}
}

// SIGTERM is no error to those who use the device: they wait for another server.
func TestSIGTERMLeavesADeviceInUse(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=1G,zone.size=16M,zone.conventional_zones=4")
	s := im.serve("--queues", queues())
	h.mkfs("f2fs", s.device)
	dir, unmount := h.mount("f2fs", s.node)
	cmd := copying(h.dir, dir)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	load := s.completed() + 50
	h.wait("requests are completed", func() bool { return s.completed() > load })
	s.terminate()
	says(t, s.stderr.String(), "in use", "mounted on "+dir, "qzbd recover")
	if l := h.list(); len(l) != 1 || l[0].State != "waiting" || !strings.Contains(l[0].Left, dir) {
		t.Errorf("list says %+v", l)
	}
	im.check() // closed in order
	says(t, h.refused(qzbd, "detach", s.node), "in use", "qzbd recover "+s.node)
	// Starting the service again takes the device over.
	if node := strings.TrimSpace(h.run(qzbd, "attach", im.path)); node != s.node {
		t.Fatalf("attach made %s, %s waits", node, s.node)
	}
	s.gone = false
	if l := h.list(); len(l) != 1 || l[0].State != "live" || l[0].Left != "" {
		t.Errorf("list says %+v", l)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	unmount()
	s.detach()
}

// Only who has the device open uses it here, for as long as the server looks for
// users, which is seconds: on a fast machine fio would end, or close the device
// between writing and verifying. So fio pauses, and somebody else has it open too.
func TestFioNoticesNoSIGTERM(t *testing.T) {
	h := begin(t)
	h.onExt4()
	im := h.create("a.qcow2", "size=256M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=2,zone.max_open_zones=6,zone.max_active_zones=8")
	d := im.attach("--queues", queues())
	user := d.openReadOnly()
	seed, rng := seeded(t)
	unhurried := func() *exec.Cmd {
		cmd := verifying(d, "64M", engines[0], seed)
		cmd.Args = append(cmd.Args, "--thinktime=150000", "--thinktime_blocks=16") // µs: 110 requests a second at most
		return cmd
	}
	h.interrupted(d, rng, kills(2), 100, unhurried, func() {
		d.terminated()
		d.recovered()
	})
	user.close()
	d.detach()
}

// A device that comes into use when detach has already told its server to stop is
// left, and detach says so. By force it goes.
func TestADeviceThatComesIntoUseWhileItIsDetached(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	d := im.attach()
	for _, force := range []bool{false, true} {
		pid := d.server()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		args := []string{"detach", d.node}
		if force {
			args = append(args, "--force")
		}
		done := make(chan result, 1)
		go func() { done <- h.try(qzbd, args...) }()
		h.wait("the server is told to stop", func() bool { return pending(t, pid, syscall.SIGTERM) })
		f, err := os.OpenFile(d.node, os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		r := <-done
		if force {
			if r.code != 0 {
				t.Error(r)
			}
			f.Close()
			d.removed()
			continue
		}
		if r.code != 1 {
			t.Error(r)
		}
		says(t, r.stderr, "come into use", fmt.Sprint("process ", os.Getpid()), "qzbd recover "+d.node)
		d.recovered()
		f.Close()
	}
	im.check()
}

// pending says that a signal waits for a process that is stopped.
func pending(t *testing.T, pid int, sig syscall.Signal) bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nShdPnd:\t")
	field, _, _ := strings.Cut(rest, "\n")
	set, err := strconv.ParseUint(field, 16, 64)
	if err != nil {
		t.Fatalf("%q: %v", field, err)
	}
	return set>>(sig-1)&1 == 1
}
