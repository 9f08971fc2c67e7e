package zns

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var stormSeed = flag.Uint64("storm.seed", 0, "run the storms with this seed only")

// A storm is many hosts at once on one Device whose media is slow and fails.
// Nobody can say beforehand what comes out, but every sector says who wrote
// it, so afterwards the zones can be held against what was answered.
type storm struct {
	*rig
	mu  sync.Mutex
	rng *rand.Rand

	tick    atomic.Int64 // the order of begins and answers
	records []*record
	resets  [][]span // successful ones, per zone
	trace   []Cond
	stop    atomic.Bool
}

type span struct{ began, answered int64 }

// record is a write, append or write-zeroes that was made.
type record struct {
	span
	id   uint64 // 0: zeros
	zone uint32
	at   uint64
	n    uint64
	err  error
}

func TestAStormInVirtualTimeLeavesWhatWasAnswered(t *testing.T) {
	seeds(t, 15, func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) {
			s := newStorm(t, seed)
			s.m.pause = func(string) { time.Sleep(time.Duration(1 + s.n(1_000_000))) }
			s.run(150)
		})
	})
}

func TestAStormInRealTimeLeavesWhatWasAnswered(t *testing.T) {
	seeds(t, 4, func(t *testing.T, seed uint64) {
		s := newStorm(t, seed)
		s.m.pause = func(string) { runtime.Gosched() }
		s.run(400)
	})
}

func seeds(t *testing.T, n int, f func(*testing.T, uint64)) {
	if *stormSeed != 0 {
		f(t, *stormSeed)
		return
	}
	for range n {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("storm.seed=%d", seed), func(t *testing.T) { f(t, seed) })
	}
}

func newStorm(t *testing.T, seed uint64) *storm {
	rng := rand.New(rand.NewPCG(seed, 1))
	g := Geometry{ZoneSize: 64 * kib, ZoneCapacity: 512 * (16 + rng.Uint64N(113)), NrZones: 6, Conventional: 1, MaxAppend: 8 * kib}
	if rng.IntN(2) == 0 {
		g.MaxOpen, g.MaxActive = 2, 3
	}
	s := &storm{rig: newRig(t, g), rng: rng, resets: make([][]span, g.NrZones)}
	for i := range g.NrZones {
		s.trace = append(s.trace, s.d.Zone(i).Cond)
	}
	s.reopen(watchConds(s.changed))
	return s
}

// changed holds every change against the one before and against the limits.
// It is called in order.
func (s *storm) changed(i uint32, from, to Cond) {
	if s.trace[i] != from {
		s.Errorf("zone %d goes from %v to %v but was %v", i, from, to, s.trace[i])
	}
	s.trace[i] = to
	var open, active uint32
	for _, c := range s.trace {
		if c.Open() {
			open++
		}
		if c.Active() {
			active++
		}
	}
	if g := s.g; g.MaxOpen != 0 && (open > g.MaxOpen || active > g.MaxActive) {
		s.Errorf("%d open, %d active zones", open, active)
	}
}

func (s *storm) n(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.IntN(n)
}

func (s *storm) run(ops int) {
	quiet := s.n(3) == 0 // no resets: then flushes can be checked
	s.m.fail = func(what string) error {
		if what != "round" && what != "read" && s.n(25) == 0 {
			return errDisk
		}
		return nil
	}
	var hosts, observers sync.WaitGroup
	for range 8 {
		hosts.Go(func() {
			for range ops {
				s.write()
			}
		})
	}
	for range 2 {
		hosts.Go(func() {
			for range ops {
				s.readSome()
			}
		})
		hosts.Go(func() {
			for range ops / 4 {
				if quiet {
					s.flush()
				} else {
					s.disturb()
				}
			}
		})
	}
	observers.Go(func() {
		for !s.stop.Load() {
			s.report()
			s.m.pause("report")
		}
	})
	hosts.Wait()
	s.stop.Store(true)
	observers.Wait()
	s.settled()
}

func (s *storm) zone() uint32 {
	return s.g.Conventional + uint32(s.n(int(s.g.NrZones-s.g.Conventional)))
}

func (s *storm) write() {
	zone := s.zone()
	n := uint64(1+s.n(16)) * 512
	op := [...]Op{OpAppend, OpAppend, OpAppend, OpWrite, OpWriteZeroes}[s.n(5)]
	q := &Request{Op: op, Start: s.start(zone), Len: n, FUA: s.n(10) == 0}
	if op != OpAppend {
		if q.Start = s.d.Zone(zone).WP; s.g.ZoneOf(q.Start) != zone {
			return // full, and the pointer is in the next zone
		}
	}
	rec := &record{zone: zone, n: n}
	if op != OpWriteZeroes {
		s.mu.Lock()
		s.records = append(s.records, rec)
		rec.id = uint64(len(s.records))
		s.mu.Unlock()
	}
	data := make([]byte, n)
	if rec.id != 0 {
		stamp(data, rec)
	}
	began := s.tick.Add(1)
	err := Do(s.d, q, s.m, data)
	s.mu.Lock()
	defer s.mu.Unlock()
	rec.at, rec.err, rec.span = q.At-s.start(zone), err, span{began, s.tick.Add(1)}
	if rec.id == 0 {
		s.records = append(s.records, rec)
	}
	switch {
	case err == nil, errors.Is(err, errDisk), err == ErrAborted, err == ErrBoundary, err == ErrFull,
		err == ErrOpenLimit, err == ErrActiveLimit:
	case err == ErrNotAtWP && op != OpAppend, err == ErrInvalid && op != OpAppend:
	default:
		s.Errorf("%v in zone %d: %v", op, zone, err)
	}
}

