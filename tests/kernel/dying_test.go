//go:build kernel

package kernel

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program is a server in the foreground.
type program struct {
	h      *host
	cmd    *exec.Cmd
	node   chan string // what it prints when the device is usable
	ended  chan error  // how it has ended
	stderr bytes.Buffer
}

// serves starts a server of the image, or of its device that waits for one.
func (im *image) serves(flags ...string) *program {
	h := im.h
	h.t.Helper()
	p := &program{h: h, node: make(chan string, 1), ended: make(chan error, 1)}
	p.cmd = exec.Command(qzbd, append(attachArgs(im, flags), "--foreground")...)
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		p.node <- strings.TrimSpace(line)
		p.ended <- p.cmd.Wait()
	}()
	return p
}

// usable waits for the device.
func (p *program) usable() (node string) {
	p.h.t.Helper()
	select {
	case node = <-p.node:
	case <-time.After(moment):
	}
	if node == "" {
		p.h.t.Fatalf("%s: not usable\n%s", p.cmd, p.stderr.String())
	}
	return node
}

// dies waits a while, or until the device is usable, and kills the program.
func (p *program) dies(after time.Duration) {
	p.h.t.Helper()
	select {
	case <-time.After(after):
	case <-p.node:
	}
	p.h.strike(p.cmd.Process.Pid)
	if err := <-p.ended; p.cmd.ProcessState.ExitCode() != -1 {
		p.h.t.Fatalf("%s: ended by itself: %v\n%s", p.cmd, err, p.stderr.String())
	}
}

// strike kills a process, but not while the driver waits for the report of zones
// of a device that it starts: no kernel survives that. A SIGSTOP that comes while a
// program becomes another one, as a server does at its start, is lost: Linux drops
// it in exec.
func (h *host) strike(pid int) {
	h.t.Helper()
	for {
		h.wait("the server stops", func() bool {
			_ = syscall.Kill(pid, syscall.SIGSTOP) // it may have ended
			return strings.Contains("TZX-", taskState(pid))
		})
		if !reporting(pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			return
		}
		h.t.Log("its zones are just being reported")
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
}

// taskState is the letter that proc_pid_stat(5) has for the state of a process;
// "-" if it is gone.
func taskState(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, ok := strings.Cut(string(b), ") ")
	if err != nil || !ok {
		return "-"
	}
	return rest[:1]
}

var asksForZones = regexp.MustCompile(`blk_revalidate_disk_zones|device_add_disk|add_disk_fwnode`)

func reporting(pid int) bool {
	stacks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", pid))
	for _, name := range stacks {
		if b, err := os.ReadFile(name); err == nil && asksForZones.Match(b) {
			return true
		}
	}
	return false
}

// within is a moment of what usually takes so long, or soon after.
func within(rng *rand.Rand, usual time.Duration) time.Duration {
	return time.Duration(rng.Int64N(int64(usual + usual/8)))
}

// A server that is killed on its way leaves nothing that keeps the next attach
// from its work, and nothing that detach does not take away.
func TestKilledWhileAttaching(t *testing.T) {
	h := begin(t)
	_, rng := seeded(t)
	im := h.create("a.qcow2", small)
	flags := []string{"--queues", queues()}
	usual := moment
	for range 2 {
		began := time.Now()
		p := im.serves(flags...)
		d := &device{im: im, node: p.usable()}
		usual = min(usual, time.Since(began))
		d.detach()
		if err := <-p.ended; err != nil {
			t.Errorf("%v\n%s", err, p.stderr.String())
		}
	}
	n, written := kills(thoroughly(6, 4)), int64(0)
	for range n {
		im.serves(flags...).dies(within(rng, usual))
		d := im.attach(flags...)
		k := d.open()
		k.holds(1, 0, int(written))
		k.write(1, written, 4096)
		written += 4096
		k.close()
		if rng.IntN(2) == 0 {
			d.detach()
		} else {
			d.killed()
		}
		h.run(qzbd, "detach", "--all")
		d.gone = true
		im.check()
		if l := h.list(); len(l) != 0 {
			t.Fatalf("list says %v", l)
		}
	}
	t.Logf("%d kills survived, within the %v that it takes", n, usual.Round(time.Millisecond))
}

// Detaching goes on where a killed server has stopped, at the latest when it is
// asked to once more.
func TestKilledWhileDetaching(t *testing.T) {
	h := begin(t)
	_, rng := seeded(t)
	im := h.create("a.qcow2", small)
	var usual time.Duration
	n, written, again := kills(thoroughly(6, 4)), int64(0), 0
	for i := range 1 + n {
		d := im.attach("--queues", queues(), "--sync-interval", "0")
		k := d.open()
		k.holds(1, 0, int(written))
		k.write(1, written, 4096)
		written += 4096
		k.close()
		pid, began := d.server(), time.Now()
		if i == 0 {
			d.detach()
			usual = time.Since(began)
			continue
		}
		var out bytes.Buffer
		detach := exec.Command(qzbd, "detach", d.node)
		detach.Stdout, detach.Stderr = &out, &out
		if err := detach.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(within(rng, usual))
		h.strike(pid)
		err := detach.Wait()
		h.wait("the server is gone", func() bool { return !alive(pid) })
		if err != nil {
			t.Logf("%v: %v\n%s", detach, err, out.String())
			h.run(qzbd, "detach", d.node)
			again++
		}
		d.gone = true
		im.check()
	}
	t.Logf("%d kills survived, within the %v that it takes, detached again after %d", n, usual.Round(time.Millisecond), again)
}

// Servers die on the way of a recovery, too, one after the other, and fio sees a
// longer pause.
func TestKilledWhileRecovering(t *testing.T) {
	h := begin(t)
	seed, rng := seeded(t)
	im := h.create("a.qcow2", busyImage)
	d := im.attach("--queues", queues())
	d.killed()
	began := time.Now()
	im.serves().usable()
	usual := time.Since(began)
	died := 0
	h.survives(d, rng, kills(thoroughly(4, 3)), 100, func() {
		d.killed()
		for range 1 + rng.IntN(3) {
			im.serves().dies(within(rng, usual))
			died++
		}
	}, func() *exec.Cmd { return verifying(d, "64M", engines[0], seed) })
	t.Logf("%d successors died within the %v that a recovery takes", died, usual.Round(time.Millisecond))
	d.detach()
}
