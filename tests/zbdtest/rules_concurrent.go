package zbdtest

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/qzbd/qzbd/zns"
)

var concurrentRules = []rule{
	{"writes and management of many zones at once do not disturb each other, nor a report", nil, manyZones},
	{"writes, resets, finishes and reports of one zone at once leave whole writes", nil, oneZone},
	{"exactly as many zones as may be open are opened when all are opened at once", needsOpenLimit, func(b *bed) {
		n := min(b.s.MaxOpen+4, b.s.Sequential())
		b.atOnce(n, b.s.MaxOpen, b.overflow(), func(k int) error { return b.manage(Open, b.seq(k)) })
		if got := len(b.having(zns.CondExpOpen, n)); got != b.s.MaxOpen {
			b.Errorf("%d zones are open, want %d", got, b.s.MaxOpen)
		}
	}},
	{"exactly as many zones as may be active are written when all are written at once", func(b *bed) string {
		if b.s.MaxActive > b.s.MaxOpen && b.kind.differs(lostVictim) {
			return "zones would have to be closed, see the difference"
		}
		return needsActiveLimit(b)
	}, func(b *bed) {
		n := min(b.s.MaxActive+4, b.s.Sequential())
		b.atOnce(n, b.s.MaxActive, syscall.EOVERFLOW, func(k int) error { return b.try(b.seq(k), 0, b.piece) })
		b.report(b.s.Start(b.seq(0)), n) // for the zones that were refused
		for k := range n {
			if z := b.zone(b.seq(k)); z.Cond != zns.CondEmpty {
				b.holds(b.seq(k), 0, b.piece)
			}
		}
	}},
	{"who reads while a zone is written sees all that was acknowledged", nil, readersAndWriter},
}

// atOnce does something with each of n zones at the same time: so many must
// succeed, and the others be refused.
func (b *bed) atOnce(n, succeed int, errno syscall.Errno, f func(k int) error) {
	b.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	start := make(chan struct{})
	for k := range n {
		wg.Go(func() {
			<-start
			errs[k] = f(k)
		})
	}
	close(start)
	wg.Wait()
	good := 0
	for k, err := range errs {
		if err == nil {
			good++
		} else {
			b.want(errno, err, b.name(b.seq(k)))
		}
	}
	if good != succeed {
		b.Errorf("%d succeeded, want %d", good, succeed)
	}
}

// reporter reports all the time, until stop is called, and checks each zone.
func (b *bed) reporter(from, n int) (stop func()) {
	var done atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for !done.Load() && !b.Failed() {
			zones, err := b.d.Report(b.s.Start(from), n)
			if err != nil {
				b.Error(err)
				return
			}
			if len(zones) != n {
				b.Errorf("%d zones reported, want %d", len(zones), n)
				return
			}
			for k, z := range zones {
				b.soundAt(from+k, z, 0)
			}
		}
	})
	return func() {
		done.Store(true)
		wg.Wait()
	}
}

// usable is how many zones may be written in turn without regard to limits.
func (b *bed) usable() int {
	n := min(8, b.s.Sequential())
	if b.s.MaxActive != 0 {
		n = min(n, b.s.MaxActive)
	}
	if b.s.MaxOpen != 0 && b.kind.differs(lostVictim) {
		n = min(n, b.s.MaxOpen)
	}
	return n
}

// manyZones gives each thread zones of its own, and one more reports.
func manyZones(b *bed) {
	n := b.usable()
	threads := min(4, n)
	written := make([]int64, n)
	full := make([]bool, n)
	stop := b.reporter(b.seq(0), n)
	defer stop()
	var wg sync.WaitGroup
	for k := range threads {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(b.seed, uint64(k)))
			for range 40 {
				z := k + threads*rnd.IntN((n-k+threads-1)/threads)
				i := b.seq(z)
				var err error
				switch what := rnd.IntN(20); {
				case full[z] || what == 0:
					err = b.manage(Reset, i)
					written[z], full[z] = 0, false
				case what == 1:
					err = b.manage(Finish, i)
					full[z] = true
				case what == 2 && written[z] != 0:
					err = b.manage(Close, i)
				default:
					size := (1 + rnd.Int64N(4*b.piece/b.s.Block)) * b.s.Block
					size = min(size, b.s.Capacity-written[z])
					err = b.try(i, written[z], size)
					written[z] += size
					full[z] = written[z] == b.s.Capacity
				}
				if err != nil {
					b.Errorf("%s: %v", b.name(i), err)
					return
				}
			}
		})
	}
	wg.Wait()
	stop()
	for z := range n {
		i := b.seq(z)
		b.holds(i, 0, written[z])
		if full[z] {
			b.is(i, zns.CondFull, b.s.Capacity)
		} else if got := b.zone(i); got.Written() != written[z] {
			b.Errorf("%s is %v, want %#x", b.name(i), got, written[z])
		}
	}
}

