package zns

import (
	"sync"
	"sync/atomic"
	"unsafe"
)

// zone is the state of one zone besides its word. There is one for every zone of
// the device for as long as it lives, so its size counts: 32 bytes, and 8 of the
// word.
type zone struct {
	mu sync.Mutex // order 1, before limits.mu; guards what says so

	// tail is the last reservation in flight; its flight.next is the first
	// one, and so on round. nil when there is none. Guarded by mu.
	tail *Request
	// gate is closed while newcomers have to wait. Guarded by mu.
	gate *gate
	// used is the stamp of the last reservation, see limits.touch.
	used atomic.Uint32
	// inflight counts reads and writes that have begun and not ended.
	// Guarded by mu; not kept for conventional zones.
	inflight uint32
}

var _ = [1]int{}[unsafe.Sizeof(zone{})-32]

// word packs a condition (low byte) and a write pointer, in bytes from the
// start of the zone.
type word uint64

// resetting in a word says that the zone's reset has begun: its contents may be
// gone already. Only a successor has to know that (see Resume).
const resetting word = 0x80

func pack(c Cond, wp uint64) word { return word(wp<<8 | uint64(c)) }

func (w word) cond() Cond      { return Cond(w & 0x7f) }
func (w word) wp() uint64      { return uint64(w >> 8) }
func (w word) resetting() bool { return w&resetting != 0 }

// words are the conditions and committed write pointers of all zones, a word
// each, so that a report is one load per zone. A pointer is changed with the
// zone's mu held, a condition with limits.mu held (limits.go says why). They lie
// in the journal.
type words []atomic.Uint64

func (ws words) load(i uint32) word { return word(ws[i].Load()) }

// setWP moves the committed pointer of zone i and leaves the condition to
// whoever holds limits.mu. The zone's mu is held.
func (ws words) setWP(i uint32, wp uint64) {
	for w := &ws[i]; ; {
		old := w.Load()
		if w.CompareAndSwap(old, uint64(pack(word(old).cond(), wp)|word(old)&resetting)) {
			return
		}
	}
}

// setCond changes the condition of zone i and leaves the pointer to whoever
// holds the zone's mu. limits.mu is held.
func (ws words) setCond(i uint32, c Cond) {
	for w := &ws[i]; ; {
		old := w.Load()
		if w.CompareAndSwap(old, uint64(pack(c, word(old).wp())|word(old)&resetting)) {
			return
		}
	}
}

// setResetting says that a reset of zone i has begun, or that it has failed.
// Nothing but an eviction can change the word meanwhile.
func (ws words) setResetting(i uint32, on bool) {
	if on {
		ws[i].Or(uint64(resetting))
	} else {
		ws[i].And(^uint64(resetting))
	}
}

// set changes both of zone i at once, after which no reset is under way. The
// zone's mu and limits.mu are held.
func (ws words) set(i uint32, c Cond, wp uint64) { ws[i].Store(uint64(pack(c, wp))) }

// push appends r to the reservations in flight. z.mu is held.
func (z *zone) push(r *Request) {
	if z.tail == nil {
		r.flight.next = r
	} else {
		r.flight.next = z.tail.flight.next
		z.tail.flight.next = r
	}
	z.tail = r
}

// pop removes and returns the first reservation in flight. z.mu is held.
func (z *zone) pop() *Request {
	r := z.tail.flight.next
	if r == z.tail {
		z.tail = nil
	} else {
		z.tail.flight.next = r.flight.next
	}
	r.flight.next = nil
	return r
}

// A gate keeps newcomers out of a zone. There are two kinds. A closed one
// belongs to a reset, finish or change of condition that waits until nothing is
// in flight, does its work without any lock and opens it. The other kind
// belongs to nobody: it keeps new writes out until the reservations above a
// failed one have ended their I/O, and opens with the last of them.
type gate struct {
	owned bool
	// open is closed when the zone takes requests again.
	open chan struct{}
	// drained is closed when nothing is in flight any more; nil if nothing
	// was when the gate was shut, or after that.
	drained chan struct{}
}

// shut closes z to newcomers on behalf of the caller, which must call unshut.
// open is the channel that unshut's caller closes. It blocks while somebody
// else's gate is shut and returns a channel that is closed when nothing is in
// flight any more, nil if nothing is.
func (z *zone) shut(open chan struct{}) (drained chan struct{}) {
	for {
		z.mu.Lock()
		g := z.gate
		if g == nil {
			break
		}
		z.mu.Unlock()
		<-g.open
	}
	defer z.mu.Unlock()
	z.gate = &gate{owned: true, open: open}
	if z.inflight != 0 {
		z.gate.drained = make(chan struct{})
	}
	return z.gate.drained
}

// unshut removes the caller's gate. The caller closes its channel afterwards.
func (z *zone) unshut() {
	z.mu.Lock()
	z.gate = nil
	z.mu.Unlock()
}

// leave takes n requests out of the count of those in flight. z.mu is held.
func (z *zone) leave(n uint32) {
	z.inflight -= n
	if g := z.gate; g != nil && z.inflight == 0 && g.drained != nil {
		close(g.drained)
		g.drained = nil
	}
}
