// Package zonemodel is what a host-managed zoned block device is, in the
// plainest words: one condition and one write pointer per zone, two counters,
// no locks, no speed, nothing in flight. It shares no code with the program;
// whoever tests a device holds its answers against a [Model] and lets a
// [Driver] think of the next thing to do.
//
// Offsets and lengths are bytes. Errors are errnos, as a user of the block
// device gets them.
package zonemodel

import (
	"fmt"
	"syscall"

	"github.com/qzbd/qzbd/zns"
)

// Shape is what never changes about a device.
type Shape struct {
	Zones        int
	Conventional int   // the first N
	ZoneSize     int64 // a power of two
	Capacity     int64 // of a sequential zone
	MaxOpen      int   // 0: no limit
	MaxActive    int   // 0: no limit
	Block        int64 // logical block, and the granularity of writes
}

// Start is the first byte of zone i.
func (s Shape) Start(i int) int64 { return int64(i) * s.ZoneSize }

// Size is the size of the device.
func (s Shape) Size() int64 { return s.Start(s.Zones) }

// Sequential is the number of zones that have a write pointer.
func (s Shape) Sequential() int { return s.Zones - s.Conventional }

// Quirks are what devices do in different ways. The zero value is what NVMe
// ZNS says and qzbd does.
type Quirks struct {
	// AnyVictim: which implicitly open zone is closed to make room is not
	// known. Without it, it is the one that was used least recently.
	AnyVictim bool
	// ClosedNeedsActive: no zone is closed to make room while as many zones
	// are active as may be, although a closed zone does not need another
	// active one.
	ClosedNeedsActive bool
	// IdleClose: closing an empty or full zone succeeds and changes nothing.
	IdleClose bool
	// FullOpen: opening a full zone succeeds and changes nothing.
	FullOpen bool
	// FreeFinish: a zone that is not open is finished whatever is open.
	FreeFinish bool
}

// Kind is what an [Op] does.
type Kind int

// The operations of a device. Zeroes is a write of zeros.
const (
	Write Kind = iota
	Zeroes
	Open
	Close
	Finish
	Reset
	ResetAll
	Read
	Flush
)

func (k Kind) String() string {
	return [...]string{"write", "write-zeroes", "open", "close", "finish", "reset", "reset-all", "read", "flush"}[k]
}

// Op is one operation on one zone, or on the device.
type Op struct {
	Kind    Kind
	Zone    int
	At, Len int64  // inside the zone; of reads and writes
	Stamp   uint64 // what a write writes, not 0
	Sync    bool   // FUA
}

func (o Op) String() string {
	switch o.Kind {
	case Write, Zeroes, Read:
		return fmt.Sprintf("%v zone %d +%#x..%#x sync=%v", o.Kind, o.Zone, o.At, o.At+o.Len, o.Sync)
	case ResetAll, Flush:
		return o.Kind.String()
	}
	return fmt.Sprintf("%v zone %d", o.Kind, o.Zone)
}

// Unwritten is the stamp of what lies above the write pointer.
const Unwritten = ^uint64(0)

type zone struct {
	cond   zns.Cond
	wp     int64 // from the zone's start
	used   int   // when it was last written or opened
	runs   []run // of a sequential zone, in order
	blocks map[int64]uint64
}

// run is a piece of a zone with one stamp, from the end of the run before it.
type run struct {
	end   int64
	stamp uint64
}

// Model is a device.
type Model struct {
	Shape
	Quirks
	zones []zone
	clock int
	// unknown counts the implicitly open zones that were closed to make room
	// since the last report, if it is not known which.
	unknown int
}

// New makes a device with all sequential zones empty.
func New(s Shape, q Quirks) *Model {
	m := &Model{Shape: s, Quirks: q, zones: make([]zone, s.Zones)}
	for i := range m.zones {
		m.zones[i].cond = zns.CondEmpty
		if i < s.Conventional {
			m.zones[i] = zone{cond: zns.CondNotWP, blocks: map[int64]uint64{}}
		}
	}
	return m
}

// Cond is the condition of zone i.
func (m *Model) Cond(i int) zns.Cond { return m.zones[i].cond }

// WP is the write pointer of zone i from its start; of a full zone the
// capacity, of a conventional one 0.
func (m *Model) WP(i int) int64 { return m.zones[i].wp }

// Count is the number of zones of which f holds.
func (m *Model) Count(f func(zns.Cond) bool) (n int) {
	for i := range m.zones {
		if f(m.zones[i].cond) {
			n++
		}
	}
	return n
}

// Settled says whether the conditions of all zones are known. If not, Learn
// every zone.
func (m *Model) Settled() bool { return m.unknown == 0 }

// Learn takes the condition of an implicitly open zone that may have been
// closed to make room.
func (m *Model) Learn(i int, c zns.Cond) {
	if m.unknown > 0 && m.zones[i].cond == zns.CondImpOpen && c == zns.CondClosed {
		m.zones[i].cond = c
		m.unknown--
	}
}

