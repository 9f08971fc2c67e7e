package zns

import (
	"fmt"
	"math/bits"
	"sync/atomic"
)

// Device is the zone state machine over a Media: it decides, for every request,
// whether it is allowed, where its data goes and when it is answered. Its
// methods may be called from any goroutine.
type Device struct {
	g        Geometry
	media    Media
	readOnly bool

	shift    uint   // log2 of the zone size
	zoneMask uint64 // zone size - 1
	zones    []zone
	words    words // of the journal
	limits   limits

	journal *Journal               // its own, where nobody wants one
	resumed bool                   // the journal is a predecessor's
	failed  bool                   // and so is the media's failure
	replay  atomic.Pointer[replay] // nil: nothing is sent again
}

// Option changes how New makes a Device.
type Option func(*Device)

// ReadOnly makes a Device that refuses with ErrDeviceRO whatever would change
// the media or a zone's condition.
func ReadOnly() Option { return func(d *Device) { d.readOnly = true } }

// Event is a change of a zone: of its condition, of its committed write
// pointer, or of both at once.
type Event struct {
	Zone     uint32
	From, To Cond // the same if only the pointer has moved
	// WP is where the pointer is now, an absolute byte offset.
	WP uint64
	// Open and Active are how many zones are so now.
	Open, Active uint32
}

// Watch calls f for every Event after New, in the order in which they happen. f
// is called with locks held: it must not block and must not call the Device.
// It replaces an earlier Watch.
func Watch(f func(Event)) Option {
	return func(d *Device) { d.limits.watch = f }
}

// New makes a Device of geometry g on m. Every zone is what its write pointer
// says: EMPTY at the start, FULL at the capacity, CLOSED and thus active
// between. More active zones than MaxActive are accepted, and then no further
// one becomes active before enough of them are reset or full (I15).
func New(g Geometry, m Media, opts ...Option) (*Device, error) {
	if err := g.validate(); err != nil {
		return nil, err
	}
	d := &Device{
		g:        g,
		media:    m,
		shift:    uint(bits.TrailingZeros64(g.ZoneSize)),
		zoneMask: g.ZoneSize - 1,
		zones:    make([]zone, g.NrZones),
	}
	d.limits.zones, d.limits.shift = d.zones, d.shift
	d.limits.clock.Store(1) // no zone has been used
	// Limits that the sequential zones cannot exceed are none.
	if n := g.NrZones - g.Conventional; g.MaxOpen < n {
		d.limits.maxOpen = g.MaxOpen
		d.limits.implicit = make([]uint32, 0, g.MaxOpen)
	}
	if n := g.NrZones - g.Conventional; g.MaxActive < n {
		d.limits.maxActive = g.MaxActive
	}
	for _, o := range opts {
		o(d)
	}
	if d.resumed {
		if err := d.adoptJournal(); err != nil {
			return nil, err
		}
		return d, nil
	}
	if d.journal == nil {
		d.journal = &Journal{words: make(words, g.NrZones)}
	}
	if err := d.useJournal(); err != nil {
		return nil, err
	}
	for i := range d.zones {
		if err := d.adopt(uint32(i)); err != nil {
			return nil, err
		}
	}
	for i := range d.journal.records {
		d.journal.records[i].state.Store(0)
	}
	return d, nil
}

// useJournal makes the words of the zones those of the journal.
func (d *Device) useJournal() error {
	if n := len(d.journal.words); uint32(n) != d.g.NrZones {
		return fmt.Errorf("journal of %d zones: the device has %d", n, d.g.NrZones)
	}
	d.words, d.limits.words = d.journal.words, d.journal.words
	return nil
}

// adopt gives zone i the condition that follows from the media's pointer.
func (d *Device) adopt(i uint32) error {
	if i < d.g.Conventional {
		d.words.set(i, CondNotWP, 0)
		return nil
	}
	start, at := d.start(i), d.media.Pointer(i)
	switch wp := at - start; {
	case at < start || wp > d.g.ZoneSize || wp%uint64(d.g.BlockSize) != 0:
		return fmt.Errorf("zone %d: write pointer %#x is not a multiple of %d bytes in [%#x, %#x]",
			i, at, d.g.BlockSize, start, start+d.g.ZoneCapacity)
	case wp == 0:
		d.words.set(i, CondEmpty, 0)
	case wp >= d.g.ZoneCapacity:
		d.words.set(i, CondFull, d.g.ZoneCapacity)
	default:
		d.words.set(i, CondClosed, wp)
		d.limits.active++
	}
	return nil
}

// validate checks what the Device relies on.
func (g Geometry) validate() error {
	bs := uint64(g.BlockSize)
	switch {
	case g.BlockSize != 512 && g.BlockSize != 4096:
		return fmt.Errorf("block size %d: must be 512 or 4096", g.BlockSize)
	case bits.OnesCount64(g.ZoneSize) != 1 || g.ZoneSize < bs:
		return fmt.Errorf("zone size %d: must be a power of two of at least a block (%d)", g.ZoneSize, bs)
	case g.ZoneSize > 1<<55: // a pointer and a condition share 64 bits
		return fmt.Errorf("zone size %d: must be at most 2^55", g.ZoneSize)
	case g.ZoneCapacity == 0 || g.ZoneCapacity > g.ZoneSize:
		return fmt.Errorf("zone capacity %d: must be in [1, %d], the zone size", g.ZoneCapacity, g.ZoneSize)
	case g.ZoneCapacity%bs != 0:
		return fmt.Errorf("zone capacity %d: must be a multiple of the block size %d", g.ZoneCapacity, bs)
	case g.NrZones == 0 || g.Conventional >= g.NrZones:
		return fmt.Errorf("%d conventional zones of %d: at least one zone must be sequential", g.Conventional, g.NrZones)
	case g.Size/g.ZoneSize != uint64(g.NrZones) || g.Size%g.ZoneSize != 0:
		return fmt.Errorf("size %d: must be %d zones of %d bytes", g.Size, g.NrZones, g.ZoneSize)
	case g.MaxActive != 0 && g.MaxOpen > g.MaxActive:
		return fmt.Errorf("max open zones %d: must be at most max active zones %d", g.MaxOpen, g.MaxActive)
	case g.MaxAppend < bs:
		return fmt.Errorf("max append bytes %d: must be at least a block (%d)", g.MaxAppend, bs)
	}
	return nil
}

