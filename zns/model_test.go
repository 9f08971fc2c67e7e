package zns

import "slices"

// model is what a zoned device is, in the plainest words: no locks, no
// packing, no speed. It knows requests in flight only as a list per zone.
type model struct {
	g     Geometry
	zones []modelZone
	clock int
}

type modelZone struct {
	cond Cond
	wp   uint64 // committed, bytes from the zone's start
	data []byte // the whole zone; zeros where nothing was written
	used int
	list []*modelWrite // reservations in flight, in range order
}

type modelWrite struct {
	zone   uint32
	at     uint64 // from the zone's start
	data   []byte
	ended  bool
	opened bool // the zone, for itself
	err    error
}

func newModel(g Geometry) *model {
	m := &model{g: g, zones: make([]modelZone, g.NrZones)}
	for i := range m.zones {
		z := &m.zones[i]
		z.data = make([]byte, g.ZoneSize)
		z.cond = CondEmpty
		if uint32(i) < g.Conventional {
			z.cond = CondNotWP
		}
	}
	return m
}

func (m *model) count(f func(Cond) bool) (n uint32) {
	for i := range m.zones {
		if f(m.zones[i].cond) {
			n++
		}
	}
	return n
}

// draining: something in flight has failed, so nobody may write for now.
func (z *modelZone) draining() bool {
	return slices.ContainsFunc(z.list, func(w *modelWrite) bool { return w.err != nil })
}

func (z *modelZone) reserved() uint64 {
	n := z.wp
	for _, w := range z.list {
		n += uint64(len(w.data))
	}
	return n
}

// room makes zone i open, if limits allow, and gives it condition c.
func (m *model) room(i uint32, c Cond) error {
	z := &m.zones[i]
	seq := m.g.NrZones - m.g.Conventional
	if !z.cond.Active() && m.g.MaxActive != 0 && m.g.MaxActive < seq && m.count(Cond.Active) >= m.g.MaxActive {
		return ErrActiveLimit
	}
	if !z.cond.Open() && m.g.MaxOpen != 0 && m.g.MaxOpen < seq && m.count(Cond.Open) >= m.g.MaxOpen {
		oldest := -1
		for k := range m.zones {
			if m.zones[k].cond == CondImpOpen && (oldest < 0 || m.zones[k].used < m.zones[oldest].used) {
				oldest = k
			}
		}
		if oldest < 0 {
			return ErrOpenLimit
		}
		m.zones[oldest].cond = CondClosed
	}
	z.cond = c
	return nil
}

func (m *model) use(i uint32) {
	m.clock++
	m.zones[i].used = m.clock
}

// write is a write, append (at is ignored) or write-zeroes to sequential zone i.
func (m *model) write(i uint32, isAppend bool, at uint64, data []byte) (*modelWrite, error) {
	z := &m.zones[i]
	switch z.cond {
	case CondOffline:
		return nil, ErrOffline
	case CondReadOnly:
		return nil, ErrReadOnly
	case CondFull:
		return nil, ErrFull
	}
	wp := z.reserved()
	if wp == m.g.ZoneCapacity {
		return nil, ErrFull
	}
	if isAppend {
		at = wp
	}
	if at != wp {
		return nil, ErrNotAtWP
	}
	if at+uint64(len(data)) > m.g.ZoneCapacity {
		return nil, ErrBoundary
	}
	w := &modelWrite{zone: i, at: at, data: data}
	if !z.cond.Open() {
		m.use(i)
		if err := m.room(i, CondImpOpen); err != nil {
			return nil, err
		}
		w.opened = true
	}
	m.use(i)
	z.list = append(z.list, w)
	return w, nil
}

