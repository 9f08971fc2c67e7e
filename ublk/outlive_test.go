//go:build kernel

package ublk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// child is a server in a process of its own.
type child struct {
	cmd  *exec.Cmd
	says *bufio.Reader
}

// spawn starts this program again as a server.
func spawn(t testing.TB, o heirOrder) *child {
	t.Helper()
	order, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), heirEnv+"="+string(order))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &child{cmd, bufio.NewReader(out)}
	t.Cleanup(c.kill)
	return c
}

// said waits for what the child says next.
func (c *child) said(t testing.TB) (s heirSays) {
	t.Helper()
	line, err := c.says.ReadBytes('\n')
	if err != nil {
		t.Fatalf("the server says nothing: %v", err)
	}
	if err := json.Unmarshal(line, &s); err != nil {
		t.Fatalf("the server says %q: %v", line, err)
	}
	return s
}

// serves waits until the child serves.
func (c *child) serves(t testing.TB) heirSays {
	t.Helper()
	s := c.said(t)
	if s.Err != "" {
		t.Fatalf("the server failed: %s", s.Err)
	}
	return s
}

// kill kills the child and waits for its end. It may have ended already.
func (c *child) kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

// stop has the child stop its device.
func (c *child) stop(t testing.TB) {
	t.Helper()
	c.cmd.Process.Signal(syscall.SIGTERM)
	if err := c.cmd.Wait(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
}

func driver(t testing.TB) *Control {
	t.Helper()
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// family is a device with its clients, its server of the moment, and what the
// next one has to be.
type family struct {
	testing.TB
	heirOrder
	*clients
	server *child
	rng    *rand.Rand
}

const (
	heirConventional = 2
	heirZoneSize     = mib
)

// newFamily starts a device, with clients if wanted.
func newFamily(t testing.TB, busy bool) *family {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	f := &family{TB: t, rng: rand.New(rand.NewPCG(seed, 0)), heirOrder: heirOrder{
		Dir: t.TempDir(), Conventional: heirConventional, ZoneSize: heirZoneSize, Queues: 2, Depth: 16,
	}}
	f.server = spawn(t, f.heirOrder)
	s := f.server.serves(t)
	f.Recover, f.ID, f.Mark = true, s.ID, s.Mark
	if busy {
		f.clients = startClients(t, NodePath(s.ID), heirConventional, heirZoneSize, seed)
	}
	return f
}

// recover has another server take the device over.
func (f *family) recover() {
	f.Helper()
	f.server = spawn(f, f.heirOrder)
	f.server.serves(f)
}

// end stops everything and returns what the servers have counted.
func (f *family) end() *heir {
	f.Helper()
	if f.clients != nil {
		f.clients.stop()
	}
	f.server.stop(f)
	return f.heir()
}

// heir is the next server's target.
func (f *family) heir() *heir {
	f.Helper()
	h, err := newHeir(f.Dir, f.Conventional, f.ZoneSize)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { h.file.Close() })
	return h
}

// recoverHere recovers the device in this process.
func (f *family) recoverHere(ctx context.Context, cfg Config, target Target, h *heir) (*Device, error) {
	cfg.DataFD = int(h.file.Fd())
	if cfg.Slot == nil {
		cfg.Slot = h.slot(f.Depth)
	}
	return Recover(ctx, cfg, f.ID, f.Mark, target)
}

func (f *family) info(c *Control) Info {
	f.Helper()
	i, err := c.Info(context.Background(), f.ID)
	if err != nil {
		f.Fatal(err)
	}
	return i
}

// TestADeviceOutlivesItsServer kills servers at any moment, and some with an
// answer in hand.
func TestADeviceOutlivesItsServer(t *testing.T) {
	const kills = 10
	f := newFamily(t, true)
	var longest, sum time.Duration
	for i := range kills {
		if i%2 == 0 {
			f.advance(1 + f.rng.IntN(20))
		} else { // it kills itself
			f.server.cmd.Wait()
		}
		killed := time.Now()
		f.server.kill()
		f.DieIn = 0
		if i%2 == 0 && i+1 < kills {
			f.DieIn = 1 + f.rng.IntN(200)
		}
		f.server = spawn(t, f.heirOrder)
		if f.DieIn == 0 {
			f.server.serves(t)
			pause := f.advance(1).Sub(killed)
			longest, sum = max(longest, pause), sum+pause
		}
	}
	h := f.end()
	t.Logf("%d kills, pauses of %v on average and %v at most from the end of a server to the first answer", kills, sum/(kills/2), longest)
	t.Logf("%d requests in doubt; %d issued again, %d of them executed already, %d grown, %d on another tag, %d after fresh ones; %d fresh ones before Recover returned",
		h.InDoubt.Load(), h.Again.Load(), h.AgainDone.Load(), h.Grown.Load(), h.OtherTag.Load(), h.FreshFirst.Load(), h.BeforeReturn.Load())
	if h.Again.Load() == 0 {
		t.Error("nothing was issued again: the test kills too politely")
	}
	if n := h.OtherTag.Load(); n > 0 {
		t.Errorf("%d requests came again with another tag", n)
	}
}

// TestADeathInRecoveryLeavesTheDeviceRecoverable has servers die at each step.
func TestADeathInRecoveryLeavesTheDeviceRecoverable(t *testing.T) {
	f := newFamily(t, true)
	f.advance(5)
	f.server.kill()
	for _, step := range []string{"claim", "claim", "fetch", "fetch", "claim", "end", "fetch", "claim"} {
		o := f.heirOrder
		o.DieAt = step
		dead := spawn(t, o)
		dead.cmd.Wait()
		if !dead.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
			t.Fatalf("%s: it did not die of a signal: %v", step, dead.cmd.ProcessState)
		}
	}
	f.recover()
	f.advance(5)
	f.end()
}

