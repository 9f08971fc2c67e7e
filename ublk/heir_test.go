//go:build kernel

package ublk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/zns"
)

// heir is a toy whose zones survive their process: it keeps them, and a record
// of the request that each tag carries, in a file that all servers of the
// device map. It recognises requests that are issued again by these records,
// and counts what a target may rely on.
type heir struct {
	*toy
	*estate
	old   [heirSlots]heirSlot  // the records as the last server left them
	seen  [heirSlots]bool      // its tag has carried a request since; guarded by toy.mu
	slots map[*zns.Request]int // fixed before the first request
	die   int                  // after how many answers this process kills itself, 0 for never; guarded by toy.mu
	fresh uint64               // requests of this server that were not issued again; guarded by toy.mu
}

const (
	heirSlots = 1024
	heirZones = 8
)

// estate is what a server leaves to the next.
type estate struct {
	zones [heirZones]toyZone
	slots [heirSlots]heirSlot

	InDoubt      atomic.Uint64 // requests that a dead server had begun and not executed
	Servers      atomic.Uint64
	Again        atomic.Uint64 // requests issued again
	AgainDone    atomic.Uint64 // of those, the ones that the dead server had executed
	Grown        atomic.Uint64 // of those, the ones that had become longer
	OtherTag     atomic.Uint64 // requests that were begun on another tag
	FreshFirst   atomic.Uint64 // those before which a fresh request came
	BeforeReturn atomic.Uint64 // requests that came before Recover returned
}

// heirSlot is what a tag carries.
type heirSlot struct {
	state      uint64
	op         zns.Op
	start, len uint64
}

const (
	slotBegun    = 1 // the server has seen it
	slotExecuted = 2 // it may have been answered
)