// Geometry returns what New was given.
func (d *Device) Geometry() Geometry { return d.g }

// Zone returns the report entry of zone i: its condition and its committed
// write pointer at one instant. It takes no lock.
func (d *Device) Zone(i uint32) Zone {
	w := d.words.load(i)
	z := Zone{
		Start:    d.start(i),
		Len:      d.g.ZoneSize,
		Capacity: d.g.ZoneCapacity,
		WP:       d.start(i) + w.wp(),
		Type:     TypeSeqWriteReq,
		Cond:     w.cond(),
	}
	if i < d.g.Conventional {
		z.Type, z.Capacity = TypeConventional, d.g.ZoneSize
	}
	return z
}

// Counts returns how many zones are open and how many are active.
func (d *Device) Counts() (open, active uint32) {
	d.limits.mu.Lock()
	defer d.limits.mu.Unlock()
	return d.limits.open, d.limits.active
}

// start returns the first byte of zone i.
func (d *Device) start(i uint32) uint64 { return uint64(i) << d.shift }

// phase says which call a request in flight waits for.
type phase uint8

const (
	idle     phase = iota // not in flight
	parked                // Work, to wait for the zone's gate and begin again
	mapping               // Work, for Media.MapSlow
	zeroing               // Work, for Media.Zero
	managing              // Work, for a reset or finish
	rounding              // Work, for Media.Round
	moving                // End
	waiting               // nobody: it is woken
)

// flight is a request's place in the Device. What guards it is the zone's mu
// while it is in the list of reservations, else nothing: the request belongs to
// the one goroutine that brought it.
type flight struct {
	next   *Request // see zone.tail
	mapped uint64   // bytes from At that Map has to find; the rest is a hole
	phase  phase
	ended  bool // its I/O has
	opened bool // the reservation opened the zone
	again  repeat
	fresh  bool // it is known not to be one that is sent again
	first  bool // it is the first one of its slot after Resume
	// written is how much of it is below the pointer already: it was sent
	// before, and has grown since.
	written uint64
}

// handlers starts each operation. A handler validates, reserves and maps, and
// never blocks; it runs again from Work after the request was parked.
var handlers = [...]func(*Device, *Request) Step{
	OpRead: (*Device).read, OpWrite: (*Device).write, OpAppend: (*Device).append,
	OpWriteZeroes: (*Device).write, OpFlush: (*Device).flush,
	OpOpen: (*Device).open, OpClose: (*Device).close, OpFinish: (*Device).finish,
	OpReset: (*Device).reset, OpResetAll: (*Device).resetAll,
}

// Begin starts r. It never blocks and does not allocate. At Answer r.Err says
// why r was refused, and then nothing has changed (I11).
func (d *Device) Begin(r *Request) Step {
	if r.flight.phase != idle {
		panic("zns: Begin of a request in flight")
	}
	r.At, r.Err, r.Unmapped, r.Extents = r.Start, nil, false, r.Extents[:0]
	if p := d.replay.Load(); p != nil {
		var over bool
		if r.flight.first, over = p.first(r); over {
			d.replay.Store(nil)
		}
	}
	if int(r.Op) >= len(handlers) {
		return answer(r, ErrUnsupported)
	}
	return handlers[r.Op](d, r)
}

// Work does what Begin, End or a wake-up left to a goroutine that may block. It
// returns Answer, IO or Wait.
func (d *Device) Work(r *Request) Step {
	step := Work
	for step == Work {
		switch r.flight.phase {
		case parked:
			d.await(d.g.ZoneOf(r.Start))
			r.flight.phase = idle
			step = handlers[r.Op](d, r)
		case mapping:
			step = d.mapSlow(r)
		case zeroing:
			step = d.end(r, d.media.Zero(r.At, r.Len))
		case managing:
			step = d.manage(r)
		case rounding:
			step = answer(r, d.media.Round())
		default:
			panic("zns: Work of a request that has none")
		}
	}
	return step
}

// End takes the outcome of the I/O of r.Extents: err is nil if every byte was
// moved. It never blocks and does not allocate unless err says that there was
// a failure.
func (d *Device) End(r *Request, err error) Step {
	if r.flight.phase != moving {
		panic("zns: End of a request that has no I/O in flight")
	}
	return d.end(r, err)
}

// answer ends r.
func answer(r *Request, err error) Step {
	r.Err = err
	r.flight = flight{}
	return Answer
}

// park sends r to Work, to begin again when the zone's gate is open.
func park(r *Request) Step {
	r.flight.phase = parked
	return Work
}

// await blocks while zone i is closed to newcomers.
func (d *Device) await(i uint32) {
	z := &d.zones[i]
	z.mu.Lock()
	g := z.gate
	z.mu.Unlock()
	if g != nil {
		<-g.open
	}
}

// flush makes durable what was answered before (I1).
func (d *Device) flush(r *Request) Step {
	if d.readOnly {
		return answer(r, nil)
	}
	r.flight.phase = rounding
	return Work
}