// TestADeathBetweenTheQueuesLeavesTheDeviceRecoverable has servers die that have
// fetched the tags of the first queue and not of the second.
func TestADeathBetweenTheQueuesLeavesTheDeviceRecoverable(t *testing.T) {
	c := driver(t)
	f := newFamily(t, true)
	living := f.info(c).Features.Has(fPerIODaemon)
	f.advance(3)
	f.server.kill()
	for range 2 {
		o := f.heirOrder
		o.DieAt = "between"
		dead := spawn(t, o)
		dead.cmd.Wait()
		if !dead.cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
			t.Fatalf("it did not die of a signal: %v", dead.cmd.ProcessState)
		}
		if !living {
			mends := spawn(t, f.heirOrder)
			if s := mends.said(t); !strings.Contains(s.Err, ErrAgain.Error()) {
				t.Fatalf("%+v", s)
			}
			mends.cmd.Wait()
		}
	}
	f.recover()
	f.advance(5)
	f.end()
}

// TestWhoSetsTheSchedulerWaitsForTheNextServer kills a server while another
// process takes the scheduler away, with a request in flight.
func TestWhoSetsTheSchedulerWaitsForTheNextServer(t *testing.T) {
	o := heirOrder{Dir: t.TempDir(), Conventional: heirConventional, ZoneSize: heirZoneSize, Queues: 1, Depth: 16}
	f := &family{TB: t, heirOrder: o, server: spawn(t, o)}
	s := f.server.serves(t)
	f.Recover, f.ID, f.Mark = true, s.ID, s.Mark
	if err := os.WriteFile(schedulerPath(f.ID), []byte("mq-deadline"), 0); err != nil {
		t.Fatal(err)
	}
	n, err := os.OpenFile(NodePath(f.ID), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	pid := f.server.cmd.Process.Pid
	f.server.cmd.Process.Signal(syscall.SIGSTOP)
	var status unix.WaitStatus // the signal has reached all threads
	if _, err := unix.Wait4(pid, &status, unix.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("not stopped: %v, %v", status, err)
	}
	read, set, p := make(chan error), make(chan error), direct(t, 4096)
	go func() {
		_, err := n.ReadAt(p, 0)
		read <- err
	}()
	for inflight := []string{"0", "0"}; inflight[0] == "0"; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/sys/block/ublkb%d/inflight", f.ID)) // reads, writes
		if inflight = strings.Fields(string(b)); err != nil || len(inflight) != 2 {
			t.Fatalf("%q, %v", b, err)
		}
	}
	go func() { set <- Unschedule(f.ID) }()
	for frozen := false; !frozen; time.Sleep(time.Millisecond) {
		stacks, _ := filepath.Glob("/proc/self/task/*/stack")
		for _, name := range stacks {
			b, _ := os.ReadFile(name)
			frozen = frozen || bytes.Contains(b, []byte("blk_mq_freeze_queue_wait"))
		}
	}
	f.server.kill()
	f.recover()
	if err := errors.Join(<-read, <-set); err != nil {
		t.Error(err)
	}
	if !unscheduled(f.ID) {
		t.Error("the scheduler is still there")
	}
	f.end()
}

