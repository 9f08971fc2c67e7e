package ublk

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/qzbd/qzbd/zns"
)

// sent lists what a generator makes of w, with nothing in flight.
func sent(x *toy, w Workload) (all []ioDesc) {
	m := newGenerator(w, x)
	for {
		d, ok := m.next(0)
		if !ok {
			return all
		}
		all = append(all, d)
	}
}

func TestAWorkloadIsWhatQEMUWouldSendAndZonesAllow(t *testing.T) {
	const k = 2 // sectors
	read := func(start sector, n uint32) ioDesc { return ioDesc{OpFlags: opRead, StartSector: start, NrSectors: n} }
	write := func(start sector, n uint32) ioDesc { return ioDesc{OpFlags: opWrite, StartSector: start, NrSectors: n} }
	reset := func(start sector) ioDesc { return ioDesc{OpFlags: opZoneReset, StartSector: start} }
	flush := ioDesc{OpFlags: opFlush, StartSector: noSector}
	const kib = 1 << 10
	for _, c := range []struct {
		what string
		w    Workload
		want []ioDesc
	}{
		{"reads go round", Workload{Size: 8 * kib, Count: 3, Offset: 48 * kib, Step: 8 * kib},
			[]ioDesc{read(48*k, 8*k), read(56*k, 8*k), read(0, 8*k)}},
		{"a read ends where its zone ends", Workload{Size: 12 * kib, Count: 2, Offset: 8 * kib, Step: 12 * kib},
			[]ioDesc{read(4*k, 12*k), read(20*k, 12*k)}},
		{"conventional zones are written anywhere", Workload{Write: true, Size: 4 * kib, Count: 2, Offset: 4 * kib, Step: 4 * kib},
			[]ioDesc{write(4*k, 4*k), write(8*k, 4*k)}},
		{"sequential ones at their pointers, wherever in the zone",
			Workload{Write: true, Size: 4 * kib, Count: 4, Offset: 28 * kib, Step: 4 * kib},
			[]ioDesc{write(16*k, 4*k), write(32*k, 4*k), write(36*k, 4*k), write(40*k, 4*k)}},
		{"and are reset when there is no room: the capacity is 12K",
			Workload{Write: true, Size: 8 * kib, Count: 3, Offset: 16 * kib, Step: 0},
			[]ioDesc{write(16*k, 8*k), reset(16 * k), write(16*k, 8*k), reset(16 * k), write(16*k, 8*k)}},
		{"a zone that was written goes on", Workload{Write: true, Size: 4 * kib, Count: 2, Offset: 48 * kib},
			[]ioDesc{write(56*k, 4*k), reset(48 * k), write(48*k, 4*k)}},
		{"flushes come between", Workload{Write: true, Size: 4 * kib, Count: 4, FlushInterval: 2},
			[]ioDesc{write(0, 4*k), write(0, 4*k), flush, write(0, 4*k), write(0, 4*k), flush}},
	} {
		x := newToy(t, 4, 1, 16*kib, 12*kib)
		x.zones[3].WP += 8 * kib
		x.zones[3].done = x.zones[3].WP
		if have := sent(x, c.w); !slices.Equal(have, c.want) {
			t.Errorf("%s:\n%v, want\n%v", c.what, have, c.want)
		}
	}
}

func TestAStepLongerThanTheDeviceGoesRound(t *testing.T) {
	x := newToy(t, 3, 1, 16<<10, 16<<10)
	const step = 1<<64 - 512 // 16K - 512 beyond a multiple of 48K
	have := sent(x, Workload{Size: 512, Count: 2, Offset: 1 << 10, Step: step})
	if len(have) != 2 || have[1].StartSector != (1<<10+16<<10-512)/512 {
		t.Errorf("%v", have)
	}
}

func TestFlushesAndResetsAreSentAlone(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	m := newGenerator(Workload{Write: true, Size: mib, Count: 3, Offset: mib, FlushInterval: 2}, x)
	for i, step := range []struct {
		inflight int
		op       uint32
		ok       bool
	}{
		{0, opWrite, true},
		{1, 0, false}, // the reset waits
		{0, opZoneReset, true},
		{1, 0, false},
		{0, opWrite, true},
		{1, 0, false}, // the flush waits
		{0, opFlush, true},
		{1, 0, false},
		{0, opZoneReset, true},
		{0, opWrite, true},
		{0, 0, false},
	} {
		if d, ok := m.next(step.inflight); ok != step.ok || d.OpFlags != step.op {
			t.Fatalf("step %d: %v, %v, want %+v", i, d, ok, step)
		}
	}
}

