package qcow2

import (
	"sync/atomic"
	"time"
)

// Stats is what an image has done since it was opened, and the space that it
// takes now. Sizes are bytes.
type Stats struct {
	// Allocated is what is in use in the file. Of an image that is open
	// read-only it is the length of the file.
	Allocated int64
	// Quarantined is what reset zones have given up and rounds have not yet
	// made free.
	Quarantined int64

	Rounds RoundStats
	Syncs  SyncStats
	// TableReads are the pieces of mapping tables that were not in the cache
	// and have been read from the file.
	TableReads uint64
	// Failure is why the image takes no more writes (I8), "" while it does.
	Failure string
}

// RoundStats is about the rounds, which make write pointers durable.
type RoundStats struct {
	Rounds  uint64
	Flushes uint64 // calls of Round that they have served
	// Unasked are the rounds that nobody had asked for: those of the interval
	// and of the idle device, and those that make space free.
	Unasked  uint64
	Failed   uint64
	Pointers uint64 // that have moved
	// MetaBytes is what was written durably to zonedmeta, also by resets.
	MetaBytes uint64
	// Time is all of them together, Longest one of them, from the beginning
	// until who waited was answered.
	Time, Longest time.Duration
}

// SyncStats counts the fdatasyncs of the file and how long they took together.
type SyncStats struct {
	Syncs  uint64
	Failed uint64
	Time   time.Duration
}

// roundCounts is written by the syncer's goroutine alone.
type roundCounts struct {
	rounds, flushes, unasked, failed, pointers, metaBytes atomic.Uint64
	time, longest                                         atomic.Int64
}

// ended counts a round that has served flushes and moved pointers.
func (c *roundCounts) ended(flushes, pointers int, took time.Duration, err error) {
	c.rounds.Add(1)
	c.flushes.Add(uint64(flushes))
	c.pointers.Add(uint64(pointers))
	if flushes == 0 {
		c.unasked.Add(1)
	}
	if err != nil {
		c.failed.Add(1)
	}
	c.time.Add(int64(took))
	c.longest.Store(max(c.longest.Load(), int64(took)))
}

// syncCounts is written by whoever syncs.
type syncCounts struct {
	syncs, failed atomic.Uint64
	time          atomic.Int64
}

func (c *syncCounts) ended(took time.Duration, err error) {
	c.syncs.Add(1)
	if err != nil {
		c.failed.Add(1)
	}
	c.time.Add(int64(took))
}

// Stats may be called at any time, also after Close. It does no I/O.
func (im *Image) Stats() Stats {
	r := &im.syncer.counts
	s := Stats{
		Allocated:   im.Allocated(),
		Quarantined: im.alloc.quarantined() << im.clusterBits,
		Rounds: RoundStats{
			Rounds: r.rounds.Load(), Flushes: r.flushes.Load(), Unasked: r.unasked.Load(),
			Failed: r.failed.Load(), Pointers: r.pointers.Load(), MetaBytes: r.metaBytes.Load(),
			Time: time.Duration(r.time.Load()), Longest: time.Duration(r.longest.Load()),
		},
		TableReads: im.cache.reads.Load(),
	}
	if err := im.Failed(); err != nil {
		s.Failure = err.Error()
	}
	if f, ok := im.f.(*OSFile); ok {
		c := &f.counts
		s.Syncs = SyncStats{Syncs: c.syncs.Load(), Failed: c.failed.Load(), Time: time.Duration(c.time.Load())}
	}
	return s
}