func TestABrokenServerLeavesTheDeviceRecoverable(t *testing.T) {
	f := newFamily(t, true)
	f.advance(5)
	f.server.cmd.Process.Signal(syscall.SIGUSR2)
	if s := f.server.said(t); !strings.Contains(s.Err, "made up") {
		t.Errorf("%+v", s)
	}
	f.server.cmd.Wait()
	f.recover()
	f.advance(5)
	f.end()
}

// leave has the server leave the device, and returns how long that took.
func (f *family) leave() time.Duration {
	f.Helper()
	begun := time.Now()
	f.server.cmd.Process.Signal(syscall.SIGUSR1)
	if s := f.server.said(f); !s.Left {
		f.Fatalf("%+v", s)
	}
	return time.Since(begun)
}

// nothingInDoubt checks that the servers have left with empty hands.
func (f *family) nothingInDoubt(h *heir) {
	f.Helper()
	if h.InDoubt.Load() != 0 || h.AgainDone.Load() != 0 {
		f.Errorf("%d requests were in doubt, %d executed and issued again: a server has left with requests in its hands", h.InDoubt.Load(), h.AgainDone.Load())
	}
}

// TestLeaveLeavesNothingInDoubt hands the device on under load, the old server
// living until the new one has served for a while, where the kernel can.
func TestLeaveLeavesNothingInDoubt(t *testing.T) {
	c := driver(t)
	f := newFamily(t, true)
	living := f.info(c).Features.Has(fPerIODaemon)
	var longest time.Duration
	for range 5 {
		f.advance(3)
		longest = max(longest, f.leave())
		old := f.server
		if living {
			if i := f.info(c); i.State != StateQuiesced {
				t.Errorf("after leave: %+v", i)
			}
		} else {
			old.stop(t)
		}
		f.recover()
		f.advance(3)
		if living {
			old.stop(t)
			f.advance(3) // the end of the old server is nothing to the device
		}
	}
	f.nothingInDoubt(f.end())
	t.Logf("leave took %v at most", longest)
}

// TestAServerBecomesTheNextOne hands the device on within one process, which
// runs the next program: on all kernels the old threads are gone then.
func TestAServerBecomesTheNextOne(t *testing.T) {
	f := newFamily(t, true)
	var longest time.Duration
	for range 10 {
		f.advance(3)
		begun := time.Now()
		f.leave()
		f.server.cmd.Process.Signal(syscall.SIGUSR1)
		if s := f.server.serves(t); s.ID != f.ID || s.Mark != f.Mark {
			t.Fatalf("%+v", s)
		}
		longest = max(longest, time.Since(begun))
		f.advance(3)
	}
	f.nothingInDoubt(f.end())
	t.Logf("a change of servers took %v at most", longest)
}