func TestBenchDoesItsWorkload(t *testing.T) {
	for _, depth := range []int{1, 7, 64} {
		x := newToy(t, 4, 1, mib, mib-64<<10)
		w := Workload{Write: true, Size: 64 << 10, Count: 100, Step: 64 << 10, FlushInterval: 10, Pattern: 0xa5}
		cfg := Config{DataFD: int(x.file.Fd()), Depth: depth}
		res, err := Bench(t.Context(), cfg, x, w)
		if err != nil {
			t.Fatal(err)
		}
		// 16 offsets per zone and 15 places: each zone is reset whenever it
		// comes round.
		if res.Requests != 100 || res.Flushes != 10 || int(res.Resets) != x.calls[zns.OpReset] || res.Resets < 3 || res.Wall <= 0 {
			t.Errorf("depth %d: %+v, %v", depth, res, x.calls)
		}
		have := make([]byte, mib)
		if _, err := x.file.ReadAt(have, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(have, bytes.Repeat([]byte{0xa5}, mib)) {
			t.Errorf("depth %d: the pattern is not in the file", depth)
		}
		w = Workload{Size: 4 << 10, Count: 5000, Step: 4 << 10}
		if res, err = Bench(t.Context(), cfg, x, w); err != nil || res.Requests != 5000 || res.Flushes+res.Resets != 0 {
			t.Errorf("depth %d, reads: %+v, %v", depth, res, err)
		}
	}
}

// failing refuses one write.
type failing struct {
	*toy
	at uint64
}

func (f failing) Begin(r *zns.Request) zns.Step {
	if r.Op == zns.OpWrite && r.Start == f.at {
		return refuse(r, zns.ErrActiveLimit)
	}
	return f.toy.Begin(r)
}

func TestBenchEndsWithTheFirstErrorAndNothingInFlight(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	f := failing{x, 3*mib + 4096}
	_, err := Bench(t.Context(), Config{DataFD: int(x.file.Fd()), Depth: 16}, f,
		Workload{Write: true, Size: 4096, Count: 100000, Offset: 2 * mib, Step: 4096})
	if !errors.Is(err, zns.ErrActiveLimit) || !strings.HasPrefix(err.Error(), "write of 4096 bytes at 3149824: ") {
		t.Errorf("got %v", err)
	}
	for i := range x.zones {
		if x.zones[i].busy != 0 {
			t.Errorf("zone %d has %d writes in flight", i, x.zones[i].busy)
		}
	}
}

func TestBenchEndsWithItsContext(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	res, err := Bench(ctx, Config{DataFD: int(x.file.Fd())}, x, Workload{Write: true, Size: 4096, Count: 1 << 60})
	if !errors.Is(err, why) || res.Requests != 0 || x.calls[zns.OpWrite] != 0 {
		t.Errorf("%+v, %v, %v", res, err, x.calls)
	}
}

// counting ends the context with a certain request.
type counting struct {
	*toy
	left int
	end  func()
}

func (c *counting) Begin(r *zns.Request) zns.Step {
	if c.left--; c.left == 0 {
		c.end()
	}
	return c.toy.Begin(r)
}

func TestBenchSaysWhatItDidBeforeItsContextEnded(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	x := newToy(t, 4, 1, mib, mib)
	c := &counting{x, 500, cancel}
	res, err := Bench(ctx, Config{DataFD: int(x.file.Fd()), Depth: 4}, c, Workload{Size: 4096, Step: 4096, Count: 1 << 60})
	if !errors.Is(err, context.Canceled) || res.Requests < 500 || res.Wall <= 0 {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestBenchCountsReadsThatNeedNoFile(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	if err := x.file.Truncate(4 * mib); err != nil {
		t.Fatal(err)
	}
	z := x.zones[2:3]
	z[0].WP += mib / 2
	z[0].done = z[0].WP
	// The conventional zone is never a hole, of the third half is one.
	res, err := Bench(t.Context(), Config{DataFD: int(x.file.Fd()), Depth: 4}, x, Workload{Size: 64 << 10, Step: 64 << 10, Count: 64})
	if err != nil || res.Requests != 64 || res.Unwritten != 16+8+16 {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestBenchTakesOnlyTheMemoryThatItNeeds asks for more at the same time than there
// ever is, and then for more than may be.
func TestBenchTakesOnlyTheMemoryThatItNeeds(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	w := Workload{Size: mib, Count: 2, Step: mib}
	cfg := Config{DataFD: int(x.file.Fd()), Depth: maxBenchMemory / mib}
	if r, err := Bench(t.Context(), cfg, x, w); err != nil || r.Requests != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	cfg.Depth++
	if _, err := Bench(t.Context(), cfg, x, w); err == nil || !strings.Contains(err.Error(), "fewer or smaller") {
		t.Errorf("%d requests of 1 MiB at the same time: %v", cfg.Depth, err)
	}
}

func TestAWorkloadThatCannotBeIsRefused(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib/2)
	for _, c := range []struct {
		w    Workload
		want string
	}{
		{Workload{Count: 1}, "requests of 0 bytes"},
		{Workload{Size: 1000, Count: 1}, "a multiple of the block size 512 up to 524288"},
		{Workload{Size: mib, Count: 1}, "requests of 1048576 bytes"},
		{Workload{Size: 4096}, "0 requests"},
		{Workload{Size: 4096, Count: 1, Offset: 4 * mib}, "the offset 4194304"},
		{Workload{Size: 4096, Count: 1, Offset: 5}, "the offset 5"},
		{Workload{Size: 4096, Count: 1, Step: 5}, "the step 5"},
		{Workload{Size: 4096, Count: 1, FlushInterval: 5}, "a flush every 5 requests"},
	} {
		if _, err := Bench(t.Context(), Config{DataFD: int(x.file.Fd())}, x, c.w); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.w, err, c.want)
		}
	}
	_, err := Bench(t.Context(), Config{DataFD: int(x.file.Fd()), Depth: 5000}, x, Workload{Size: 4096, Count: 1})
	if err == nil || !strings.Contains(err.Error(), "a queue depth of 5000") {
		t.Errorf("got %v", err)
	}
}
