package sim

import (
	"errors"
	"fmt"
	"slices"

	"github.com/qzbd/qzbd/zns"
)

// This file answers one question: is there an order of events in which the
// plainest device there is gives the answers that were heard? An operation is
// one or two events between its beginning and its answer: a write takes its
// range and later ends, a finish opens its zone and later fills it, everything
// else is one event.

// What a history has at most, so that a state has a fixed size and can be
// compared.
const (
	maxZones   = 4
	maxSectors = 24
	maxClients = 7
)

var (
	errData  = errors.New("the data was not written")
	errSpace = errors.New("no space for the mapping")
	errSync  = errors.New("the round failed")
)

// op is one operation of a client, and what it heard.
type op struct {
	client, zone int
	what         zns.Op
	watch        watch // instead of what
	id           uint16
	at, n        int // sectors from the zone's start
	err          error
	data         []uint16 // of a read
	seen         zns.Zone // of a report
	open, active uint32   // of a count
	first, last  int      // when it began and was answered
}

// watch is something that asks and changes nothing.
type watch uint8

const (
	nothing watch = iota
	report
	counts
)

func (o *op) String() string {
	name := fmt.Sprintf("%v zone %d", o.what, o.zone)
	switch o.watch {
	case report:
		name = fmt.Sprintf("report zone %d: %v at %d", o.zone, o.seen.Cond, (o.seen.WP-o.seen.Start)/512)
	case counts:
		name = fmt.Sprintf("count: %d open, %d active", o.open, o.active)
	}
	return fmt.Sprintf("[%d,%d] client %d #%d %s at %d, %d sectors: %v", o.first, o.last, o.client, o.id, name, o.at, o.n, o.err)
}

// wrote says that the operation had a range.
func (o *op) wrote() bool {
	return o.err == nil || errors.Is(o.err, errData) || errors.Is(o.err, errSpace) ||
		errors.Is(o.err, errSync) || errors.Is(o.err, zns.ErrAborted)
}

// mayChange says that the operation may have changed something.
func (o *op) mayChange() bool {
	return o.watch == nothing && o.what != zns.OpRead && o.what != zns.OpFlush && o.wrote()
}

// reserved is a write in flight.
type reserved struct {
	client uint8
	n      uint8
	ended  bool
	failed bool
	above  bool // of one that failed
	opened bool
}

type lineZone struct {
	cond zns.Cond
	wp   uint8
	used uint8 // rank: higher is more recent
	busy uint8 // a finish is under way, by client busy-1
	n    uint8 // in flight
	list [maxClients]reserved
	data [maxSectors]uint16
}

// line is a state of the plain device and of the operations in flight.
type line struct {
	zones [maxZones]lineZone
	stage [maxClients]uint8 // of each client's operation
}

const done = 255 // the stage of an operation that can be answered

// teller tries the orders of events of one history.
type teller struct {
	g        zns.Geometry
	capacity uint8
	ops      [maxClients]*op // in flight
	lines    map[line]struct{}
	most     int
}

func newTeller(g zns.Geometry, dev *zns.Device) *teller {
	t := &teller{g: g, capacity: uint8(g.ZoneCapacity / 512), lines: map[line]struct{}{}}
	var l line
	for i := range g.NrZones {
		z := dev.Zone(i)
		l.zones[i] = lineZone{cond: z.Cond, used: uint8(i)}
	}
	t.lines[l] = struct{}{}
	return t
}

// begin puts an operation in flight.
func (t *teller) begin(o *op) {
	t.ops[o.client] = o
	next := make(map[line]struct{}, len(t.lines))
	for l := range t.lines {
		l.stage[o.client] = 0
		t.observe(&l)
		next[l] = struct{}{}
	}
	t.lines = next
}

// observe lets those operations happen that can change nothing: there is never a
// reason to wait with them.
func (t *teller) observe(l *line) {
	for c, o := range t.ops {
		if o == nil || l.stage[c] != 0 || o.mayChange() {
			continue
		}
		m := *l
		if t.event(&m, o, 0) && m.stage[c] == done && m.zones == l.zones {
			l.stage[c] = done
		}
	}
}

// answer keeps the states in which the client's operation can have been
// answered as it was, after any events of those in flight.
func (t *teller) answer(o *op) error {
	seen := t.lines
	todo := make([]line, 0, len(seen))
	for l := range seen {
		todo = append(todo, l)
	}
	next := map[line]struct{}{}
	for len(todo) > 0 {
		l := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if l.stage[o.client] == done {
			next[l] = struct{}{}
			continue // later events can wait for later answers
		}
		for c, p := range t.ops {
			if p == nil || l.stage[c] == done {
				continue
			}
			for i := range t.choices(p) {
				m := l
				if !t.event(&m, p, i) {
					continue
				}
				t.observe(&m)
				if _, known := seen[m]; !known {
					seen[m] = struct{}{}
					todo = append(todo, m)
				}
			}
		}
	}
	t.most = max(t.most, len(seen))
	t.ops[o.client] = nil
	if len(next) == 0 {
		return fmt.Errorf("no order of events explains %v", o)
	}
	t.lines = map[line]struct{}{}
	for l := range next {
		l.stage[o.client] = 0
		t.lines[l] = struct{}{}
	}
	return nil
}

