package zns

// event is what happens to a zone: the operations of the host and what the
// device does on its own.
type event uint8

const (
	evRead   event = iota
	evWrite        // a write or write-zeroes takes its range
	evAppend       // an append takes its range
	evOpen
	evClose
	evCloseUnwritten // close with nothing written and nothing in flight
	evFinish
	evReset
	evFill     // the committed write pointer has reached the capacity
	evEvict    // closed by the device to make room for another open zone
	evUnwind   // what activated the zone has failed and left nothing behind
	evReadOnly // administration
	evOffline  // administration
	nrEvents
)

// next is the zone state machine: the condition a zone in condition c has after
// ev, or why ev is refused. It knows nothing of counters, pointers or I/O.
//
// The rules are those of NVMe ZNS (2.2.2 Zone State Machine), with the reading
// that Linux's null_blk and zloop give them: closing a closed zone, finishing a
// full one and resetting an empty one succeed, closing an empty or full one is
// an error.
func next(c Cond, ev event) (Cond, error) {
	switch c {
	case CondNotWP:
		if ev == evRead || ev == evWrite {
			return c, nil
		}
		return c, ErrConventional
	case CondOffline:
		if ev == evOffline {
			return c, nil
		}
		return c, ErrOffline
	case CondReadOnly:
		switch ev {
		case evRead, evReadOnly:
			return c, nil
		case evOffline:
			return CondOffline, nil
		}
		return c, ErrReadOnly
	}

	// c is one of EMPTY, IMPLICIT OPEN, EXPLICIT OPEN, CLOSED, FULL.
	switch ev {
	case evRead:
		return c, nil
	case evWrite, evAppend:
		switch c {
		case CondFull:
			return c, ErrFull
		case CondExpOpen:
			return c, nil
		}
		return CondImpOpen, nil
	case evOpen:
		if c == CondFull {
			return c, ErrFull
		}
		return CondExpOpen, nil
	case evClose:
		if c.Active() {
			return CondClosed, nil
		}
	case evCloseUnwritten:
		if c.Open() {
			return CondEmpty, nil
		}
	case evFinish:
		return CondFull, nil
	case evReset:
		return CondEmpty, nil
	case evFill:
		if c.Active() {
			return CondFull, nil
		}
	case evEvict:
		if c == CondImpOpen {
			return CondClosed, nil
		}
	case evUnwind:
		if c == CondImpOpen || c == CondClosed {
			return CondEmpty, nil
		}
	case evReadOnly:
		return CondReadOnly, nil
	case evOffline:
		return CondOffline, nil
	}
	return c, ErrCond
}