// stamp marks every sector of rec's data.
func stamp(data []byte, rec *record) {
	for k := 0; k < len(data); k += 512 {
		for j := range 512 {
			data[k+j] = byte(rec.id)
		}
		binary.LittleEndian.PutUint64(data[k:], rec.id)
		binary.LittleEndian.PutUint64(data[k+8:], uint64(rec.zone))
		binary.LittleEndian.PutUint64(data[k+16:], uint64(k))
	}
}

func (s *storm) readSome() {
	zone := s.zone()
	at := uint64(s.n(128)) * 512
	n := uint64(1+s.n(int(128-at/512))) * 512
	p := s.read(zone, at, n)
	for k := 0; k < len(p); k += 512 {
		id := binary.LittleEndian.Uint64(p[k:])
		z := binary.LittleEndian.Uint64(p[k+8:])
		if id == 0 && z == 0 && p[k+511] == 0 {
			continue
		}
		if z != uint64(zone) || p[k+511] != byte(id) {
			s.Errorf("zone %d shows %x", zone, p[k:k+24])
		}
	}
}

func (s *storm) disturb() {
	zone := s.zone()
	op := [...]Op{OpReset, OpReset, OpFinish, OpOpen, OpOpen, OpClose, OpClose, OpFlush, OpResetAll}[s.n(9)]
	began := s.tick.Add(1)
	err := s.manage(op, zone)
	now := span{began, s.tick.Add(1)}
	switch {
	case err == nil, errors.Is(err, errDisk):
	case op == OpOpen && (err == ErrFull || err == ErrOpenLimit || err == ErrActiveLimit):
	case op == OpClose && err == ErrCond:
	case op == OpFinish && (err == ErrOpenLimit || err == ErrActiveLimit):
	default:
		s.Errorf("%v of zone %d: %v", op, zone, err)
	}
	if op != OpReset && op != OpResetAll || err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.resets {
		if uint32(i) == zone || op == OpResetAll {
			s.resets[i] = append(s.resets[i], now)
		}
	}
}

// flush checks I1 for what was visible before.
func (s *storm) flush() {
	var before []uint64
	for i := range s.g.NrZones {
		before = append(before, s.d.Zone(i).WP)
	}
	s.ok(s.manage(OpFlush, 0))
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	for i, wp := range before {
		if s.m.synced[i] < wp {
			s.Errorf("zone %d: %#x was reported, the flush after it made %#x durable", i, wp, s.m.synced[i])
		}
	}
}

// report checks what is true of every report entry at every instant.
func (s *storm) report() {
	for i := range s.g.NrZones {
		z := s.d.Zone(i)
		wp, bad := z.WP-z.Start, false
		switch z.Cond {
		case CondEmpty, CondNotWP:
			bad = wp != 0
		case CondFull:
			bad = wp != s.g.ZoneCapacity
		default:
			bad = wp >= s.g.ZoneCapacity
		}
		if bad {
			s.Errorf("zone %d reported as %+v", i, z)
		}
	}
}

// settled holds the zones against the records when all is over.
func (s *storm) settled() {
	s.report()
	s.counts()
	s.m.fail = nil
	for zone := s.g.Conventional; zone < s.g.NrZones; zone++ {
		z := s.d.Zone(zone)
		wp := z.WP - z.Start
		if s.m.Pointer(zone) != z.WP {
			s.Errorf("zone %d: reported %#x, staged %#x", zone, z.WP, s.m.Pointer(zone))
		}
		p := s.read(zone, 0, s.g.ZoneSize)
		there := map[uint64]bool{}
		for at := uint64(0); at < s.g.ZoneSize; {
			id := binary.LittleEndian.Uint64(p[at:])
			if id == 0 {
				at += 512
				continue
			}
			if at >= wp || id > uint64(len(s.records)) || there[id] {
				s.Fatalf("zone %d at %#x, pointer %#x: record %d", zone, at, wp, id)
			}
			rec := s.records[id-1]
			want := make([]byte, rec.n)
			stamp(want, rec)
			if rec.err != nil || rec.zone != zone || rec.at != at || string(want) != string(p[at:at+rec.n]) {
				s.Fatalf("zone %d at %#x: record %+v", zone, at, rec)
			}
			for _, reset := range s.resets[zone] {
				if rec.answered < reset.began {
					s.Errorf("zone %d: record %+v outlived the reset %+v", zone, rec, reset)
				}
			}
			there[id] = true
			at += rec.n
		}
		for _, rec := range s.records {
			last := int64(0)
			for _, reset := range s.resets[zone] {
				last = max(last, reset.answered)
			}
			if rec.zone != zone || rec.err != nil || rec.began < last {
				continue
			}
			if rec.at+rec.n > wp || rec.id != 0 && !there[rec.id] {
				s.Errorf("zone %d, pointer %#x, last reset %d: record %+v is lost", zone, wp, last, rec)
			}
		}
	}
}
