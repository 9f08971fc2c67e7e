package uring

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/pawelgaczynski/giouring"
)

// Flags choose the shape of a ring.
type Flags uint8

const (
	// SingleIssuer promises that one thread creates, submits to and reaps
	// the ring. Completions then wait until that thread asks for them
	// (IORING_SETUP_SINGLE_ISSUER and DEFER_TASKRUN, Linux 6.1; older
	// kernels get an ordinary ring). The goroutine must be locked to its
	// thread before New.
	SingleIssuer Flags = 1 << iota
	// Wide makes SQEs of 128 bytes, which commands of 80 bytes need.
	Wide
)

// Setup flags that giouring lacks or that are clearer beside each other
// (enum io_uring_setup_flags).
const (
	setupSubmitAll    = 1 << 7  // IORING_SETUP_SUBMIT_ALL: a bad SQE does not stop the batch
	setupSQE128       = 1 << 10 // IORING_SETUP_SQE128
	setupSingleIssuer = 1 << 12 // IORING_SETUP_SINGLE_ISSUER
	setupDeferTaskrun = 1 << 13 // IORING_SETUP_DEFER_TASKRUN
)

// MaxEntries is the largest submission queue the kernel makes
// (IORING_MAX_ENTRIES).
const MaxEntries = 32768

// shortage bounds how long a submit is retried while the kernel has no memory
// for requests (EAGAIN), so that a starved machine ends in an error, not in a
// silent hang.
const shortage = 10 * time.Second

// CQE is one completion: what was queued (Data), its result (a count or a
// negative errno) and flags.
type CQE struct {
	Data  uint64
	Res   int32
	Flags uint32
}

// Ring is one io_uring.
type Ring struct {
	ring *giouring.Ring
	wide bool
	sqes []byte // the mapping of all SQEs

	visit func(*giouring.CompletionQueueEvent) // r.complete, bound once
	fn    func(CQE)                            // of the ForEach that runs
	woken bool                                 // the ForEach that runs saw a wake-up

	wakeMu  sync.Mutex // guards eventfd against Close
	eventfd int        // -1 when closed
	waking  atomic.Bool
}

// New makes a ring with room for at least entries SQEs, and twice as many
// CQEs. Wake works from the start; its poll goes in with the first submit.
func New(entries uint32, flags Flags) (*Ring, error) {
	if entries == 0 || entries > MaxEntries {
		return nil, fmt.Errorf("uring: a ring of %d entries is impossible: use 1 to %d", entries, MaxEntries)
	}
	g, err := setup(entries, flags)
	if err != nil {
		return nil, explainSetup(err)
	}
	r := &Ring{ring: g, wide: flags&Wide != 0, eventfd: -1}
	r.visit = r.complete
	size := uintptr(g.SQSpaceLeft()) * unsafe.Sizeof(sqe{})
	if r.wide {
		size *= 2
	}
	first, err := r.initWake()
	if err != nil {
		r.Close()
		return nil, err
	}
	r.sqes = unsafe.Slice((*byte)(unsafe.Pointer(first)), size)
	return r, nil
}

// setup asks for the best kind of ring that the kernel has.
func setup(entries uint32, flags Flags) (*giouring.Ring, error) {
	base := uint32(setupSubmitAll)
	if flags&Wide != 0 {
		base |= setupSQE128
	}
	tries := []uint32{base, base &^ setupSubmitAll}
	if flags&SingleIssuer != 0 {
		tries = append([]uint32{base | setupSingleIssuer | setupDeferTaskrun}, tries...)
	}
	var err error
	for _, f := range tries {
		g := giouring.NewRing()
		if err = g.QueueInit(entries, f); err == nil {
			return g, nil
		}
		if err != syscall.EINVAL {
			break
		}
	}
	return nil, err
}

// Close frees the ring. The kernel cancels what is still in flight, some of it
// after Close has returned.
func (r *Ring) Close() {
	r.closeWake()
	if r.ring == nil {
		return
	}
	r.ring.QueueExit()
	r.ring = nil
	// giouring unmaps only the first half of the SQEs of a Wide ring.
	if half := uintptr(len(r.sqes)) / 2; r.wide && half >= uintptr(syscall.Getpagesize()) {
		syscall.Syscall(syscall.SYS_MUNMAP, uintptr(unsafe.Pointer(&r.sqes[half])), half, 0)
	}
	r.sqes = nil
}

// Submit hands everything queued to the kernel.
func (r *Ring) Submit() error { return r.enter(0) }

// SubmitAndWait hands everything queued to the kernel and waits until n CQEs
// can be reaped. Signals do not end the wait. It may return early, with fewer
// CQEs, when the kernel wants some to be reaped first.
func (r *Ring) SubmitAndWait(n uint32) error { return r.enter(n) }

func (r *Ring) enter(n uint32) error {
	var since time.Time
	for {
		_, err := r.ring.SubmitAndWait(n)
		switch err {
		case nil:
			// A signal after the submit, or a submit cut short, looks
			// like success.
			if r.ring.CQReady() >= n {
				return nil
			}
		case syscall.EINTR:
			// The Go runtime preempts with signals: normal.
		case syscall.EBUSY:
			return nil // CQEs overflowed: reap, then come back
		case syscall.EAGAIN:
			if r.ring.CQReady() > 0 {
				return nil
			}
			if since.IsZero() {
				since = time.Now()
			}
			if time.Since(since) > shortage {
				return fmt.Errorf("uring: submit: the kernel had no memory for requests for %v: %w", shortage, err)
			}
			runtime.Gosched()
		default:
			return fmt.Errorf("uring: submit and wait for %d completions: %w", n, err)
		}
	}
}

// ForEach reaps what has completed and calls fn for each CQE, in order. fn may
// queue more. woken says that Wake was called since the last ForEach that
// said so.
func (r *Ring) ForEach(fn func(CQE)) (woken bool) {
	r.fn, r.woken = fn, false
	r.ring.ForEachCQE(r.visit)
	r.fn = nil
	return r.woken
}

// complete takes one CQE off the ring before it is looked at: what fn queues
// may make the kernel post more.
func (r *Ring) complete(e *giouring.CompletionQueueEvent) {
	c := CQE{Data: e.UserData, Res: e.Res, Flags: e.Flags}
	r.ring.CQAdvance(1)
	switch c.Data {
	case wakeData:
		r.wokenUp(c)
	case quietData:
	default:
		r.fn(c)
	}
}
