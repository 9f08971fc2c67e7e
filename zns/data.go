package zns

// locate checks a range of bytes on the device and returns its zone. Ranges
// are whole blocks and never cross a zone boundary.
func (d *Device) locate(off, n uint64) (uint32, error) {
	if n == 0 || (off|n)&uint64(d.g.BlockSize-1) != 0 || off >= d.g.Size || n > d.g.Size-off {
		return 0, ErrInvalid
	}
	if off&d.zoneMask+n > d.g.ZoneSize {
		return 0, ErrBoundary
	}
	return uint32(off >> d.shift), nil
}

// read plans a read: what lies below the committed write pointer comes from the
// media, the rest reads as zeros whatever the image file has there (I2, I6).
func (d *Device) read(r *Request) Step {
	i, err := d.locate(r.Start, r.Len)
	if err != nil {
		return answer(r, err)
	}
	if i < d.g.Conventional {
		return d.mapFast(r, r.Len)
	}
	z := &d.zones[i]
	z.mu.Lock()
	if z.gate != nil && z.gate.owned {
		z.mu.Unlock()
		return park(r)
	}
	w := d.words.load(i)
	if _, err := next(w.cond(), evRead); err != nil {
		z.mu.Unlock()
		return answer(r, err)
	}
	z.inflight++
	z.mu.Unlock()
	// A zone is not reset while a read is in flight, so the pointer can only
	// move up from here on.
	var n uint64
	if at := r.Start & d.zoneMask; at < w.wp() {
		n = min(w.wp()-at, r.Len)
	}
	return d.mapFast(r, n)
}

// write plans a write or write-zeroes.
func (d *Device) write(r *Request) Step {
	if d.readOnly {
		return answer(r, ErrDeviceRO)
	}
	i, err := d.locate(r.Start, r.Len)
	if err != nil {
		return answer(r, err)
	}
	return d.place(r, i)
}

// append plans a zone append: r.Start names the zone.
func (d *Device) append(r *Request) Step {
	if d.readOnly {
		return answer(r, ErrDeviceRO)
	}
	i, err := d.locate(r.Start, r.Len)
	switch {
	case err != nil:
	case i < d.g.Conventional:
		err = ErrConventional
	case r.Start&d.zoneMask != 0:
		err = ErrInvalid
	case r.Len > d.g.MaxAppend:
		err = ErrAppendSize
	}
	if err != nil {
		return answer(r, err)
	}
	return d.place(r, i)
}

// place gives a write, append or write-zeroes its range in zone i and its
// extents.
func (d *Device) place(r *Request, i uint32) Step {
	if i >= d.g.Conventional {
		if step, ok := d.again(r, i); ok {
			return step
		}
		z := &d.zones[i]
		z.mu.Lock()
		if z.gate != nil {
			z.mu.Unlock()
			return park(r)
		}
		err := d.reserve(r, i)
		z.mu.Unlock()
		if err != nil {
			return answer(r, err)
		}
	}
	if r.Op == OpWriteZeroes {
		r.flight.phase = zeroing
		return Work
	}
	return d.mapFast(r, r.Len)
}

// reserve validates r against the reserved pointer of sequential zone i and
// takes its range there. The caller moves the data and then commits or aborts
// by way of settle; no lock is held in between. z.mu is held.
func (d *Device) reserve(r *Request, i uint32) error {
	z := &d.zones[i]
	ev := evWrite
	if r.Op == OpAppend {
		ev = evAppend
	}
	w := d.words.load(i)
	if _, err := next(w.cond(), ev); err != nil {
		return err
	}
	at := w.wp()
	if z.tail != nil {
		at = (z.tail.At+z.tail.Len-1)&d.zoneMask + 1
	}
	switch {
	case at == d.g.ZoneCapacity: // or will be, when what is in flight has ended
		return ErrFull
	case r.Op != OpAppend && r.Start&d.zoneMask+r.flight.written != at:
		return ErrNotAtWP
	case r.Len-r.flight.written > d.g.ZoneCapacity-at:
		return ErrBoundary
	}
	d.limits.touch(z)
	if !w.cond().Open() {
		if err := d.limits.apply(i, ev); err != nil {
			return err
		}
		r.flight.opened = true
	}
	r.At = d.start(i) + at - r.flight.written
	z.push(r)
	z.inflight++
	return nil
}

// mapFast asks for the extents of the first n bytes of r's range if they are in
// memory; the rest reads as zeros.
func (d *Device) mapFast(r *Request, n uint64) Step {
	if n != 0 {
		ext, ok := d.media.Map(r.Extents, r.At, n, r.writes())
		if !ok {
			r.flight.mapped, r.flight.phase, r.Unmapped = n, mapping, true
			return Work
		}
		r.Extents = ext
	}
	return move(r, n)
}

// mapSlow is mapFast after it was told that it takes more.
func (d *Device) mapSlow(r *Request) Step {
	n := r.flight.mapped
	ext, err := d.media.MapSlow(r.Extents, r.At, n, r.writes())
	if err != nil {
		return d.end(r, err) // a reservation is undone like a failed I/O
	}
	r.Extents = ext
	return move(r, n)
}

// move completes the extents of r, whose first n bytes are mapped.
func move(r *Request, n uint64) Step {
	if n < r.Len {
		hole := int64(r.Len - n)
		if k := len(r.Extents) - 1; k >= 0 && r.Extents[k].Off == Hole {
			r.Extents[k].Len += hole
		} else {
			r.Extents = append(r.Extents, Extent{Off: Hole, Len: hole})
		}
	}
	r.flight.phase = moving
	if r.flight.again == comparing {
		return Compare
	}
	return IO
}

// writes reports whether r's range has to be fit for writing.
func (r *Request) writes() bool { return r.Op != OpRead && r.flight.again != comparing }
