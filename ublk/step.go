package ublk

import "github.com/qzbd/qzbd/zns"

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
		q.finish(r, -int32(errnoOf(r.Err)), 0)
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
	q.ended(r, result, addr)
	if err := q.commit(r.tag, result, addr); err != nil {
		q.broken(err)
	}
}