// Apply does op and returns the errno that it ends with, 0 for success. A
// refused operation changes nothing.
func (m *Model) Apply(op Op) syscall.Errno {
	if op.Kind == ResetAll {
		for i := m.Conventional; i < m.Zones; i++ {
			m.zones[i].reset()
		}
		return 0
	}
	if op.Kind == Flush {
		return 0
	}
	z := &m.zones[op.Zone]
	conventional := z.cond == zns.CondNotWP
	switch op.Kind {
	case Read:
		return 0
	case Write, Zeroes:
		if conventional {
			z.overwrite(op, m.Block)
			return 0
		}
		return m.write(op)
	}
	if conventional {
		return syscall.EIO
	}
	switch op.Kind {
	case Open:
		return m.open(op.Zone)
	case Close:
		return m.close(z)
	case Finish:
		return m.finish(op.Zone)
	case Reset:
		z.reset()
		return 0
	}
	panic("zonemodel: unknown operation")
}

func (z *zone) overwrite(op Op, block int64) {
	for at := op.At; at < op.At+op.Len; at += block {
		z.blocks[at] = op.stamp()
	}
}

// stamp is what the operation leaves behind; 0 is zeros.
func (o Op) stamp() uint64 {
	if o.Kind == Zeroes {
		return 0
	}
	return o.Stamp
}

func (m *Model) write(op Op) syscall.Errno {
	z := &m.zones[op.Zone]
	if z.cond == zns.CondFull || op.At != z.wp || op.At+op.Len > m.Capacity {
		return syscall.EIO
	}
	m.use(z)
	if !z.cond.Open() {
		if e := m.room(z); e != 0 {
			return e
		}
		z.cond = zns.CondImpOpen
	}
	z.wp += op.Len
	z.runs = append(z.runs, run{z.wp, op.stamp()})
	if z.wp == m.Capacity {
		z.cond = zns.CondFull
	}
	return 0
}

func (m *Model) use(z *zone) {
	m.clock++
	z.used = m.clock
}

// room makes sure that z, which is not open, may be opened.
func (m *Model) room(z *zone) syscall.Errno {
	active := m.MaxActive != 0 && m.Count(zns.Cond.Active) >= m.MaxActive
	if active && !z.cond.Active() {
		return syscall.EOVERFLOW
	}
	if m.MaxOpen == 0 || m.Count(zns.Cond.Open) < m.MaxOpen {
		return 0
	}
	var victim *zone
	for i := range m.zones {
		if v := &m.zones[i]; v.cond == zns.CondImpOpen && (victim == nil || v.used < victim.used) {
			victim = v
		}
	}
	switch {
	case victim == nil || active && m.ClosedNeedsActive:
		return syscall.ETOOMANYREFS
	case m.AnyVictim:
		m.unknown++
	default:
		victim.cond = zns.CondClosed
	}
	return 0
}

func (m *Model) open(i int) syscall.Errno {
	z := &m.zones[i]
	if z.cond == zns.CondFull {
		if m.FullOpen {
			return 0
		}
		return syscall.EIO
	}
	m.use(z)
	if !z.cond.Open() {
		if e := m.room(z); e != 0 {
			return e
		}
	}
	z.cond = zns.CondExpOpen
	return 0
}

func (m *Model) close(z *zone) syscall.Errno {
	switch {
	case z.cond == zns.CondEmpty || z.cond == zns.CondFull:
		if m.IdleClose {
			return 0
		}
		return syscall.EIO
	case z.wp == 0:
		z.cond = zns.CondEmpty
	default:
		z.cond = zns.CondClosed
	}
	return 0
}

func (m *Model) finish(i int) syscall.Errno {
	z := &m.zones[i]
	if z.cond == zns.CondFull {
		return 0
	}
	if !z.cond.Open() && !m.FreeFinish {
		m.use(z)
		if e := m.room(z); e != 0 {
			return e
		}
	}
	z.cond, z.wp = zns.CondFull, m.Capacity
	z.runs = append(z.runs, run{z.wp, 0})
	return 0
}

func (z *zone) reset() { *z = zone{cond: zns.CondEmpty} }

// Content gives the stamp of each block of a range inside zone i: 0 for zeros,
// Unwritten above the write pointer.
func (m *Model) Content(i int, at, n int64) []uint64 {
	z := &m.zones[i]
	stamps := make([]uint64, 0, n/m.Block)
	k := 0
	for ; n > 0; at, n = at+m.Block, n-m.Block {
		if z.blocks != nil {
			stamps = append(stamps, z.blocks[at])
			continue
		}
		for k < len(z.runs) && z.runs[k].end <= at {
			k++
		}
		if k == len(z.runs) {
			stamps = append(stamps, Unwritten)
		} else {
			stamps = append(stamps, z.runs[k].stamp)
		}
	}
	return stamps
}