// end is the end of w's I/O. It returns the requests that are answered by it.
func (m *model) end(w *modelWrite, err error) (answered []*modelWrite) {
	z := &m.zones[w.zone]
	w.ended = true
	if err != nil && w.err == nil {
		w.err = err
		for _, above := range z.list[slices.Index(z.list, w)+1:] {
			above.err = ErrAborted
		}
	}
	opened := false
	for len(z.list) != 0 && z.list[0].ended {
		h := z.list[0]
		z.list = z.list[1:]
		answered = append(answered, h)
		if h.err == nil {
			copy(z.data[z.wp:], h.data)
			z.wp += uint64(len(h.data))
			if z.wp == m.g.ZoneCapacity {
				z.cond = CondFull
			}
			continue
		}
		opened = opened || h.opened
		if len(z.list) != 0 {
			z.list[0].opened = z.list[0].opened || opened
		}
	}
	if len(z.list) == 0 && answered[len(answered)-1].err != nil {
		switch { // give back what was taken in vain
		case z.wp == 0 && (z.cond == CondImpOpen || z.cond == CondClosed):
			z.cond = CondEmpty
		case opened && z.cond == CondImpOpen:
			z.cond = CondClosed
		}
	}
	return answered
}

func (m *model) open(i uint32) error {
	z := &m.zones[i]
	switch z.cond {
	case CondNotWP:
		return ErrConventional
	case CondOffline:
		return ErrOffline
	case CondReadOnly:
		return ErrReadOnly
	case CondFull:
		return ErrFull
	}
	m.use(i)
	return m.room(i, CondExpOpen)
}

func (m *model) close(i uint32) error {
	z := &m.zones[i]
	switch z.cond {
	case CondNotWP:
		return ErrConventional
	case CondOffline:
		return ErrOffline
	case CondReadOnly:
		return ErrReadOnly
	case CondEmpty, CondFull:
		return ErrCond
	case CondClosed:
		return nil
	}
	z.cond = CondClosed
	if z.reserved() == 0 {
		z.cond = CondEmpty
	}
	return nil
}

// finish and reset come when nothing is in flight. failed is what the media
// answers.
func (m *model) finish(i uint32, failed error) error {
	z := &m.zones[i]
	switch z.cond {
	case CondNotWP:
		return ErrConventional
	case CondOffline:
		return ErrOffline
	case CondReadOnly:
		return ErrReadOnly
	case CondFull:
		return nil
	}
	before := z.cond
	if !z.cond.Open() {
		m.use(i)
		if err := m.room(i, CondImpOpen); err != nil {
			return err
		}
	}
	if failed != nil {
		z.cond = before
		return failed
	}
	z.cond, z.wp = CondFull, m.g.ZoneCapacity
	return nil
}

func (m *model) reset(i uint32, failed error) error {
	z := &m.zones[i]
	switch z.cond {
	case CondNotWP:
		return ErrConventional
	case CondOffline:
		return ErrOffline
	case CondReadOnly:
		return ErrReadOnly
	case CondEmpty:
		return nil
	}
	if failed != nil {
		return failed
	}
	z.cond, z.wp = CondEmpty, 0
	clear(z.data)
	return nil
}

func (m *model) resetAll(failed error) error {
	var err error
	for i := range m.zones {
		switch m.zones[i].cond {
		case CondNotWP, CondReadOnly, CondOffline:
		default:
			if e := m.reset(uint32(i), failed); e != nil {
				err = e
			}
		}
	}
	return err
}

// reopen is a detach and attach.
func (m *model) reopen() {
	for i := range m.zones {
		z := &m.zones[i]
		switch {
		case z.cond == CondNotWP:
		case z.wp == 0:
			z.cond = CondEmpty
		case z.wp == m.g.ZoneCapacity:
			z.cond = CondFull
		default:
			z.cond = CondClosed
		}
		z.used = 0
	}
}

// report is what the Device has to say about zone i.
func (m *model) report(i uint32) Zone {
	z := &m.zones[i]
	start := uint64(i) * m.g.ZoneSize
	r := Zone{
		Start: start, Len: m.g.ZoneSize, Capacity: m.g.ZoneCapacity,
		WP: start + z.wp, Type: TypeSeqWriteReq, Cond: z.cond,
	}
	if z.cond == CondNotWP {
		r.Type, r.Capacity = TypeConventional, m.g.ZoneSize
	}
	return r
}
