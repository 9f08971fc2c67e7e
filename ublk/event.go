package ublk

import (
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/qzbd/qzbd/zns"
)

// event is what there is to tell of a request that has been answered. There is
// one for each, and all that tells of requests comes from here: statistics, the
// line per request of the debug level, the line about an error. It is a copy,
// because the request may be another one before it is told.
type event struct {
	op       *operation
	arrived  time.Duration // by the queue's clock
	start    uint64        // bytes
	len      uint64        // bytes
	addr     uint64
	err      error
	result   int32
	tag      uint16
	fua      bool
	unmapped bool
}

// clock is read when a turn of the loop has something to do, and at its end if
// something was answered: never for a single request.
func (d *Device) clock() time.Duration { return time.Since(d.born) }

// ended notes an event for the end of the turn.
func (q *queue) ended(r *request, result int32, addr uint64) {
	if len(q.events) == cap(q.events) {
		q.tellEvents()
	}
	q.events = append(q.events, event{
		op: r.op, arrived: r.arrived, start: r.Start, len: r.Len, addr: addr, err: r.Err,
		result: result, tag: r.tag, fua: r.FUA, unmapped: r.Unmapped,
	})
}

// tellEvents is the one place where what was answered becomes known.
func (q *queue) tellEvents() {
	if len(q.events) == 0 {
		return
	}
	now := q.dev.clock()
	for i := range q.events {
		e := &q.events[i]
		took := now - e.arrived
		q.stats.ended(e, took)
		if e.err != nil {
			q.dev.logRefused(e)
		}
		if q.debug {
			q.logRequest(e, took)
		}
		e.err = nil
	}
	q.events = q.events[:0]
}

// logRequest is the debug level's line.
func (q *queue) logRequest(e *event, took time.Duration) {
	q.dev.log.Debug("request", zap.Uint16("queue", q.id), zap.Uint16("tag", e.tag),
		zap.String("op", e.op.name), zap.Uint64("sector", uint64(sectorsOf(e.start))),
		zap.Uint64("bytes", e.len), zap.Bool("fua", e.fua), zap.Int32("result", e.result),
		zap.Uint64("addr", e.addr), zap.Duration("took", took))
}

// logRefused says which request failed and why, not more often than a human
// reads.
func (d *Device) logRefused(e *event) {
	if d.cfg.Known(e.err) {
		return
	}
	ok, dropped := d.refused.allow()
	if !ok {
		return
	}
	fields := []zap.Field{zap.String("op", e.op.name), zap.String("errno", statErrnos[classOf(syscall.Errno(-e.result))].name)}
	if e.op.op != zns.OpFlush && e.op.op != zns.OpResetAll { // those are about the whole device
		fields = append(fields, zap.Uint32("zone", d.geometry.ZoneOf(e.start)),
			zap.Uint64("sector", uint64(sectorsOf(e.start))), zap.Uint64("bytes", e.len))
	}
	fields = append(fields, zap.Error(e.err))
	if dropped > 0 {
		fields = append(fields, zap.Int("unlogged", dropped))
	}
	d.log.Warn("request failed", fields...)
}
