package ublk

import (
	"syscall"

	"github.com/qzbd/qzbd/zns"
)

// operation is a row of the table of what the kernel may ask for.
type operation struct {
	name  string
	op    zns.Op
	stat  int // row of the statistics
	serve func(*queue, *request, ioDesc)
}

// operations are indexed by UBLK_IO_OP_*. What is not there is refused.
var operations = [opMask + 1]operation{
	opRead:         {"read", zns.OpRead, statRead, (*queue).move},
	opWrite:        {"write", zns.OpWrite, statWrite, (*queue).move},
	opZoneAppend:   {"append", zns.OpAppend, statAppend, (*queue).move},
	opWriteZeroes:  {"write-zeroes", zns.OpWriteZeroes, statWriteZeroes, (*queue).zeroes},
	opFlush:        {"flush", zns.OpFlush, statFlush, (*queue).whole},
	opZoneOpen:     {"open", zns.OpOpen, statOpen, (*queue).manage},
	opZoneClose:    {"close", zns.OpClose, statClose, (*queue).manage},
	opZoneFinish:   {"finish", zns.OpFinish, statFinish, (*queue).manage},
	opZoneReset:    {"reset", zns.OpReset, statReset, (*queue).manage},
	opZoneResetAll: {"reset-all", zns.OpResetAll, statResetAll, (*queue).whole},
	opReportZones:  {"report", 0, statReport, (*queue).report},
}

var unknown = operation{"unknown", 0, statUnknown, (*queue).refuse}

// serve takes the request that the kernel put into the tag's descriptor.
func (q *queue) serve(r *request) {
	if r.busy {
		panic("ublk: the kernel handed out a tag that is in use")
	}
	d := q.descs[r.tag] // once: the kernel's memory
	r.busy = true
	q.busy++
	r.arrived = q.now
	r.op = &operations[d.OpFlags&opMask]
	if r.op.serve == nil {
		r.op = &unknown
	}
	q.stats[r.op.stat].begun.add(1)
	r.Op, r.FUA = r.op.op, d.OpFlags&flagFUA != 0
	r.unregistered = d.OpFlags&flagNeedRegBuf != 0
	r.Start, r.Len, r.bytes = 0, 0, 0
	r.At, r.Err, r.Next = 0, nil, zns.Answer
	r.Unmapped, r.Extents = false, r.Extents[:0]
	r.op.serve(q, r, d)
}

// move is a read, write or append: its data fits a buffer.
func (q *queue) move(r *request, d ioDesc) {
	r.Start, r.Len = d.StartSector.bytes(), sector(d.NrSectors).bytes()
	if r.Len > uint64(q.dev.cfg.MaxIO) {
		r.Err = errTooLarge
		q.answer(r)
		return
	}
	r.bytes = int32(r.Len)
	q.advance(r, q.target.Begin(&r.Request))
}

// zeroes has a range and no data.
func (q *queue) zeroes(r *request, d ioDesc) {
	r.Start, r.Len = d.StartSector.bytes(), sector(d.NrSectors).bytes()
	r.bytes = int32(min(r.Len, maxWriteZeroes))
	q.advance(r, q.target.Begin(&r.Request))
}

// manage is about the zone that begins at the start sector; the kernel gives
// no length.
func (q *queue) manage(r *request, d ioDesc) {
	r.Start = d.StartSector.bytes()
	q.advance(r, q.target.Begin(&r.Request))
}

// whole is about the whole device; the start sector of a flush is 2^64-1.
func (q *queue) whole(r *request, _ ioDesc) {
	q.advance(r, q.target.Begin(&r.Request))
}

func (q *queue) refuse(r *request, d ioDesc) {
	q.finish(r, -int32(syscall.EOPNOTSUPP), 0)
}
