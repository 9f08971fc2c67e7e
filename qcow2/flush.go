package qcow2

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultSyncInterval is a sensible Options.SyncInterval: what nobody flushes
// is durable after that time, and clusters of reset zones are free after twice
// that time.
const DefaultSyncInterval = 5 * time.Second

// idleTime is how long nothing must have changed for a round to run before the
// interval is over. It is noticed within twice that time.
const idleTime = 250 * time.Millisecond

const (
	zonesPerSector = sectorSize / 8
	// maxMetaSectors bounds one write of zonedmeta. The most zones that a
	// device can have are in one.
	maxMetaSectors = 256
)

// syncer is the one goroutine that makes things durable. It is the only writer
// of zonedmeta, so that at most one write per sector is in flight, and a reset
// never falls into a round: none can bring a reset zone's old pointer back.
// Whoever comes while a round runs is served by the next one.
type syncer struct {
	im   *Image
	kick chan struct{} // cap 1: somebody waits
	quit chan struct{}
	done chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex // guards what follows; never held across I/O; order: 3
	stopped bool
	flushes []chan error
	drains  []chan error // wait for the round's quarantine as well
	resets  []resetWait

	counts roundCounts

	moves []move // the goroutine's own buffer

	// For rounds that nobody has asked for. While the timer runs, a change
	// costs an addition; the first one afterwards starts it again, so that
	// neither a busy nor an idle device is woken for each change.
	interval time.Duration // 0: there are none
	changes  atomic.Uint64
	watching atomic.Bool   // the timer runs, or nobody wants it to
	begun    chan struct{} // cap 1: it is to be started
	timer    *time.Timer
	seen     uint64    // changes at the last look
	since    time.Time // what has changed before has been in a round
}

type resetWait struct {
	zones []uint32
	err   chan error
}

func (s *syncer) start(im *Image, interval time.Duration) {
	s.im, s.interval = im, interval
	s.kick, s.begun = make(chan struct{}, 1), make(chan struct{}, 1)
	s.quit, s.done = make(chan struct{}), make(chan struct{})
	s.timer = time.NewTimer(idleTime)
	s.timer.Stop()
	s.watching.Store(interval <= 0)
	go s.run()
}

// stop ends the goroutine. Nobody waits for it any more.
func (s *syncer) stop() {
	s.mu.Lock()
	again := s.stopped
	s.stopped = true
	s.mu.Unlock()
	if !again {
		close(s.quit)
	}
	<-s.done
}

func (s *syncer) run() {
	defer close(s.done)
	defer s.timer.Stop()
	for {
		select {
		case <-s.kick:
			s.serve(false)
		case <-s.begun:
			s.since = time.Now()
			s.watch()
		case <-s.timer.C:
			s.look()
		case <-s.quit:
			s.mu.Lock()
			defer s.mu.Unlock()
			answer(s.flushes, errClosed)
			answer(s.drains, errClosed)
			for _, r := range s.resets {
				r.err <- errClosed
			}
			return
		}
	}
}

// changed notes that something waits for a round.
func (s *syncer) changed() {
	s.changes.Add(1)
	if !s.watching.Load() && s.watching.CompareAndSwap(false, true) {
		s.begun <- struct{}{} // there is room: it was taken before watching ended
	}
}

// look runs a round if nothing has changed since the last look, or if what has
// changed first has waited for the interval.
func (s *syncer) look() {
	if s.im.Failed() != nil {
		return // no round will help
	}
	if !s.waiting() {
		s.watching.Store(false)
		// What came in between has not started the timer.
		if !s.waiting() || !s.watching.CompareAndSwap(false, true) {
			return
		}
	}
	if s.changes.Load() == s.seen || time.Since(s.since) >= s.interval {
		s.serve(true)
	}
	s.watch()
}

// watch has the next look come when the device may be idle or the interval is
// over.
func (s *syncer) watch() {
	s.seen = s.changes.Load()
	s.timer.Reset(min(idleTime, max(s.interval-time.Since(s.since), 0)))
}

