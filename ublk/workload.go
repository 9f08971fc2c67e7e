package ublk

import (
	"errors"
	"fmt"

	"github.com/qzbd/qzbd/zns"
)

// Workload is what Bench asks of a target, in the words of qemu-img bench. Sizes
// and offsets are bytes, multiples of the target's blocks.
//
// The first request is at Offset, each further one Step behind the one before
// it, and behind the end of the device it goes on from the start. Where a request
// would cross the end of a zone, it ends there. A write to a sequential zone goes
// to that zone's write pointer instead; if there is no room for it any more, the
// zone is reset first.
type Workload struct {
	Write  bool // else read
	Size   int  // of each request
	Count  uint64
	Offset uint64
	Step   uint64
	// FlushInterval is after how many writes a flush comes; 0: never.
	FlushInterval uint64
	// Pattern is what every byte written is.
	Pattern byte
}

// maxBenchMemory bounds the buffers of a Bench.
const maxBenchMemory = 1 << 30

// maxIO is the length of a buffer for one of the requests.
func (w Workload) maxIO() int { return roundup(w.Size, minTransfer) }

// Check says in one sentence what no requests to a device of geometry g could be
// made of, depth at a time.
func (w Workload) Check(g zns.Geometry, depth int) error {
	bs := uint64(g.BlockSize)
	largest := min(maxIOBuf, g.ZoneCapacity)
	switch {
	case w.Size <= 0 || uint64(w.Size)%bs != 0 || uint64(w.Size) > largest:
		return fmt.Errorf("requests of %d bytes are impossible: use a multiple of the block size %d up to %d", w.Size, bs, largest)
	case w.Count == 0:
		return errors.New("0 requests are nothing to measure: use at least 1")
	case w.Offset%bs != 0 || w.Offset >= g.Size:
		return fmt.Errorf("the offset %d is impossible: use a multiple of the block size %d below the device's %d bytes", w.Offset, bs, g.Size)
	case w.Step%bs != 0:
		return fmt.Errorf("the step %d is impossible: use a multiple of the block size %d", w.Step, bs)
	case w.FlushInterval != 0 && !w.Write:
		return fmt.Errorf("a flush every %d requests makes sense with writes only", w.FlushInterval)
	case depth*w.maxIO() > maxBenchMemory:
		return fmt.Errorf("%d requests of %d bytes at the same time take %d bytes of memory: use fewer or smaller ones, at most %d together", depth, w.Size, depth*w.maxIO(), maxBenchMemory)
	}
	return nil
}

// generator makes a Workload's requests, one after the other, as the kernel
// would describe them.
type generator struct {
	Workload
	g    zns.Geometry
	op   uint32
	at   uint64   // of the next request
	wps  []uint64 // where the next write of a sequential zone goes, from its start
	sent uint64

	alone  bool   // the last one was a flush or a reset: it has to be over first
	synced uint64 // of those sent, what the last flush came after
	// Flushes and resets sent.
	flushes, resets uint64
}

func newGenerator(w Workload, target Target) *generator {
	m := &generator{Workload: w, g: target.Geometry(), op: opRead, at: w.Offset}
	m.Step %= m.g.Size
	if w.Write {
		m.op = opWrite
		m.wps = make([]uint64, m.g.NrZones)
		for i := range m.wps {
			z := target.Zone(uint32(i))
			m.wps[i] = z.WP - z.Start
		}
	}
	return m
}

// next returns the next request; ok is false if there is none, or none before
// the inflight ones are over: flushes and resets are sent alone.
func (m *generator) next(inflight int) (d ioDesc, ok bool) {
	if m.alone && inflight > 0 {
		return d, false
	}
	m.alone = false
	if n := m.FlushInterval; n != 0 && m.sent-m.synced == n {
		if inflight > 0 {
			return d, false
		}
		m.alone, m.synced = true, m.sent
		m.flushes++
		return ioDesc{OpFlags: opFlush, StartSector: noSector}, true
	}
	if m.sent == m.Count {
		return d, false
	}
	zone, size := m.g.ZoneOf(m.at), uint64(m.Size)
	start := uint64(zone) * m.g.ZoneSize
	at := min(m.at, start+m.g.ZoneSize-size)
	if m.Write && zone >= m.g.Conventional {
		wp := &m.wps[zone]
		if *wp+size > m.g.ZoneCapacity {
			if inflight > 0 {
				return d, false
			}
			m.alone, *wp = true, 0
			m.resets++
			return ioDesc{OpFlags: opZoneReset, StartSector: sectorsOf(start)}, true
		}
		at = start + *wp
		*wp += size
	}
	m.at = (m.at + m.Step) % m.g.Size
	m.sent++
	return ioDesc{OpFlags: m.op, StartSector: sectorsOf(at), NrSectors: uint32(sectorsOf(size))}, true
}