// shut says that newcomers have to wait: for a failure to drain, or for a
// finish.
func (z *lineZone) shut() bool {
	return z.busy != 0 || slices.ContainsFunc(z.list[:z.n], func(r reserved) bool { return r.failed || r.above })
}

func (z *lineZone) reserved() uint8 {
	n := z.wp
	for _, r := range z.list[:z.n] {
		n += r.n
	}
	return n
}

// choices says how many events an operation has whose order is its own.
func (t *teller) choices(o *op) int {
	if o.watch == nothing && o.what == zns.OpResetAll {
		return int(t.g.NrZones)
	}
	return 1
}

// event lets the next event of an operation happen, or the i-th one, if it can
// and if it goes with the answer.
func (t *teller) event(l *line, o *op, i int) bool {
	z := &l.zones[o.zone]
	switch o.watch {
	case report:
		l.stage[o.client] = done
		wp := z.wp
		return z.cond == o.seen.Cond && uint64(wp)*512 == o.seen.WP-o.seen.Start
	case counts:
		l.stage[o.client] = done
		open, active := t.count(l)
		return open == o.open && active == o.active
	}
	switch o.what {
	case zns.OpFlush:
		l.stage[o.client] = done
		return true
	case zns.OpRead:
		l.stage[o.client] = done
		return z.busy == 0 && slices.Equal(z.data[o.at:o.at+o.n], o.data)
	case zns.OpWrite, zns.OpAppend, zns.OpWriteZeroes:
		if l.stage[o.client] == 0 {
			return t.take(l, o)
		}
		return t.end(l, o)
	case zns.OpOpen, zns.OpClose:
		l.stage[o.client] = done
		return !z.shut() && errors.Is(t.openClose(l, o), o.err)
	case zns.OpReset:
		l.stage[o.client] = done
		return t.reset(z, o.err)
	case zns.OpResetAll:
		return t.resetAll(l, o, i)
	case zns.OpFinish:
		return t.finish(l, o)
	}
	return false
}

func (t *teller) count(l *line) (open, active uint32) {
	for i := range l.zones[:t.g.NrZones] {
		if l.zones[i].cond.Open() {
			open++
		}
		if l.zones[i].cond.Active() {
			active++
		}
	}
	return open, active
}

// use makes zone i the most recently used one.
func (l *line) use(i, zones int) {
	for k := range zones {
		if l.zones[k].used > l.zones[i].used {
			l.zones[k].used--
		}
	}
	l.zones[i].used = uint8(zones - 1)
}

// room gives zone i a condition that is open, if the limits allow that.
func (t *teller) room(l *line, i int, c zns.Cond) error {
	z := &l.zones[i]
	open, active := t.count(l)
	if !z.cond.Active() && t.g.MaxActive != 0 && active >= t.g.MaxActive {
		return zns.ErrActiveLimit
	}
	if !z.cond.Open() && t.g.MaxOpen != 0 && open >= t.g.MaxOpen {
		var oldest *lineZone
		for k := range l.zones[:t.g.NrZones] {
			if v := &l.zones[k]; v.cond == zns.CondImpOpen && (oldest == nil || v.used < oldest.used) {
				oldest = v
			}
		}
		if oldest == nil {
			return zns.ErrOpenLimit
		}
		oldest.cond = zns.CondClosed
	}
	z.cond = c
	l.use(i, int(t.g.NrZones))
	return nil
}

// take is the first event of a write: it gets its range or is refused.
func (t *teller) take(l *line, o *op) bool {
	z := &l.zones[o.zone]
	if z.shut() {
		return false
	}
	wp := z.reserved()
	var err error
	switch {
	case z.cond == zns.CondFull, wp == t.capacity:
		err = zns.ErrFull
	case o.what != zns.OpAppend && o.at != int(wp):
		err = zns.ErrNotAtWP
	case o.n > int(t.capacity-wp):
		err = zns.ErrBoundary
	}
	opened := false
	if err == nil {
		if z.cond.Open() {
			l.use(o.zone, int(t.g.NrZones))
		} else {
			err, opened = t.room(l, o.zone, zns.CondImpOpen), true
		}
	}
	if err != nil {
		l.stage[o.client] = done
		return !o.wrote() && errors.Is(o.err, err)
	}
	if !o.wrote() || o.at != int(wp) {
		return false
	}
	z.list[z.n] = reserved{client: uint8(o.client), n: uint8(o.n), opened: opened}
	z.n++
	l.stage[o.client] = 1
	return true
}

