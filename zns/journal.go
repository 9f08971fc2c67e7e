package zns

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Journal is what a Device leaves to the successor of a process that was killed
// (I9): condition and committed pointer of every zone, and which writes have
// been committed and perhaps not answered. It lies in memory that outlives the
// process and not the machine, such as a shared mapping of a file in /run.
// Every fact is one aligned word, so that there is no instant at which a kill
// leaves half of one.
type Journal struct {
	words   words
	records []slotRecord // per slot
}

// slotRecord is the last write, append or write-zeroes of a slot that was committed
// in a sequential zone. state is stored last and cleared first.
type slotRecord struct {
	state atomic.Uint64 // 1 + Op; 0: nothing, or it has been answered
	start atomic.Uint64 // of the request
	len   atomic.Uint64
	at    atomic.Uint64 // where it went
}

// JournalBytes is how much memory a Journal takes.
func JournalBytes(zones, slots uint32) int64 {
	return int64(zones)*8 + int64(slots)*int64(unsafe.Sizeof(slotRecord{}))
}

// NewJournal lays a Journal out in mem, which is aligned to 8 bytes and has
// JournalBytes for so many zones, and slots for so many requests in flight.
// What mem has is kept.
func NewJournal(mem []byte, zones, slots uint32) (*Journal, error) {
	if want := JournalBytes(zones, slots); int64(len(mem)) != want || zones == 0 {
		return nil, fmt.Errorf("journal of %d bytes: %d zones and %d slots take %d", len(mem), zones, slots, want)
	}
	base := unsafe.Pointer(&mem[0])
	if uintptr(base)&7 != 0 {
		return nil, fmt.Errorf("journal at %p: its memory must be aligned to 8 bytes", base)
	}
	j := &Journal{words: unsafe.Slice((*atomic.Uint64)(base), zones)}
	if slots != 0 {
		j.records = unsafe.Slice((*slotRecord)(unsafe.Add(base, int64(zones)*8)), slots)
	}
	return j, nil
}

// Pointer returns the committed pointer of a zone in bytes from its start.
func (j *Journal) Pointer(zone uint32) uint64 { return j.words.load(zone).wp() }

// commit records that r was written at r.At. The pointer moves afterwards: a
// record above it says nothing.
func (j *Journal) commit(r *Request) {
	if r.Slot >= uint32(len(j.records)) {
		return
	}
	rec := &j.records[r.Slot]
	rec.state.Store(0)
	rec.start.Store(r.Start)
	rec.len.Store(r.Len)
	rec.at.Store(r.At)
	rec.state.Store(uint64(r.Op) + 1)
}

// Answered says that whoever sent the request of the slot has its answer: it
// will not be sent again. What is not said to be answered is also recognised,
// but of an append the data has to be compared.
func (j *Journal) Answered(slot uint32) {
	if slot < uint32(len(j.records)) && j.records[slot].state.Load() != 0 {
		j.records[slot].state.Store(0)
	}
}

// WithJournal makes a Device keep j from the beginning.
func WithJournal(j *Journal) Option { return func(d *Device) { d.journal = j } }

// Resume makes a Device that goes on where the one that kept j was killed: its
// zones are what j says, and a write that is sent again although it was committed
// is recognised, as the first request of its slot. The image's data and mappings
// are what the page cache has.
func Resume(j *Journal) Option {
	return func(d *Device) { d.journal, d.resumed = j, true }
}

// ResumeFailed is Resume over a media that takes no more changes: a reset that was
// under way is not carried out, and the zone is what it was before. Its request
// is sent again, and refused.
func ResumeFailed(j *Journal) Option {
	return func(d *Device) { d.journal, d.resumed, d.failed = j, true, true }
}

// replay knows the writes that were committed by a Device that was killed, and
// that may be sent again.
type replay struct {
	mu      sync.Mutex // innermost
	seen    []bool     // per slot: it has had a request
	unseen  int
	records []committed
}

type committed struct {
	slot           uint32
	op             Op
	start, len, at uint64
}

// first reports whether r is the first request of its slot, and whether all
// slots have had theirs before.
func (p *replay) first(r *Request) (first, over bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unseen == 0 {
		return false, true
	}
	if r.Slot < uint32(len(p.seen)) && !p.seen[r.Slot] {
		p.seen[r.Slot] = true
		p.unseen--
		return true, false
	}
	return false, false
}

// take returns what was committed of r, whose zone has its pointer at wp bytes,
// and forgets it, if anything was. A write may have grown meanwhile: what follows
// it has been merged into it. An I/O scheduler may have given it another slot; an
// append that has one is taken for a new one, because others look the same.
func (p *replay) take(r *Request, zoneMask, wp uint64) (c committed, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	find := func(is func(c committed, end uint64) bool) int {
		return slices.IndexFunc(p.records, func(c committed) bool {
			end := c.at&zoneMask + c.len
			return c.op == r.Op && c.start == r.Start && end <= wp && is(c, end) // else it has been reset since
		})
	}
	i := find(func(c committed, _ uint64) bool {
		return c.len == r.Len && (c.op != OpAppend || c.slot == r.Slot && r.flight.first)
	})
	if i < 0 {
		i = find(func(c committed, end uint64) bool { return c.op != OpAppend && c.len < r.Len && end == wp })
	}
	if i < 0 {
		return committed{}, false
	}
	c = p.records[i]
	p.records = slices.Delete(p.records, i, i+1)
	return c, true
}