// waiting reports whether a round had something to do.
func (s *syncer) waiting() bool {
	return s.im.attached.Load() && (s.im.pointers.pending() || s.im.alloc.waiting())
}

// ask queues a wait with add and returns its outcome.
func (s *syncer) ask(add func(c chan error)) error {
	c := make(chan error, 1)
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return errClosed
	}
	add(c)
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
	default: // it is coming anyway
	}
	return <-c
}

func (s *syncer) flush() error {
	return s.ask(func(c chan error) { s.flushes = append(s.flushes, c) })
}

// drain is a round that has also dealt with its quarantine when it returns.
func (s *syncer) drain() error {
	return s.ask(func(c chan error) { s.drains = append(s.drains, c) })
}

func (s *syncer) reset(zones []uint32) error {
	return s.ask(func(c chan error) { s.resets = append(s.resets, resetWait{zones, c}) })
}

func answer(waiting []chan error, err error) {
	for _, c := range waiting {
		c <- err
	}
}

// serve does whatever has been asked for up to now.
func (s *syncer) serve(background bool) {
	s.mu.Lock()
	flushes, drains, resets := s.flushes, s.drains, s.resets
	s.flushes, s.drains, s.resets = nil, nil, nil
	s.mu.Unlock()
	if len(resets) != 0 {
		err := s.resetPointers(resets)
		for _, r := range resets {
			r.err <- err
		}
	}
	if len(flushes)+len(drains) != 0 || background && s.waiting() {
		s.round(flushes, drains)
	}
}

// Round makes durable whatever was completed and staged before the call (I1).
// Concurrent calls share rounds. Where no pointer has moved the file is synced
// all the same, as a drive does it whenever it is asked: overwrites of
// conventional zones move none, and only the host knows what it has not written
// back. Before the first change there is nothing to sync.
func (im *Image) Round() error {
	if im.readOnly {
		return nil
	}
	if err := im.Failed(); err != nil {
		return err
	}
	if !im.attached.Load() {
		if !im.pointers.pending() {
			return nil // nothing has been written since the image was opened
		}
		im.lock()
		err := im.attach()
		im.unlock()
		if err != nil {
			return err
		}
	}
	return im.syncer.flush()
}

// round is the only way of a write pointer to the disk but a reset.
func (s *syncer) round(flushes, drains []chan error) {
	im := s.im
	// 1. Choose what the sync is going to cover: the pointers, the clusters
	//    whose entries have been cleared and those that have been punched.
	s.since = time.Now()
	s.moves = im.pointers.capture(s.moves)
	freed, punched := im.alloc.takeQuarantine()
	// 2. Data, mappings and holes become durable (I2, I4).
	err := im.Failed()
	if err == nil {
		if err = im.f.Sync(); err != nil {
			err = im.fail(fmt.Errorf("flush: %w", err)) // I8
		}
	}
	// 3. The pointers that they cover follow (I1, I3).
	if err == nil {
		err = s.publish(s.moves)
	}
	// 4. Whoever flushed has what they asked for.
	s.counts.ended(len(flushes), len(s.moves), time.Since(s.since), err)
	answer(flushes, err)
	// 5. What no durable entry refers to is punched; the next sync makes the
	//    holes durable, as this one has made those of the last round (I4, I6).
	if err == nil {
		err = im.advanceQuarantine(freed, punched)
	}
	answer(drains, err)
}

