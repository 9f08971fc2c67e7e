package zns

import (
	"slices"
	"sync"
	"sync/atomic"
)

// limits counts open and active zones and knows which of the open ones may be
// closed to make room.
//
// Every change of a condition happens with mu held, and only the condition:
// the write pointer beside it in the zone's word belongs to zone.mu. That is what
// makes eviction possible without a lock order inversion. Whoever opens zone A
// holds A's zone.mu and closes a victim B under limits.mu alone; B's zone.mu
// is not needed, because closing an implicitly open zone touches neither its
// pointer nor its reservations: those in flight simply end in a closed zone.
// A writer of B that has just seen it open is ordered before the eviction.
type limits struct {
	zones     []zone // of the Device
	words     words  // of the Device
	maxOpen   uint32 // 0: no limit
	maxActive uint32 // 0: no limit
	shift     uint
	watch     func(Event) // nil: nobody; called with mu held

	mu       sync.Mutex // order 2, innermost
	open     uint32
	active   uint32
	implicit []uint32 // implicitly open zones, in no order; kept only if maxOpen != 0

	// clock is the stamp of the most recently used zone. Stamps wrap: see victim.
	clock atomic.Uint32
}

// touch makes zone z the most recently used one. Repeated use of one zone, the
// common case, is two loads. z.mu is held.
func (l *limits) touch(z *zone) {
	if l.maxOpen == 0 || z.used.Load() == l.clock.Load() {
		return
	}
	z.used.Store(l.clock.Add(1))
}

// apply takes zone i through ev: next condition, limits, counters. Refused, it
// has changed nothing. The zone's mu is held.
//
// A zone that becomes active needs one of the active zones (ErrActiveLimit;
// closing another one would not help, closed is active). A zone that becomes
// open needs one of the open ones and takes it from the least recently used
// implicitly open zone (ErrOpenLimit if all are explicitly open).
func (l *limits) apply(i uint32, ev event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := l.words.load(i).cond()
	to, err := next(from, ev)
	if err != nil {
		return err
	}
	if to.Active() && !from.Active() && l.maxActive != 0 && l.active >= l.maxActive {
		return ErrActiveLimit
	}
	if to.Open() && !from.Open() && l.maxOpen != 0 && l.open >= l.maxOpen {
		if len(l.implicit) == 0 {
			return ErrOpenLimit
		}
		v := l.victim()
		l.move(v, CondImpOpen, CondClosed, l.words.load(v).wp())
		l.words.setCond(v, CondClosed)
	}
	l.move(i, from, to, l.words.load(i).wp())
	l.words.setCond(i, to)
	return nil
}

// applyAt is apply for the events that move the write pointer too, evFill,
// evFinish and evReset: wp is in bytes from the zone's start. They never need
// room. The zone's mu is held.
func (l *limits) applyAt(i uint32, ev event, wp uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := l.words.load(i).cond()
	to, err := next(from, ev)
	if err != nil || to.Active() {
		panic("zns: no such transition: " + from.String())
	}
	l.move(i, from, to, wp)
	l.words.set(i, to, wp)
}

// move is the only place where the counters and the set of implicitly open
// zones change. The caller stores the condition, alone or together with the
// pointer, which is wp now, so that no report sees one without the other. mu is
// held.
func (l *limits) move(i uint32, from, to Cond, wp uint64) {
	if from == to {
		return
	}
	count(&l.open, from.Open(), to.Open())
	count(&l.active, from.Active(), to.Active())
	if l.maxOpen != 0 {
		if from == CondImpOpen {
			k, last := slices.Index(l.implicit, i), len(l.implicit)-1
			l.implicit[k] = l.implicit[last]
			l.implicit = l.implicit[:last]
		}
		if to == CondImpOpen {
			l.implicit = append(l.implicit, i)
		}
	}
	if l.watch != nil {
		l.event(i, from, to, wp)
	}
}

// event tells who watches. mu is held.
func (l *limits) event(i uint32, from, to Cond, wp uint64) {
	l.watch(Event{i, from, to, uint64(i)<<l.shift + wp, l.open, l.active})
}

// moved tells who watches that the pointer of zone i alone is wp now. The
// zone's mu is held.
func (l *limits) moved(i uint32, wp uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.words.load(i).cond()
	l.event(i, c, c, wp)
}

// adopt counts zone i, which is in condition c from the beginning.
func (l *limits) adopt(i uint32, c Cond) {
	count(&l.open, false, c.Open())
	count(&l.active, false, c.Active())
	if l.maxOpen != 0 && c == CondImpOpen {
		l.implicit = append(l.implicit, i)
	}
}

func count(n *uint32, was, is bool) {
	switch {
	case is && !was:
		*n++
	case was && !is:
		*n--
	}
}

// victim returns the least recently used implicitly open zone. There is one.
// Its cost follows max_open_zones, and it is paid once per zone opened at the
// limit. A zone that has not been used while others took turns 2^31 times looks
// as if it had been: that costs it its place later, and nothing else. mu is held.
func (l *limits) victim() uint32 {
	v := l.implicit[0]
	for _, i := range l.implicit[1:] {
		if int32(l.zones[i].used.Load()-l.zones[v].used.Load()) < 0 {
			v = i
		}
	}
	return v
}
