package zns

import "fmt"

// target checks a zone management request and returns its zone.
func (d *Device) target(r *Request) (uint32, error) {
	switch {
	case d.readOnly:
		return 0, ErrDeviceRO
	case r.Start >= d.g.Size || r.Start&d.zoneMask != 0:
		return 0, ErrInvalid
	}
	i := uint32(r.Start >> d.shift)
	if i < d.g.Conventional {
		return 0, ErrConventional
	}
	return i, nil
}

// open opens a zone explicitly.
func (d *Device) open(r *Request) Step {
	return d.atOnce(r, func(z *zone, i uint32) error {
		d.limits.touch(z)
		return d.limits.apply(i, evOpen)
	})
}

// close closes a zone. One that was opened and never written is empty again.
func (d *Device) close(r *Request) Step {
	return d.atOnce(r, func(z *zone, i uint32) error {
		if w := d.words.load(i); w.cond().Open() && w.wp() == 0 && z.tail == nil {
			return d.limits.apply(i, evCloseUnwritten)
		}
		if r.flight.first && d.words.load(i).cond() == CondEmpty {
			return nil // sent again, perhaps: that has made it empty
		}
		return d.limits.apply(i, evClose)
	})
}

// atOnce does something with a zone that needs nothing but its lock.
func (d *Device) atOnce(r *Request, f func(z *zone, i uint32) error) Step {
	i, err := d.target(r)
	if err != nil {
		return answer(r, err)
	}
	z := &d.zones[i]
	z.mu.Lock()
	if z.gate != nil {
		z.mu.Unlock()
		return park(r)
	}
	err = f(z, i)
	z.mu.Unlock()
	return answer(r, err)
}

// finish and reset answer at once what needs no work, and leave the rest to
// manage.
func (d *Device) finish(r *Request) Step { return d.ask(r, evFinish) }
func (d *Device) reset(r *Request) Step  { return d.ask(r, evReset) }

func (d *Device) ask(r *Request, ev event) Step {
	i, err := d.target(r)
	if err != nil {
		return answer(r, err)
	}
	z := &d.zones[i]
	z.mu.Lock()
	busy, cond := z.gate != nil, d.words.load(i).cond()
	z.mu.Unlock()
	// An empty or full zone has no write in flight.
	if to, err := next(cond, ev); !busy && (err != nil || to == cond) {
		return answer(r, err)
	}
	r.flight.phase = managing
	return Work
}

// resetAll resets every sequential zone that is not empty, read-only or
// offline.
func (d *Device) resetAll(r *Request) Step {
	if d.readOnly {
		return answer(r, ErrDeviceRO)
	}
	r.flight.phase = managing
	return Work
}

// manage does the operations that need a zone for themselves: it shuts the
// zone's gate, waits until nothing is in flight, works without a lock and opens
// the gate again.
func (d *Device) manage(r *Request) Step {
	i := d.g.ZoneOf(r.Start)
	switch r.Op {
	case OpReset:
		return answer(r, d.withZones(i, i+1, d.resetZones))
	case OpResetAll:
		return answer(r, d.withZones(d.g.Conventional, d.g.NrZones, func(zones []uint32) error {
			n := 0
			for _, i := range zones {
				if c := d.words.load(i).cond(); c != CondReadOnly && c != CondOffline {
					zones[n] = i
					n++
				}
			}
			return d.resetZones(zones[:n])
		}))
	case OpFinish:
		return answer(r, d.withZones(i, i+1, d.finishZone))
	}
	panic("zns: " + r.Op.String() + " is no management operation")
}

// withZones runs f with those of the zones [from, to) that are not empty shut
// and drained, in ascending order; an only zone is shut whatever it is. Empty
// zones have no write in flight, and one that becomes active meanwhile is
// ordered after f.
func (d *Device) withZones(from, to uint32, f func(zones []uint32) error) error {
	open := make(chan struct{})
	defer close(open)
	var zones []uint32
	var drains []chan struct{}
	for i := from; i < to; i++ {
		z := &d.zones[i]
		if to-from > 1 {
			switch d.words.load(i).cond() {
			case CondEmpty, CondReadOnly, CondOffline:
				continue
			}
		}
		if c := z.shut(open); c != nil {
			drains = append(drains, c)
		}
		zones = append(zones, i)
	}
	shut := append([]uint32(nil), zones...) // f may reuse the slice
	defer func() {
		for _, i := range shut {
			d.zones[i].unshut()
		}
	}()
	for _, c := range drains {
		<-c
	}
	if len(zones) == 0 {
		return nil
	}
	return f(zones)
}

// resetZones empties shut zones. When the media has failed they are as before.
func (d *Device) resetZones(zones []uint32) error {
	n := 0
	for _, i := range zones {
		cond := d.words.load(i).cond()
		to, err := next(cond, evReset)
		if err != nil {
			return err
		}
		if to != cond {
			zones[n] = i
			n++
		}
	}
	if n == 0 {
		return nil
	}
	zones = zones[:n]
	for _, i := range zones {
		d.words.setResetting(i, true)
	}
	if err := d.media.Reset(zones); err != nil { // I4
		for _, i := range zones {
			d.words.setResetting(i, false)
		}
		return fmt.Errorf("reset of %d zones from zone %d: %w", n, zones[0], err)
	}
	for _, i := range zones {
		z := &d.zones[i]
		z.mu.Lock()
		d.limits.applyAt(i, evReset, 0)
		z.mu.Unlock()
	}
	return nil
}

// finishZone makes the one shut zone full. An empty or closed zone passes
// through implicit open and needs room for that, as it does on null_blk: an
// empty zone can be refused with ErrActiveLimit, either with ErrOpenLimit.
func (d *Device) finishZone(zones []uint32) error {
	i := zones[0]
	z := &d.zones[i]
	z.mu.Lock()
	w := d.words.load(i)
	to, err := next(w.cond(), evFinish)
	if err == nil && to != w.cond() && !w.cond().Open() {
		d.limits.touch(z)
		err = d.limits.apply(i, evWrite)
	}
	z.mu.Unlock()
	if err != nil || to == w.cond() {
		return err
	}

	err = d.media.Finish(i, d.start(i)+w.wp())

	z.mu.Lock()
	defer z.mu.Unlock()
	if err != nil {
		d.unwind(i, !w.cond().Open())
		return fmt.Errorf("finish of zone %d: %w", i, err)
	}
	d.limits.applyAt(i, evFinish, d.g.ZoneCapacity)
	return nil
}

// SetCond makes sequential zone i read-only or offline, as a failing device
// would, once nothing is in flight in it. It blocks. There is no way back but
// New: the condition is not stored.
func (d *Device) SetCond(i uint32, c Cond) error {
	var ev event
	switch c {
	case CondReadOnly:
		ev = evReadOnly
	case CondOffline:
		ev = evOffline
	default:
		panic("zns: SetCond to " + c.String())
	}
	switch {
	case i >= d.g.NrZones:
		return ErrInvalid
	case i < d.g.Conventional:
		return ErrConventional
	}
	return d.withZones(i, i+1, func([]uint32) error {
		z := &d.zones[i]
		z.mu.Lock()
		defer z.mu.Unlock()
		return d.limits.apply(i, ev)
	})
}