// newHeir opens the estate in dir, of conventional zones and others.
func newHeir(dir string, conventional uint32, size uint64) (*heir, error) {
	data, err := os.OpenFile(filepath.Join(dir, "data"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := data.Truncate(int64(heirZones * size)); err != nil {
		return nil, err
	}
	state, err := os.OpenFile(filepath.Join(dir, "state"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer state.Close()
	if err := state.Truncate(int64(unsafe.Sizeof(estate{}))); err != nil {
		return nil, err
	}
	p, err := unix.Mmap(int(state.Fd()), 0, int(unsafe.Sizeof(estate{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	e := (*estate)(unsafe.Pointer(&p[0]))
	h := &heir{
		toy:    &toy{file: data, chunk: 64 << 10, geometry: toyGeometry(heirZones, conventional, size, size), zones: e.zones[:]},
		estate: e, old: e.slots, slots: map[*zns.Request]int{},
	}
	if e.Servers.Add(1) == 1 {
		copy(h.toy.zones, newToyZones(h.geometry))
	}
	for _, s := range h.old {
		if s.state == slotBegun {
			e.InDoubt.Add(1)
		}
	}
	// What was reserved and not committed never happened.
	for i := range h.toy.zones {
		z := &h.toy.zones[i]
		z.busy, z.WP = 0, z.done
		if z.Type == zns.TypeSeqWriteReq {
			z.Cond = condAt(z)
		}
	}
	return h, nil
}

func condAt(z *toyZone) zns.Cond {
	switch z.WP {
	case z.Start:
		return zns.CondEmpty
	case z.Start + z.Capacity:
		return zns.CondFull
	}
	return zns.CondClosed
}

// slot is Config.Slot.
func (h *heir) slot(depth int) func(int, int, *zns.Request) {
	return func(queue, tag int, r *zns.Request) { h.slots[r] = queue*depth + tag }
}

func (h *heir) Begin(r *zns.Request) zns.Step {
	h.mu.Lock()
	h.recognise(r)
	h.mu.Unlock()
	return h.done(r, h.toy.Begin(r))
}

// recognise tells requests that are issued again from fresh ones, and makes the
// former possible: a write of what was written already begins at its start
// once more. The kernel has one write of a zone in flight. The caller holds mu.
func (h *heir) recognise(r *zns.Request) {
	i := h.slots[r]
	old, first := h.old[i], !h.seen[i]
	h.seen[i] = true
	same := func(s heirSlot) bool {
		return s.state != 0 && s.op == r.Op && s.start == r.Start && s.len <= r.Len
	}
	switch {
	case first && same(old):
		h.Again.Add(1)
		if old.len < r.Len {
			h.Grown.Add(1)
		}
		if h.fresh > 0 {
			h.FreshFirst.Add(1)
		}
		z := &h.toy.zones[h.geometry.ZoneOf(r.Start)]
		if r.Op == zns.OpWrite && z.Type == zns.TypeSeqWriteReq && r.Start < z.WP {
			h.AgainDone.Add(1)
			if z.WP = r.Start; z.Cond == zns.CondFull {
				z.Cond = zns.CondImpOpen
			}
		}
	default:
		for n, s := range h.old {
			if n != i && !h.seen[n] && s.state == slotBegun && same(s) && (r.Op == zns.OpWrite || r.Op == zns.OpReset) {
				h.OtherTag.Add(1)
			}
		}
		h.fresh++
	}
	h.estate.slots[i] = heirSlot{slotBegun, r.Op, r.Start, r.Len}
}

// done records that a request is going to be answered.
func (h *heir) done(r *zns.Request, s zns.Step) zns.Step {
	if s != zns.Answer {
		return s
	}
	h.estate.slots[h.slots[r]].state = slotExecuted
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.die--; h.die == 0 {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // with the answer
	}
	return s
}

func (h *heir) Work(r *zns.Request) zns.Step           { return h.done(r, h.toy.Work(r)) }
func (h *heir) End(r *zns.Request, err error) zns.Step { return h.done(r, h.toy.End(r, err)) }

// diesReporting dies when the kernel asks it for its zones.
type diesReporting struct {
	*heir
	asked atomic.Int32
}

func (d *diesReporting) Zone(i uint32) zns.Zone {
	if d.asked.Add(1) > heirZones { // so often Start itself asks
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // with the report
	}
	return d.heir.Zone(i)
}

// heirOrder tells a child process what to be.
type heirOrder struct {
	Dir           string
	Conventional  uint32
	ZoneSize      uint64
	Queues, Depth int

	Recover bool // the device ID with Mark, instead of adding one
	ID      int
	Mark    uint64
	DieAt   string // a step of Recover after which to die, or "report": in Start
	DieIn   int    // the answer to die with, instead of giving it
}

// heirSays is what a child says when it serves, or why it does not.
type heirSays struct {
	ID   int
	Mark uint64
	Left bool
	Err  string
}

// serve is the life of a server: it serves until SIGTERM, leaves at SIGUSR1 and
// breaks at SIGUSR2. When it has left, another SIGUSR1 makes it the next server.
func (o heirOrder) serve(say func(heirSays)) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2)
	h, err := newHeir(o.Dir, o.Conventional, o.ZoneSize)
	if err != nil {
		return err
	}
	h.die = o.DieIn
	cfg := Config{ID: -1, Queues: o.Queues, Depth: o.Depth, DataFD: int(h.file.Fd()), Recovery: true, Slot: h.slot(o.Depth)}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var d *Device
	switch {
	case o.DieAt == "report":
		d, err = Start(ctx, cfg, &diesReporting{heir: h})
	case o.DieAt != "":
		return o.die(ctx, cfg, h)
	case o.Recover:
		d, err = Recover(ctx, cfg, o.ID, o.Mark, h)
		h.mu.Lock()
		h.BeforeReturn.Add(h.fresh)
		h.mu.Unlock()
	default:
		d, err = Start(ctx, cfg, h)
	}
	if err != nil {
		return err
	}
	say(heirSays{ID: d.ID(), Mark: d.mark})
	for {
		select {
		case <-d.Done():
			return d.Wait()
		case s := <-signals:
			switch s {
			case syscall.SIGTERM:
				return d.Stop()
			case syscall.SIGUSR2:
				d.fail(errors.New("made up by the test"))
				return d.Wait()
			}
			if err := d.Leave(ctx); err != nil {
				return err
			}
			say(heirSays{ID: d.ID(), Mark: d.mark, Left: true})
			if <-signals == syscall.SIGUSR1 {
				return o.become(d.ID(), d.mark)
			}
			return nil // and nothing of the device's is touched
		}
	}
}

// become makes this process the next server, as another program.
func (o heirOrder) become(id int, mark uint64) error {
	o.Recover, o.ID, o.Mark = true, id, mark
	order, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if err := os.Setenv(heirEnv, string(order)); err != nil {
		return err
	}
	return syscall.Exec("/proc/self/exe", os.Args, os.Environ())
}

// die takes the steps of Recover up to one, and dies.
func (o heirOrder) die(ctx context.Context, cfg Config, h *heir) error {
	ctl, err := Open()
	if err != nil {
		return err
	}
	d := newDevice(cfg.withDefaults(), h, ctl, o.ID, o.Mark)
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"claim", func() error { return d.claim(ctx, cfg) }},
		{"between", func() error {
			if o.DieAt != "between" {
				return nil
			}
			runtime.LockOSThread()
			q := newQueue(d, 0)
			return errors.Join(q.open(), q.fetch())
		}},
		{"fetch", func() error { return d.startQueues(ctx) }},
		{"end", func() error { return ctl.endRecovery(ctx, o.ID, os.Getpid()) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		if step.name == o.DieAt {
			break
		}
	}
	return syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

const heirEnv = "UBLK_TEST_HEIR"

// TestMain makes a server of a child process.
func TestMain(m *testing.M) {
	order := os.Getenv(heirEnv)
	if order == "" {
		os.Exit(m.Run())
	}
	var o heirOrder
	say := json.NewEncoder(os.Stdout)
	err := json.Unmarshal([]byte(order), &o)
	if err == nil {
		err = o.serve(func(s heirSays) { say.Encode(s) })
	}
	if err != nil {
		say.Encode(heirSays{Err: err.Error()})
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