// oneZone lets several threads write where they believe the write pointer to
// be, while others reset and finish the zone. A write may be refused, but it
// never leaves anything else than what it writes.
func oneZone(b *bed) {
	i := b.seq(1)
	stop := b.reporter(b.seq(0), 3)
	defer stop()
	allow := func(err error) {
		if err != nil && !b.kind.means(syscall.EIO, err) {
			b.Errorf("%s: %v", b.name(i), err)
		}
	}
	var writes atomic.Int64
	var wg sync.WaitGroup
	for k := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(b.seed, uint64(k)))
			for range 40 {
				zones, err := b.d.Report(b.s.Start(i), 1)
				if err != nil || len(zones) != 1 {
					b.Errorf("report: %v", err)
					return
				}
				at := zones[0].Written()
				if zones[0].Cond == zns.CondFull || at+b.piece > b.s.Capacity {
					allow(b.manage(Reset, i))
					continue
				}
				err = b.try(i, at, (1+rnd.Int64N(b.piece/b.s.Block))*b.s.Block)
				if err == nil {
					writes.Add(1)
				}
				allow(err)
			}
		})
	}
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(b.seed, 99))
		for range 25 {
			allow(b.manage([]Management{Reset, Reset, Reset, Finish, Open, Close}[rnd.IntN(6)], i))
		}
	})
	wg.Wait()
	stop()
	b.Logf("%d writes succeeded", writes.Load())
	z := b.zone(i)
	b.sound(i, z)
	// What a finish has filled up is zeros, and above them nothing else is.
	n := min(z.Written(), largest)
	got, want := b.read(i, 0, n), painted(b.stamp, b.at(i, 0), n)
	for len(got) > 0 && bytes.Equal(got[:b.s.Block], want[:b.s.Block]) {
		got, want = got[b.s.Block:], want[b.s.Block:]
	}
	if z.Cond == zns.CondFull {
		clear(want)
	}
	if d := differ(b.at(i, n-int64(len(got))), got, want); d != "" {
		b.Error(d)
	}
	b.must(Reset, i)
	b.goesOn(i)
}

// readersAndWriter has one thread that writes a zone and others that read it.
func readersAndWriter(b *bed) {
	i := b.seq(1)
	end := min(b.s.Capacity, 64*b.piece)
	var acknowledged atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(b.seed, 1))
		defer func() { acknowledged.Store(end) }() // lets the readers end
		for at := int64(0); at < end; {
			n := min(end-at, (1+rnd.Int64N(b.piece/b.s.Block))*b.s.Block)
			if err := b.try(i, at, n); err != nil {
				b.Error(err)
				return
			}
			at += n
			acknowledged.Store(at)
		}
	})
	for k := range 2 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(b.seed, uint64(10+k)))
			for sure := int64(0); sure < end && !b.Failed(); {
				sure = acknowledged.Load()
				from := rnd.Int64N(end/b.s.Block) * b.s.Block
				if rnd.IntN(2) == 0 {
					from = max(0, sure-2*b.piece)
				}
				n := min(end-from, 4*b.piece)
				got := aligned(n)
				if err := b.d.Read(b.at(i, from), got); err != nil {
					b.Error(err)
					return
				}
				all := painted(b.stamp, b.at(i, from), n)
				blank := make([]byte, b.s.Block)
				b.unwritten(blank)
				for at := from; at < from+n; at += b.s.Block {
					have, want := got[at-from:at-from+b.s.Block], all[at-from:at-from+b.s.Block]
					if !bytes.Equal(have, want) && (at < sure || !bytes.Equal(have, blank)) {
						b.Errorf("at %#x, %#x acknowledged: % x", at, sure, have[:16])
						return
					}
				}
			}
		})
	}
	wg.Wait()
}
