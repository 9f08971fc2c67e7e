// Package zns is the zone state machine of a host-managed zoned block device:
// which zone may be written where, how many may be open and active, and what a
// reader sees. It plans and never moves data.
//
//	                           EMPTY
//	                open  │             │  write, append, write-zeroes
//	                      ▼             ▼
//	            EXPLICIT OPEN ◄──open── IMPLICIT OPEN
//	                  │   ▲             ▲   │
//	            close │   │ open  write │   │ close, or evicted to make room
//	                  ▼   │             │   ▼
//	                  └────── CLOSED ───────┘
//
//	EMPTY, EXPLICIT OPEN, IMPLICIT OPEN, CLOSED ──finish──► FULL
//	EXPLICIT OPEN, IMPLICIT OPEN, CLOSED ──write pointer at the capacity──► FULL
//	each of them and FULL ──reset──► EMPTY
//	EXPLICIT OPEN with nothing written ──close──► EMPTY
//
//	open   = EXPLICIT OPEN + IMPLICIT OPEN    <= max_open_zones
//	active = open + CLOSED                    <= max_active_zones
//
// READ ONLY and OFFLINE are reached by administration only. Conventional zones
// are NOT WP for ever.
//
// The transitions are one pure function, [next]; the counters change in one
// place, limits.move.
//
// # The way of a request
//
//	Begin ──► validate, reserve [At, At+Len) ──► map ──► IO ──► End ──► commit ──► Answer
//	                 │ zone is busy               │ not in memory         │ lower ones in flight: Wait
//	                 └────────► Work ◄────────────┘                       │ FUA: Work
//
// A reservation takes the range at the reserved pointer; several may be in
// flight in one zone. They are committed, staged and answered in range order,
// so that whatever lies below the committed pointer has been written
// completely: reports and readers see only that one. A reservation that fails
// takes those above it along; the reserved pointer falls back to the committed
// one as soon as their I/O has ended.
//
// # Files
//
//	zone.go errors.go request.go media.go  the words: zones, refusals, requests,
//	                                       what a Device needs from below
//	transition.go limits.go                the state machine; counters, eviction
//	device.go state.go                     Begin, Work, End; a zone in memory
//	data.go commit.go manage.go            reads and writes; their end; open,
//	                                       close, finish, reset
//	journal.go                             what the successor of a killed
//	                                       process has to know
//	sync.go                                Do, the synchronous executor
//	stats.go                               all zones by condition
//
// # Locks
//
//	zone.mu    1  the reservations of a zone, its gate, its write pointer
//	limits.mu  2  every change of a condition, the counters, the set of
//	              implicitly open zones
//
// Neither is held across I/O or across a blocking call into the Media. Whoever
// has to wait does so on a channel of the zone's gate.
package zns