// publish makes moved pointers durable.
func (s *syncer) publish(moves []move) error {
	im := s.im
	// Zones that leave the set of active ones are durable before zones that
	// enter it (I15). One sector changes at once, so it needs no order.
	var later []move
	if im.maxActive != 0 {
		var leaves, enters bool
		for _, m := range moves {
			leaves = leaves || im.active(m.zone, im.pointers.synced(m.zone)) && !im.active(m.zone, m.wp)
			enters = enters || im.enters(m)
		}
		if leaves && enters && sectorOf(moves[0]) != sectorOf(moves[len(moves)-1]) {
			later = slices.DeleteFunc(slices.Clone(moves), func(m move) bool { return !im.enters(m) })
			moves = slices.DeleteFunc(moves, im.enters)
		}
	}
	for _, part := range [...][]move{moves, later} {
		im.pointers.publish(part)
		if err := s.writeSectors(part); err != nil {
			return err
		}
	}
	return nil
}

// resetPointers makes the pointers of the zones of all waits durable at their
// start.
func (s *syncer) resetPointers(waits []resetWait) error {
	im := s.im
	if err := im.Failed(); err != nil {
		return err
	}
	var moves, old []move
	for _, w := range waits {
		for _, zone := range w.zones {
			start, was := im.zoneStart(zone), im.pointers.durable(zone)
			if im.pointers.reset(zone, start) {
				moves, old = append(moves, move{zone, start}), append(old, move{zone, was})
			}
		}
	}
	slices.SortFunc(moves, func(a, b move) int { return int(a.zone) - int(b.zone) })
	err := s.writeSectors(moves)
	if err != nil {
		im.pointers.publish(old) // nothing is written any more, but what is there can be read
	}
	return err
}

// sectorOf returns which sector of zonedmeta holds the pointer.
func sectorOf(m move) int64 { return int64(m.zone) / zonesPerSector }

// writeSectors makes the sectors of zonedmeta durable that hold the pointers of
// moves, which are in the order of their zones. It is one write from the first
// to the last: what lies between is the same as on disk, and costs less than to
// wait for the disk once more.
func (s *syncer) writeSectors(moves []move) error {
	for len(moves) > 0 {
		first := sectorOf(moves[0])
		last := first
		for len(moves) > 0 && sectorOf(moves[0]) < first+maxMetaSectors {
			last = sectorOf(moves[0])
			moves = moves[1:]
		}
		if err := s.writeMeta(first, last+1-first); err != nil {
			return err
		}
	}
	return nil
}

// writeMeta writes n sectors of zonedmeta durably.
func (s *syncer) writeMeta(sector, n int64) error {
	im := s.im
	at, length := sector*sectorSize, n*sectorSize
	if err := im.f.WriteDurable(im.pointers.meta[at:at+length], im.header().Zoned.MetaOffset+at); err != nil {
		return im.fail(fmt.Errorf("write zonedmeta: %w", err)) // I8
	}
	s.counts.metaBytes.Add(uint64(length))
	return nil
}

// takeQuarantine takes all clusters in quarantine.
func (a *allocator) takeQuarantine() (freed, punched []run) {
	a.mu.Lock()
	defer a.mu.Unlock()
	freed, punched = a.freed, a.punched
	a.freed, a.punched = nil, nil
	a.moving = sumRuns(freed) + sumRuns(punched)
	return freed, punched
}

// advanceQuarantine brings clusters one step on, after a sync that covers what
// was done to them.
func (im *Image) advanceQuarantine(freed, punched []run) error {
	a := &im.alloc
	a.mu.Lock()
	for _, r := range punched {
		a.moving -= r.n
		if err := a.addClean(r); err != nil {
			a.mu.Unlock()
			return im.fail(err)
		}
	}
	a.mu.Unlock()
	freed = mergeRuns(freed)
	for len(freed) > 0 {
		r := freed[0]
		err := im.punch(freed[:1])
		freed = freed[1:]
		a.mu.Lock()
		a.moving -= r.n
		if err == nil {
			a.punched = append(a.punched, r)
		} else if !a.unclean.add(r) { // tried again when it is needed
			a.mu.Unlock()
			return im.fail(fmt.Errorf("image is corrupt: one of the %d clusters from %d was in use twice", r.n, r.start))
		}
		a.mu.Unlock()
	}
	return nil
}
