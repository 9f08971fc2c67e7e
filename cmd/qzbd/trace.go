package main

import (
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/qzbd/qzbd/zns"
)

// traceNames are what --trace takes.
var traceNames = []string{"zones"}

// traceQueue is how many events wait to be logged before further ones are
// dropped: half a megabyte, some milliseconds of the fastest writer.
const traceQueue = 1 << 13

// zoneTrace logs a line for every change of a zone. The zones report to it with
// locks held, so it never waits: what the log cannot keep up with is dropped
// and counted.
type zoneTrace struct {
	zoneSize uint64
	log      *zap.Logger
	events   chan zns.Event
	dropped  atomic.Uint64 // since the last line
	done     chan struct{} // closed when everything is logged
}

func startZoneTrace(zoneSize uint64, log *zap.Logger) *zoneTrace {
	t := &zoneTrace{zoneSize: zoneSize, log: log, events: make(chan zns.Event, traceQueue), done: make(chan struct{})}
	go t.run()
	return t
}

// add never blocks and does not allocate.
func (t *zoneTrace) add(e zns.Event) {
	select {
	case t.events <- e:
	default:
		t.dropped.Add(1)
	}
}

func (t *zoneTrace) run() {
	defer close(t.done)
	for e := range t.events {
		t.write(e)
	}
}

func (t *zoneTrace) write(e zns.Event) {
	if n := t.dropped.Swap(0); n > 0 {
		t.log.Warn("zone trace is incomplete: the log is slower than the zones", zap.Uint64("dropped", n))
	}
	t.log.Info("zone",
		zap.Uint32("zone", e.Zone), zap.Stringer("from", e.From), zap.Stringer("to", e.To),
		zap.Uint64("wp", e.WP), zap.Uint64("written", e.WP-uint64(e.Zone)*t.zoneSize),
		zap.Uint32("open", e.Open), zap.Uint32("active", e.Active))
}

// close logs what is left. Nothing is added any more.
func (t *zoneTrace) close() {
	close(t.events)
	<-t.done
	if n := t.dropped.Swap(0); n > 0 {
		t.log.Warn("zone trace is incomplete: the log is slower than the zones", zap.Uint64("dropped", n))
	}
}
