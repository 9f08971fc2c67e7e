package ublk

import (
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// counted are the statistics of a bench, by operation.
func (b *bench) counted() map[string]OperationStats {
	all := map[string]OperationStats{}
	for _, o := range (&Device{queues: []*queue{b.queue}}).Stats().Operations {
		all[o.Name] = o
	}
	return all
}

func (o OperationStats) failed(errno string) (n uint64) {
	for _, e := range o.Errors {
		if errno == "" || e.Errno == errno {
			n += e.Requests
		}
	}
	return n
}

func TestEveryOperationHasItsRow(t *testing.T) {
	var names []string
	for _, o := range (&Device{}).Stats().Operations {
		names = append(names, o.Name)
	}
	want := []string{"read", "write", "append", "write-zeroes", "flush", "reset", "reset-all", "open", "close", "finish", "report", "unknown"}
	if !slices.Equal(names, want) {
		t.Errorf("%v", names)
	}
	for i := range operations {
		if op := &operations[i]; op.serve != nil && want[op.stat] != op.name {
			t.Errorf("%s is counted as %s", op.name, want[op.stat])
		}
	}
	for _, e := range errnos {
		if statErrnos[classOf(e.errno)].errno != e.errno {
			t.Errorf("%v is not counted", e.errno)
		}
	}
}

func TestWhatIsAnsweredIsCounted(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib/2)
	b := newBench(t, x, x.file, 4, mib)
	x.block = make(chan struct{})
	begun := time.Now()
	b.now = b.dev.clock()
	b.give(3, opFlush, 0, 0) // waits in a worker
	b.do(opWrite, zoneS, 16)
	b.do(opWrite, zoneS+16, 8)
	b.do(opWrite, zoneS, 8) // not at the pointer
	b.do(opRead, zoneS, 16)
	b.do(opZoneAppend, 2*zoneS, 8)
	b.do(opWriteZeroes, zoneS+24, 16)
	b.do(opZoneReset, zoneS, 0)
	b.do(opReportZones, 0, 4)
	b.do(opDiscard, 0, 8)
	b.tellEvents()
	s := b.counted()
	for name, want := range map[string][3]uint64{ // requests, bytes, errors
		"read": {1, 8192}, "write": {3, 12288, 1}, "append": {1, 4096}, "write-zeroes": {1, 8192},
		"reset": {1}, "report": {1, 256}, "unknown": {1, 0, 1}, "flush": {}, "open": {}, "reset-all": {},
	} {
		o := s[name]
		if got := [3]uint64{o.Requests, o.Bytes, o.failed("")}; got != want {
			t.Errorf("%s: %d requests, %d bytes, %d errors, want %d", name, got[0], got[1], got[2], want)
		}
		if inFlight := map[string]uint64{"flush": 1}[name]; o.InFlight != inFlight {
			t.Errorf("%s: %d in flight, want %d", name, o.InFlight, inFlight)
		}
	}
	if s["write"].failed("EIO") != 1 || s["unknown"].failed("EOPNOTSUPP") != 1 {
		t.Error("an error is in the wrong class")
	}
	blocked := time.Since(begun)
	close(x.block)
	b.wait(3)
	o := b.counted()["flush"]
	if o.Requests != 1 || o.InFlight != 0 {
		t.Errorf("flush: %d requests, %d in flight", o.Requests, o.InFlight)
	}
	if got := o.Latency.Sum; got < blocked || got > time.Since(begun) {
		t.Errorf("a flush that waited %v took %v", blocked, got)
	}
}

func TestRequestsOfOneTurnTakeTime(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	b := newBench(t, x, x.file, 4, mib)
	b.now = b.dev.clock()
	b.do(opRead, 2*zoneS, zoneS) // a hole: answered at once
	b.tellEvents()
	if o := b.counted()["read"]; o.Requests != 1 || o.Latency.Sum <= 0 {
		t.Errorf("%d requests took %v", o.Requests, o.Latency.Sum)
	}
}

// Whoever reads the statistics sees each answer at most once, and needs nothing
// of the queue.
func TestStatisticsCanBeReadAtAnyTime(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	b := newBench(t, x, x.file, 4, mib)
	const n = 200
	var readers sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			last := uint64(0)
			for {
				o := b.counted()["write"]
				if o.Requests < last || o.InFlight > n || o.Bytes > n*4096 {
					t.Errorf("%d requests after %d, %d in flight, %d bytes", o.Requests, last, o.InFlight, o.Bytes)
				}
				last = o.Requests
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for i := range uint64(n) {
		b.do(opWrite, zoneS+8*i, 8)
	}
	b.tellEvents()
	close(done)
	readers.Wait()
	if o := b.counted()["write"]; o.Requests != n || o.Bytes != n*4096 || o.failed("") != 0 {
		t.Errorf("%+v", o)
	}
}

func TestAnErrorIsLoggedWithItsRequest(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	b := newBench(t, x, x.file, 4, mib)
	core, logs := observer.New(zapcore.InfoLevel)
	b.dev.log = zap.New(core)
	for range logBurst + 5 {
		b.do(opWrite, 2*zoneS+64, 8)
	}
	b.tellEvents()
	lines := logs.TakeAll()
	if len(lines) != logBurst {
		t.Fatalf("%d lines", len(lines))
	}
	got := lines[0].ContextMap()
	for name, want := range map[string]any{"op": "write", "zone": uint32(2), "sector": uint64(2*zoneS + 64), "bytes": uint64(4096), "errno": "EIO"} {
		if fmt.Sprint(got[name]) != fmt.Sprint(want) {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	b.dev.refused.since = b.dev.refused.since.Add(-time.Second)
	b.do(opWrite, 2*zoneS+64, 8)
	b.tellEvents()
	if lines := logs.TakeAll(); len(lines) != 1 || lines[0].ContextMap()["unlogged"] != int64(5) {
		t.Errorf("%v", lines)
	}
}

func TestEventsAllocateNothing(t *testing.T) {
	b, _ := hot(t)
	r := &b.tags[0]
	r.op = &operations[opWrite]
	r.Len = 4096
	if n := testing.AllocsPerRun(1000, func() {
		for range 3 * cap(b.events) {
			b.ended(r, 4096, 0)
		}
		b.ended(r, -int32(syscall.EIO), 0)
		b.tellEvents()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkEvent is what a request pays for being counted, in turns that answer
// one and in turns that answer many.
func BenchmarkEvent(b *testing.B) {
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprintf("turn=%d", n), func(b *testing.B) {
			q, _ := hot(b)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if i%n == 0 {
					q.tellEvents()
					q.now = q.dev.clock()
				}
				r := &q.tags[i%len(q.tags)]
				r.op, r.Len, r.arrived = &operations[opWrite], 4096, q.now
				q.stats[r.op.stat].begun.add(1)
				q.ended(r, 4096, 0)
			}
		})
	}
}
