package ublk

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/uring"
	"github.com/qzbd/qzbd/zns"
)

// Registered files of a queue's ring.
const (
	fileChar = iota // /dev/ublkcN
	fileData        // what extents refer to
)

// window is the number of a request's extents in flight at once. The ring is
// sized for it, so that its completion queue never overflows.
const window = 8

// queue is a hardware queue: the tags of one thread with one ring. Everything
// but the mailbox belongs to that thread.
type queue struct {
	id     uint16
	dev    *Device
	target Target
	ring   *uring.Ring
	debug  bool // checked once: a request must not pay for a log that is off

	charFD int
	// inMemory says that the data file is in a file system in memory: a read or
	// write is a copy, and waits at most for memory.
	inMemory bool
	zeroCopy bool // the driver registers the memory of requests
	// cpus are those whose requests come to this queue; none: any. The thread
	// keeps to them, so that a request is served where its data is in the cache.
	cpus   unix.CPUSet
	mapped []byte   // of charFD
	descs  []ioDesc // in mapped, written by the kernel
	tags   []request
	live   int        // tags that the kernel may still use
	busy   int        // tags whose requests are being served
	early  []*request // requests that came before the queue could serve them
	// answered are the appends that this turn hands over, for Config.Answered.
	answered []*request
	now      time.Duration // of this turn
	events   []event       // of this turn
	stats    *queueStats
	// commit hands the answer of a tag to the kernel and fetches the tag's
	// next request.
	commit func(tag uint16, result int32, addr uint64) error
	// copy moves data between a request of the kernel's and mem: copyAll.
	copy func(trap uintptr, r *request, at int, mem []byte) error

	bufs  buffers
	visit func(uring.CQE) // q.completed, bound once
	err   error           // the ring broke: the loop must end
	// Set by other goroutines, before a wake-up.
	quit    atomic.Bool // end at once
	leaving atomic.Bool // begin nothing, finish what has begun, end

	turns   atomic.Uint64 // how many the loop has done, for Pulse
	proceed chan bool     // whether to take the next step of beginQueue

	mailbox atomic.Pointer[request] // requests that come back, newest first
}

// request is what a tag carries. Its zns.Request belongs to the Target between
// Begin and Answer, the rest to the queue.
type request struct {
	zns.Request

	queue   *queue
	tag     uint16
	busy    bool // the kernel waits for an answer
	arrived time.Duration
	step    zns.Step
	op      *operation
	bytes   int32    // what success is answered with
	next    *request // in the mailbox or in the workers' list

	// unregistered: the driver was to register the buffer and could not.
	unregistered bool
	data         transfer
}

// newQueue makes the queue without anything of the kernel's.
func newQueue(d *Device, id uint16) *queue {
	q := &queue{
		id: id, dev: d, target: d.target, charFD: d.charFD,
		debug:   d.log.Core().Enabled(zap.DebugLevel),
		tags:    make([]request, d.cfg.Depth),
		events:  make([]event, 0, d.cfg.Depth),
		stats:   new(queueStats),
		proceed: make(chan bool, 1),
	}
	q.commit, q.copy = q.submitCommit, q.copyAll
	q.visit = q.completed
	for i := range q.tags {
		r := &q.tags[i]
		r.queue, r.tag = q, uint16(i)
		r.Extents = make([]zns.Extent, 0, window)
		r.Wake = func(z *zns.Request) {
			r.step = z.Next
			q.post(r)
		}
		if d.cfg.Slot != nil {
			d.cfg.Slot(int(id), i, &r.Request)
		}
	}
	return q
}

