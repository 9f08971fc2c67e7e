package zns

// end takes r's outcome after its I/O, or after what should have led to it has
// failed.
func (d *Device) end(r *Request, err error) Step {
	i := uint32(r.At >> d.shift)
	switch {
	case i < d.g.Conventional:
		return conclude(r, err)
	case r.Op == OpRead:
		z := &d.zones[i]
		z.mu.Lock()
		z.leave(1)
		z.mu.Unlock()
		return answer(r, err)
	}
	if r.flight.again != notAgain {
		return d.endAgain(r, i, err)
	}
	return d.settle(r, i, err)
}

// conclude answers r, which is in no list any more, or sends it to the round
// that its FUA asks for.
func conclude(r *Request, err error) Step {
	if err == nil && r.FUA && r.Op != OpRead {
		r.flight = flight{phase: rounding}
		return Work
	}
	return answer(r, err)
}

// settle ends the reservation of r in zone i and commits what is complete from
// the lowest reservation in flight upwards. Requests leave in range order: one
// whose predecessors are in flight has to wait (a pointer must never pass
// bytes that are not written, I2).
//
// If r has failed, everything above it fails with it: those requests end their
// I/O and are answered ErrAborted, and until the last of them has, no new write
// enters the zone, because it would take a range that they are still writing.
func (d *Device) settle(r *Request, i uint32, err error) Step {
	z := &d.zones[i]
	z.mu.Lock()
	r.flight.ended = true
	r.flight.phase = waiting
	if err != nil && r.Err == nil {
		r.Err = err
		for q := r; q != z.tail; {
			q = q.flight.next
			q.Err = ErrAborted
		}
	}
	done := d.retire(z, i)
	if z.tail != nil && z.tail.Err != nil && z.gate == nil {
		z.gate = &gate{open: make(chan struct{})}
	}
	z.mu.Unlock()

	// r must not be looked at any more unless it is among the done.
	step := Wait
	for q := done; q != nil; {
		nextq := q.flight.next
		if s := conclude(q, q.Err); q == r {
			step = s
		} else {
			q.Next = s
			q.Wake(q)
		}
		q = nextq
	}
	return step
}

// retire takes the ended reservations off the lower end of zone i's list,
// moves the committed pointer to the end of the last good one and stages it.
// It returns those requests, linked by flight.next. z.mu is held.
func (d *Device) retire(z *zone, i uint32) (first *Request) {
	var last *Request
	var n uint32
	old := d.words.load(i).wp()
	wp := old
	for z.tail != nil && z.tail.flight.next.flight.ended {
		q := z.pop()
		n++
		if q.Err == nil {
			wp += q.Len - q.flight.written
			d.journal.commit(q)
		} else if z.tail != nil && q.flight.opened {
			z.tail.flight.opened = true // the last one to leave clears up
		}
		if last == nil {
			first = q
		} else {
			last.flight.next = q
		}
		last = q
	}
	if wp != old {
		d.commit(z, i, wp)
	}
	if n != 0 && z.tail == nil && last.Err != nil {
		d.unwind(i, last.flight.opened)
		if g := z.gate; g != nil && !g.owned {
			z.gate = nil
			close(g.open)
		}
	}
	z.leave(n)
	return first
}

// commit moves the committed pointer of zone i to wp bytes from its start and
// stages it. z.mu is held, so that pointers are staged in order.
func (d *Device) commit(z *zone, i uint32, wp uint64) {
	d.media.Stage(i, d.start(i)+wp)
	if wp == d.g.ZoneCapacity {
		d.limits.applyAt(i, evFill, wp)
	} else {
		d.words.setWP(i, wp)
		if d.limits.watch != nil {
			d.limits.moved(i, wp)
		}
	}
}

// unwind gives zone i back what a failed reservation took for it: a zone that
// has nothing written is empty again unless the host has opened it, and a zone
// that was opened for the reservation is closed (I11). Nothing is in flight in
// the zone but reads. z.mu is held.
func (d *Device) unwind(i uint32, opened bool) {
	ev := evUnwind
	if d.words.load(i).wp() != 0 {
		if !opened {
			return
		}
		ev = evEvict
	}
	_ = d.limits.apply(i, ev) // refused: the host or an eviction has been there
}
