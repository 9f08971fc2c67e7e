package ublk

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// BenchResult is what a Bench has done and what it took. User and System are the
// CPU time of the whole process meanwhile.
type BenchResult struct {
	Requests uint64 // answered, without flushes and resets
	// Unwritten are the reads among them that needed no look at the data file, because
	// all of it was never written.
	Unwritten uint64
	Flushes   uint64
	Resets    uint64
	Wall      time.Duration
	User      time.Duration
	System    time.Duration
}

// benchQueue is a queue without a device. Requests come from a generator instead
// of the kernel, as descriptors all the same; data begins and ends in the
// queue's buffers. All else is what serves a device.
type benchQueue struct {
	*queue
	requests *generator
	free     []uint16 // tags
	done     uint64
	holes    uint64 // reads, see Unwritten
	refused  error  // the first request that failed
}

// Bench carries out w on target, with cfg.Depth requests in flight on one queue,
// and measures that. Of cfg it heeds what is about data and depth; there is no
// device. It needs neither ublk nor root.
//
// It ends early with the first request that fails, or when ctx ends; then it
// returns an error, after the requests in flight, and what was measured up to there.
func Bench(ctx context.Context, cfg Config, target Target, w Workload) (BenchResult, error) {
	cfg = cfg.withDefaults()
	if err := w.Check(target.Geometry(), cfg.Depth); err != nil {
		return BenchResult{}, err
	}
	cfg.Queues, cfg.MaxIO = 1, w.maxIO()
	if err := cfg.check(target.Geometry()); err != nil {
		return BenchResult{}, err
	}
	d := newDevice(cfg, target, nil, cfg.ID, 0)
	if err := d.prepare(); err != nil {
		return BenchResult{}, err
	}
	defer d.closeChar()
	b := &benchQueue{queue: newQueue(d, 0), requests: newGenerator(w, target)}
	b.descs = make([]ioDesc, cfg.Depth)
	b.commit = b.answered
	b.copy = func(_ uintptr, r *request, _ int, p []byte) error {
		if r.data.reads && uint64(len(p)) == r.Len && &p[0] == &d.zeros[0] {
			b.holes++
		}
		return nil
	}
	for tag := range cfg.Depth {
		b.free = append(b.free, uint16(tag))
	}
	var res BenchResult
	ended := make(chan error)
	go func() {
		runtime.LockOSThread() // the ring's only issuer; the thread ends with the goroutine
		err := b.run(ctx, &res)
		b.close()
		ended <- err
	}()
	err := <-ended
	d.workers.close()
	return res, err
}

// run measures. Memory is touched before.
func (b *benchQueue) run(ctx context.Context, res *BenchResult) error {
	if err := b.open(); err != nil {
		return err
	}
	used := min(uint64(len(b.tags)), b.requests.Count) * uint64(b.bufs.size)
	for part := range slices.Chunk(b.bufs.arena[:used], 1<<20) { // touching memory takes a while
		if ctx.Err() != nil {
			break
		}
		for i := range part {
			part[i] = b.requests.Pattern
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	defer context.AfterFunc(ctx, b.leave)()
	user, system, err := cpuTime()
	if err != nil {
		return err
	}
	begun := time.Now()
	if err := b.serveAll(); err != nil {
		return err
	}
	res.Wall = time.Since(begun)
	if res.User, res.System, err = cpuTime(); err != nil {
		return err
	}
	res.User, res.System = res.User-user, res.System-system
	// The lock of the data file ends with its last user.
	if err := b.ring.UnregisterFiles(); err != nil {
		return err
	}
	res.Requests, res.Unwritten, res.Flushes, res.Resets = b.done, b.holes, b.requests.flushes, b.requests.resets
	if b.refused == nil && b.done < b.requests.Count {
		return context.Cause(ctx)
	}
	return b.refused
}

// serveAll is the queue's loop, up to the last request.
func (b *benchQueue) serveAll() error {
	b.now = b.dev.clock()
	for {
		b.give()
		if b.busy == 0 {
			break
		}
		if err := b.turn(); err != nil {
			return err
		}
	}
	b.tellEvents()
	return b.err
}

// give hands out as many requests as there are, and tags for them.
func (b *benchQueue) give() {
	for len(b.free) > 0 && b.refused == nil && !b.leaving.Load() {
		d, ok := b.requests.next(b.busy)
		if !ok {
			return
		}
		last := len(b.free) - 1
		tag := b.free[last]
		b.free = b.free[:last]
		b.descs[tag] = d
		b.serve(&b.tags[tag])
	}
}

// answered takes the place of a commit.
func (b *benchQueue) answered(tag uint16, result int32, _ uint64) error {
	b.free = append(b.free, tag)
	switch r := &b.tags[tag]; {
	case result < 0 && b.refused == nil:
		b.refused = fmt.Errorf("%s of %d bytes at %d: %w", r.op.name, r.Len, r.Start, r.Err)
	case result > 0:
		b.done++
	}
	return nil
}

// cpuTime returns what this process has used up.
func cpuTime() (user, system time.Duration, err error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, 0, fmt.Errorf("ublk: ask for the CPU time used: %w", err)
	}
	return time.Duration(u.Utime.Nano()), time.Duration(u.Stime.Nano()), nil
}