// adoptJournal gives every zone what the journal has of it. It blocks: a reset
// that was under way is carried out.
func (d *Device) adoptJournal() error {
	if err := d.useJournal(); err != nil {
		return err
	}
	var resets []uint32
	for i := range d.g.NrZones {
		w := d.words.load(i)
		if err := d.checkWord(i, w); err != nil {
			return err
		}
		if w.resetting() && d.failed {
			d.words.setResetting(i, false)
		} else if w.resetting() {
			resets = append(resets, i)
			continue
		}
		c := w.cond()
		if w.wp() == 0 && (c == CondImpOpen || c == CondClosed) {
			c = CondEmpty // what had opened it was in flight
			d.words.set(i, c, 0)
		}
		if start := d.start(i); c.Active() || c == CondFull || c == CondEmpty {
			if wp := d.media.Pointer(i); wp != start+w.wp() {
				return fmt.Errorf("journal of zone %d: it was written up to %d, but the image has it up to %d", i, start+w.wp(), wp)
			}
		}
		d.limits.adopt(i, c)
	}
	// Mappings of these zones may be gone, so there is no way back.
	if len(resets) != 0 {
		if err := d.media.Reset(resets); err != nil {
			return fmt.Errorf("complete the reset of %d zones from zone %d: %w", len(resets), resets[0], err)
		}
		for _, i := range resets {
			d.words.set(i, CondEmpty, 0)
		}
	}
	n := len(d.journal.records)
	p := &replay{seen: make([]bool, n), unseen: n}
	for i := range d.journal.records {
		// The record stays where it is: this process may be killed, too, before
		// the request has been sent again.
		rec := &d.journal.records[i]
		state := rec.state.Load()
		if state == 0 || state > uint64(OpResetAll)+1 {
			continue
		}
		c := committed{uint32(i), Op(state - 1), rec.start.Load(), rec.len.Load(), rec.at.Load()}
		zone, err := d.locate(c.at, c.len)
		// What lies above the pointer was not committed: it is a new request.
		if err == nil && zone >= d.g.Conventional && c.at&d.zoneMask+c.len <= d.words.load(zone).wp() {
			p.records = append(p.records, c)
		}
	}
	d.replay.Store(p)
	return nil
}

// checkWord says what is wrong with what the journal has of zone i.
func (d *Device) checkWord(i uint32, w word) error {
	wp, c := w.wp(), w.cond()
	ok := false
	switch {
	case i < d.g.Conventional:
		ok = c == CondNotWP && wp == 0
	case wp > d.g.ZoneCapacity || wp%uint64(d.g.BlockSize) != 0:
	default:
		switch c {
		case CondEmpty:
			ok = wp == 0
		case CondFull:
			ok = wp == d.g.ZoneCapacity
		case CondImpOpen, CondExpOpen, CondClosed:
			ok = wp < d.g.ZoneCapacity
		case CondReadOnly, CondOffline:
			ok = true
		}
	}
	if !ok {
		return fmt.Errorf("journal of zone %d: condition %s with the pointer at %d is none a zone can have", i, c, wp)
	}
	return nil
}

// again looks whether r, which starts in zone i, was committed before. If so,
// its data goes to the same place once more, which is harmless; an append is
// only believed to be that one if it has the same data.
func (d *Device) again(r *Request, i uint32) (Step, bool) {
	p := d.replay.Load()
	if p == nil || r.flight.fresh {
		return 0, false
	}
	z := &d.zones[i]
	z.mu.Lock()
	if z.gate != nil { // whoever has it decides first
		z.mu.Unlock()
		return park(r), true
	}
	c, ok := p.take(r, d.zoneMask, d.words.load(i).wp())
	if !ok {
		z.mu.Unlock()
		return 0, false
	}
	if c.len < r.Len { // a write at the pointer but for its beginning
		z.mu.Unlock()
		r.flight.fresh, r.flight.written = true, c.len
		return 0, false
	}
	z.inflight++
	z.mu.Unlock()
	r.At = c.at
	d.journal.commit(r)
	switch r.Op {
	case OpWriteZeroes:
		r.flight.again = rewriting
		return d.end(r, nil), true
	case OpAppend:
		r.flight.again = comparing
	default:
		r.flight.again = rewriting
	}
	return d.mapFast(r, r.Len), true
}

// How a request is sent again.
type repeat uint8

const (
	notAgain repeat = iota
	rewriting
	comparing // its data with what is at its place
)

// endAgain ends a request that was sent again.
func (d *Device) endAgain(r *Request, i uint32, err error) Step {
	z := &d.zones[i]
	z.mu.Lock()
	z.leave(1)
	z.mu.Unlock()
	if r.flight.again == comparing && err == ErrDiffers {
		r.At, r.Extents = r.Start, r.Extents[:0]
		r.flight = flight{fresh: true}
		return park(r)
	}
	return conclude(r, err)
}