// end is the second event of a write. All that can leave the zone's list do,
// in order.
func (t *teller) end(l *line, o *op) bool {
	z := &l.zones[o.zone]
	k := slices.IndexFunc(z.list[:z.n], func(r reserved) bool { return int(r.client) == o.client })
	if z.list[k].ended {
		return false
	}
	z.list[k].ended = true
	if (errors.Is(o.err, errData) || errors.Is(o.err, errSpace)) && !z.list[k].above {
		z.list[k].failed = true
		for i := k + 1; i < int(z.n); i++ {
			z.list[i].above = true
		}
	}
	opened, last := false, reserved{}
	for z.n > 0 && z.list[0].ended {
		last = z.list[0]
		copy(z.list[:], z.list[1:z.n])
		z.n--
		z.list[z.n] = reserved{}
		p := t.ops[last.client]
		l.stage[last.client] = done
		bad := last.failed || last.above
		switch { // the answer must be this one
		case last.above && !errors.Is(p.err, zns.ErrAborted),
			last.failed && !last.above && !errors.Is(p.err, errData) && !errors.Is(p.err, errSpace),
			!bad && p.err != nil && !errors.Is(p.err, errSync):
			return false
		}
		if bad {
			opened = opened || last.opened
			if z.n > 0 {
				z.list[0].opened = z.list[0].opened || opened
			}
			continue
		}
		for i := range last.n {
			z.data[z.wp+i] = p.id
		}
		if z.wp += last.n; z.wp == t.capacity {
			z.cond = zns.CondFull
		}
	}
	if z.n == 0 && (last.failed || last.above) {
		z.giveBack(opened)
	}
	return true
}

// giveBack undoes what was done to the zone's condition in vain.
func (z *lineZone) giveBack(opened bool) {
	switch {
	case z.wp == 0 && (z.cond == zns.CondImpOpen || z.cond == zns.CondClosed):
		z.cond = zns.CondEmpty
	case z.wp != 0 && opened && z.cond == zns.CondImpOpen:
		z.cond = zns.CondClosed
	}
}

func (t *teller) openClose(l *line, o *op) error {
	z := &l.zones[o.zone]
	if o.what == zns.OpOpen {
		if z.cond == zns.CondFull {
			return zns.ErrFull
		}
		return t.room(l, o.zone, zns.CondExpOpen)
	}
	switch {
	case !z.cond.Active():
		return zns.ErrCond
	case z.cond.Open() && z.reserved() == 0:
		z.cond = zns.CondEmpty
	default:
		z.cond = zns.CondClosed
	}
	return nil
}

// reset is the only event of a reset: nothing else is going on in the zone.
func (t *teller) reset(z *lineZone, err error) bool {
	if z.n != 0 || z.busy != 0 {
		return false
	}
	if err != nil {
		return z.cond != zns.CondEmpty
	}
	z.cond, z.wp, z.data = zns.CondEmpty, 0, [maxSectors]uint16{}
	return true
}

// resetAll has an event for each zone, in any order: an empty one is passed by
// before the others have been waited for.
func (t *teller) resetAll(l *line, o *op, i int) bool {
	was := l.stage[o.client]
	switch {
	case o.err != nil: // nothing has happened, because one was not empty
		l.stage[o.client] = done
		return slices.ContainsFunc(l.zones[:t.g.NrZones], func(z lineZone) bool { return z.cond != zns.CondEmpty })
	case was&(1<<i) != 0 || !t.reset(&l.zones[i], nil):
		return false
	}
	l.stage[o.client] = was | 1<<i
	if l.stage[o.client] == 1<<t.g.NrZones-1 {
		l.stage[o.client] = done
	}
	return true
}

// finish opens the zone, and fills it or fails.
func (t *teller) finish(l *line, o *op) bool {
	z := &l.zones[o.zone]
	switch l.stage[o.client] {
	case 0:
		if z.n != 0 || z.busy != 0 {
			return false
		}
		if z.cond == zns.CondFull {
			l.stage[o.client] = done
			return o.err == nil
		}
		opened := uint8(0)
		if !z.cond.Open() {
			opened = 1
			if err := t.room(l, o.zone, zns.CondImpOpen); err != nil {
				l.stage[o.client] = done
				return errors.Is(o.err, err)
			}
		}
		if o.err != nil && !errors.Is(o.err, errData) {
			return false
		}
		z.busy = uint8(o.client) + 1
		l.stage[o.client] = 1 + opened
	default:
		if z.busy = 0; o.err != nil {
			z.giveBack(l.stage[o.client] == 2)
		} else {
			z.cond, z.wp = zns.CondFull, t.capacity
		}
		l.stage[o.client] = done
	}
	return true
}
