package ublk

import (
	"syscall"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/zns"
)

// advance does with a request what its Target wants done, until somebody else
// has it or it is answered. After Work and Wait the request is not touched
// any more: it comes back through the mailbox.
func (q *queue) advance(r *request, s zns.Step) {
	for {
		switch s {
		case zns.Answer:
			q.answer(r)
			return
		case zns.IO, zns.Compare:
			if !q.startTransfer(r, s == zns.Compare) {
				return
			}
			s = q.target.End(&r.Request, r.data.err)
		case zns.Work:
			q.dev.workers.submit(r)
			return
		case zns.Wait:
			return
		default:
			panic("ublk: the target wants an unknown step")
		}
	}
}

// answer turns the outcome of a request into what the kernel wants to hear:
// all bytes or an errno, never part of them, and of an append where it went.
func (q *queue) answer(r *request) {
	if r.Err != nil {
		errno := errnoOf(r.Err)
		q.dev.logRefused(r, errno)
		q.finish(r, -int32(errno), 0)
		return
	}
	var addr uint64
	if r.op.op == zns.OpAppend {
		addr = uint64(sectorsOf(r.At))
		if q.dev.cfg.Answered != nil {
			q.answered = append(q.answered, r)
		}
	}
	q.finish(r, r.bytes, addr)
}

// finish gives the tag back to the kernel, once (I12).
func (q *queue) finish(r *request, result int32, addr uint64) {
	if !r.busy {
		panic("ublk: a tag was answered twice")
	}
	r.busy = false
	q.busy--
	if q.debug {
		q.dev.log.Debug("request", zap.Uint16("queue", q.id), zap.Uint16("tag", r.tag),
			zap.String("op", r.op.name), zap.Uint64("sector", uint64(sectorsOf(r.Start))),
			zap.Uint64("bytes", r.Len), zap.Bool("fua", r.FUA), zap.Int32("result", result),
			zap.Uint64("addr", addr))
	}
	if err := q.commit(r.tag, result, addr); err != nil {
		q.broken(err)
	}
}

// logRefused says which request failed and why, not more often than a human
// reads.
func (d *Device) logRefused(r *request, errno syscall.Errno) {
	if d.cfg.Known(r.Err) {
		return
	}
	ok, dropped := d.refused.allow()
	if !ok {
		return
	}
	fields := []zap.Field{
		zap.Int("device", d.id), zap.String("op", r.op.name),
		zap.Uint32("zone", d.geometry.ZoneOf(r.Start)),
		zap.Uint64("sector", uint64(sectorsOf(r.Start))), zap.Uint64("bytes", r.Len),
		zap.String("errno", unix.ErrnoName(errno)), zap.Error(r.Err),
	}
	if dropped > 0 {
		fields = append(fields, zap.Int("unlogged", dropped))
	}
	d.log.Warn("request failed", fields...)
}