func TestOnlyAnOrphanOfOursIsRecovered(t *testing.T) {
	c := driver(t)
	f := newFamily(t, false)
	h := f.heir()
	refused := func(what string, want error, id int, mark uint64, cfg Config, target Target) {
		t.Helper()
		cfg.DataFD = int(h.file.Fd())
		before, errBefore := c.Info(t.Context(), id)
		d, err := Recover(t.Context(), cfg, id, mark, target)
		if err == nil {
			d.Stop()
			t.Fatalf("%s: recovered", what)
		}
		t.Logf("%s: %v", what, err)
		if want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		if after, errAfter := c.Info(t.Context(), id); after != before || (errBefore == nil) != (errAfter == nil) {
			t.Errorf("%s: the device is %+v (%v) and was %+v (%v)", what, after, errAfter, before, errBefore)
		}
	}
	refused("no device", ErrNoDevice, 77, f.Mark, Config{}, h)
	refused("alive", ErrAlive, f.ID, f.Mark, Config{}, h)
	refused("alive and foreign", ErrForeign, f.ID, f.Mark+1, Config{}, h)
	plain := device(t, newToy(t, 4, 1, mib, mib), h.file, Config{})
	refused("without recovery", ErrLost, plain.ID(), plain.mark, Config{}, h)
	if err := plain.Leave(t.Context()); err == nil {
		t.Error("a device without recovery was left")
	}
	f.server.kill()
	for f.info(c).State != StateQuiesced { // the kernel notices a moment later
		time.Sleep(time.Millisecond)
	}
	if i := f.info(c); i.Mark != f.Mark || i.Queues != 2 || i.Depth != 16 || !i.Features.Has(recovery) {
		t.Errorf("%+v", i)
	}
	refused("foreign", ErrForeign, f.ID, f.Mark+1, Config{}, h)
	refused("without a mark", ErrForeign, f.ID, 0, Config{}, h)
	refused("other queues", nil, f.ID, f.Mark, Config{Queues: 1}, h)
	refused("other depth", nil, f.ID, f.Mark, Config{Depth: 32}, h)
	refused("other requests", nil, f.ID, f.Mark, Config{MaxIO: 2 * mib}, h)
	refused("read-only", nil, f.ID, f.Mark, Config{ReadOnly: true}, h)
	refused("other size", nil, f.ID, f.Mark, Config{}, newToy(t, heirZones+1, heirConventional, heirZoneSize, heirZoneSize))
	refused("other zones", nil, f.ID, f.Mark, Config{}, newToy(t, heirZones/2, heirConventional, 2*heirZoneSize, heirZoneSize))

	// Somebody holds the device.
	fd, err := openChar(t.Context(), f.ID)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if d, err := f.recoverHere(ctx, Config{}, h, h); err == nil {
		d.Stop()
		t.Fatal("recovered though it is held")
	} else if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("held: %v", err)
	}
	unix.Close(fd)

	// The data file cannot be registered: found out by the queues.
	if d, err := Recover(t.Context(), Config{DataFD: 999}, f.ID, f.Mark, h); err == nil {
		d.Stop()
		t.Fatal("recovered without a data file")
	}
	d, err := f.recoverHere(t.Context(), Config{}, h, h)
	if err != nil {
		t.Fatal(err)
	}
	if i := f.info(c); i.State != StateLive || i.PID != os.Getpid() {
		t.Errorf("%+v", i)
	}
	n := node(t, d, os.O_RDWR)
	if _, err := n.WriteAt(direct(t, 4096), heirConventional*heirZoneSize); err != nil {
		t.Error(err)
	}
	n.Close()
	if err := d.Stop(); err != nil {
		t.Error(err)
	}
	refused("stopped", ErrNoDevice, f.ID, f.Mark, Config{}, h)
}

func TestAnOrphanIsDeletedWithoutAServer(t *testing.T) {
	c := driver(t)
	for _, how := range []struct {
		name string
		do   func(*family) error
	}{
		{"stop and delete", func(f *family) error {
			return errors.Join(c.Stop(t.Context(), f.ID), c.Delete(t.Context(), f.ID, f.Mark))
		}},
		{"delete", func(f *family) error { return c.Delete(t.Context(), f.ID, f.Mark) }},
	} {
		f := newFamily(t, false)
		n, err := os.OpenFile(NodePath(f.ID), os.O_RDONLY|unix.O_DIRECT, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.server.kill()
		read, p := make(chan error), direct(t, 4096)
		go func() { // waits for a server, and hears that there will be none
			_, err := n.ReadAt(p, 0)
			n.Close()
			read <- err
		}()
		if err := how.do(f); err != nil {
			t.Errorf("%s: %v", how.name, err)
		}
		if err := <-read; err == nil {
			t.Errorf("%s: a read of the device succeeded", how.name)
		}
		if _, err := c.Info(t.Context(), f.ID); !errors.Is(err, ErrNoDevice) {
			t.Errorf("%s: %v", how.name, err)
		}
	}
}