// open makes the ring and maps the memory. It is called on the queue's thread.
func (q *queue) open() error {
	depth := len(q.tags)
	// A tag is either with the kernel or has up to window extents in flight;
	// there are twice as many CQEs as SQEs.
	entries := min(1<<bits.Len(uint(depth*window/2+controlEntries)), uring.MaxEntries)
	ring, err := uring.New(uint32(entries), uring.SingleIssuer)
	if err != nil {
		return err
	}
	q.ring = ring
	if err := ring.RegisterFiles(q.charFD, q.dev.cfg.DataFD); err != nil {
		return fmt.Errorf("ublk: register %s and the data file with descriptor %d: %w", CharPath(q.dev.id), q.dev.cfg.DataFD, err)
	}
	if q.zeroCopy = q.dev.ZeroCopy(); q.zeroCopy {
		if err := ring.RegisterBuffers(depth); err != nil {
			return err
		}
	}
	if q.inMemory, err = isInMemory(q.dev.cfg.DataFD); err != nil {
		return err
	}
	if err := q.bufs.open(depth, q.dev.cfg.MaxIO); err != nil {
		return err
	}
	if err := q.bufs.lock(); err != nil && q.id == 0 { // it serves all the same; the others say the same
		q.dev.log.Warn("buffers can be swapped out", zap.Int("device", q.dev.id), zap.Error(err))
	}
	return nil
}

// openDescs maps the descriptors that the kernel writes for this queue.
func (q *queue) openDescs() error {
	depth := len(q.tags)
	b, err := unix.Mmap(q.charFD, int64(q.id)*descShare, roundup(depth*ioDescSize, os.Getpagesize()),
		unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("ublk: map the descriptors of queue %d: %w", q.id, err)
	}
	q.mapped, q.descs = b, unsafe.Slice((*ioDesc)(unsafe.Pointer(&b[0])), depth)
	return nil
}

func roundup(n, to int) int { return (n + to - 1) / to * to }

// close frees what open and openDescs made. The kernel then takes back what it
// still expects of this queue.
func (q *queue) close() {
	if q.ring != nil {
		q.ring.Close()
	}
	if q.mapped != nil {
		// Before the device is deleted: the mapping holds the char device.
		unix.Munmap(q.mapped)
		q.mapped, q.descs = nil, nil
	}
	if q.busy == 0 {
		q.bufs.close()
	}
	// Otherwise I/O may be in flight that the kernel has not cancelled yet:
	// its memory must not become somebody else's.
}

// beginQueue are the steps to a queue that serves. All queues of a device take
// each of them together: what can fail in this process fails before the kernel
// knows of any queue. The descriptors are mapped last, because Linux 6.12 lets
// nobody else map them after a server that died between the two
// (ublk_device.mm is reset only for a device whose queues were fetched).
var beginQueue = []func(*queue) error{(*queue).open, (*queue).fetch, (*queue).openDescs}

// run serves the queue until the kernel has taken all tags back, until it is
// left, or until something breaks; close has to follow, on the same thread. ready
// is told how each of the first steps ended.
//
// ublk binds a tag to the thread that fetched it, and takes the end of that
// thread for the death of the server: the goroutine keeps its thread for life
// and lives as long as there are tags.
func (q *queue) run(ready chan<- error) error {
	runtime.LockOSThread()                 // never unlocked: the thread ends with the goroutine
	if err := keepTo(q.cpus); err != nil { // then any other will do
		q.dev.log.Debug("keep a queue to its CPUs", zap.Uint16("queue", q.id), zap.Error(err))
	}
	for _, step := range beginQueue {
		err := step(q)
		ready <- err
		if err != nil || !<-q.proceed {
			return nil
		}
	}
	if err := q.loop(); err != nil {
		return fmt.Errorf("ublk: queue %d: %w", q.id, err)
	}
	return nil
}

// keepTo keeps the calling thread to those of the CPUs that it may run on. If there
// is none of them, it stays where it was put.
func keepTo(cpus unix.CPUSet) error {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return err
	}
	for i := range may {
		cpus[i] &= may[i]
	}
	if cpus.Count() == 0 {
		return nil
	}
	return unix.SchedSetaffinity(0, &cpus)
}

func (q *queue) loop() error {
	q.now = q.dev.clock()
	for _, r := range q.early {
		q.serve(r)
	}
	q.early = nil
	q.tellEvents()
	for q.live > 0 {
		if err := q.turn(); err != nil {
			return err
		}
		q.turns.Add(1)
		if q.quit.Load() {
			return nil
		}
		if q.leaving.Load() && q.busy == 0 {
			return q.ring.Submit() // the last answers
		}
	}
	return nil
}

