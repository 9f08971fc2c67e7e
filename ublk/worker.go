package ublk

import (
	"sync"

	"github.com/qzbd/qzbd/zns"
)

// workers are the goroutines on which requests may block. There is always one
// free for the next request: they grow on demand up to the number of tags, so
// that blocked ones never hold up others, and are kept for reuse.
type workers struct {
	target Target
	max    int

	mu         sync.Mutex // guards what follows
	more       sync.Cond
	head, tail *request // to do, oldest first
	queued     int
	running    int
	busy       int // of those running, the ones that have a request
	closed     bool

	wg sync.WaitGroup
}

func newWorkers(t Target, max int) *workers {
	w := &workers{target: t, max: max}
	w.more.L = &w.mu
	return w
}

// submit hands a request over; it comes back through its queue's mailbox.
func (w *workers) submit(r *request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.next = nil
	if w.tail == nil {
		w.head = r
	} else {
		w.tail.next = r
	}
	w.tail = r
	w.queued++
	if w.queued > w.running-w.busy && w.running < w.max {
		w.running++
		w.wg.Add(1)
		go w.run()
	}
	w.more.Signal()
}

func (w *workers) run() {
	defer w.wg.Done()
	for {
		r := w.next()
		if r == nil {
			return
		}
		s := zns.Work
		for s == zns.Work {
			s = w.target.Work(&r.Request)
		}
		w.free()           // first: the answer may bring the next request
		if s != zns.Wait { // a waiting request comes back by its Wake
			r.step = s
			r.queue.post(r)
		}
	}
}

// next waits for a request, nil after close.
func (w *workers) next() *request {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.head == nil {
		if w.closed {
			return nil
		}
		w.more.Wait()
	}
	r := w.head
	if w.head = r.next; w.head == nil {
		w.tail = nil
	}
	r.next = nil
	w.queued--
	w.busy++
	return r
}

func (w *workers) free() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy--
}

// close ends the workers and waits for them. Nothing is submitted any more.
func (w *workers) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.more.Broadcast()
	w.wg.Wait()
}