// fetch fetches every tag with one system call, so that no death of the server
// leaves a part of them fetched. The kernel refuses a fetch at once or not at
// all.
func (q *queue) fetch() error {
	for tag := range q.tags {
		if err := q.command(ioFetchReq, ioCmd{QID: q.id, Tag: uint16(tag), Result: -1}); err != nil {
			return err
		}
		q.live++
	}
	if err := q.ring.Submit(); err != nil {
		return err
	}
	q.ring.ForEach(q.visit)
	return q.err
}

// turn is one round of the loop: one system call hands over all that the last
// turn queued and waits for more.
func (q *queue) turn() error {
	if len(q.answered) > 0 {
		if err := q.tell(); err != nil {
			return err
		}
	}
	if err := q.ring.SubmitAndWait(1); err != nil {
		return err
	}
	q.now = q.dev.clock()
	q.ring.ForEach(q.visit)
	q.collect()
	q.tellEvents()
	return q.err
}

// tell hands over the answers without waiting, and says so before a death of
// the server can leave them in doubt for longer than this takes.
func (q *queue) tell() error {
	if err := q.ring.Submit(); err != nil {
		return err
	}
	for _, r := range q.answered {
		q.dev.cfg.Answered(&r.Request)
	}
	q.answered = q.answered[:0]
	return nil
}

// What the data of an SQE says about its CQE: what it is about, the slot of a
// transfer, the tag.
const (
	aboutTag   = iota << 56 // a fetch, or a commit and fetch
	aboutData  = iota << 56
	aboutMask  = 0xff << 56
	slotOff    = 16
	tagDataMax = 1<<16 - 1
)

// completed handles one CQE.
func (q *queue) completed(c uring.CQE) {
	r := &q.tags[c.Data&tagDataMax]
	switch c.Data & aboutMask {
	case aboutTag:
		q.fetched(r, c.Res)
	case aboutData:
		q.moved(r, int(c.Data>>slotOff&(window-1)), c.Res)
	}
}

// fetched handles the kernel's word about a tag: a request, or the end.
func (q *queue) fetched(r *request, res int32) {
	switch res {
	case ioResOK:
		switch {
		case q.leaving.Load(): // it is issued again to the next server
		case q.descs == nil:
			q.early = append(q.early, r)
		default:
			q.serve(r)
		}
	case ioResAbort:
		q.live--
	default:
		// Not an error of a request: the kernel refused the command itself.
		q.broken(fmt.Errorf("the kernel refused a command for tag %d: %w", r.tag, syscall.Errno(-res)))
	}
}

// broken ends the loop after this turn: the ring or the kernel failed in a way
// that no request can be answered for.
func (q *queue) broken(err error) {
	if q.err == nil && err != nil {
		q.err = err
	}
}

// command queues an I/O command.
func (q *queue) command(op uint32, cmd ioCmd) error {
	return q.ring.Cmd(uring.Fixed(fileChar), op, (*[16]byte)(unsafe.Pointer(&cmd)), q.bufAddr(cmd.Tag), aboutTag|uint64(cmd.Tag))
}

func (q *queue) submitCommit(tag uint16, result int32, addr uint64) error {
	return q.command(ioCommitAndFetchReq, ioCmd{QID: q.id, Tag: tag, Result: result, Addr: addr})
}

// post gives a request back to its queue, from any goroutine. Only the first
// of a burst pays for the wake-up: the queue takes all there are.
func (q *queue) post(r *request) {
	for {
		newest := q.mailbox.Load()
		r.next = newest
		if q.mailbox.CompareAndSwap(newest, r) {
			if newest == nil {
				q.ring.Wake()
			}
			return
		}
	}
}

// collect goes on with the requests that were posted, in their order.
func (q *queue) collect() {
	if q.mailbox.Load() == nil {
		return
	}
	var oldest *request
	for r := q.mailbox.Swap(nil); r != nil; {
		older := r.next
		r.next, oldest = oldest, r
		r = older
	}
	for r := oldest; r != nil; {
		next := r.next
		r.next = nil
		q.advance(r, r.step)
		r = next
	}
}

// abort ends the loop from another goroutine, requests or not.
func (q *queue) abort() {
	q.quit.Store(true)
	if q.ring != nil {
		q.ring.Wake()
	}
}

// leave ends the loop from another goroutine, after the requests in flight.
func (q *queue) leave() {
	q.leaving.Store(true)
	q.ring.Wake()
}

var errTooLarge = errors.New("the request is larger than the device's largest")
