package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

// The server is killed again and again while clients are at work, and each
// successor goes on with the page cache, the journal, and the requests that have
// no answer: those are sent again, and the clients notice nothing (I9). Now and
// then a server leaves in order, or its disk fails, or the power goes off, also
// between a death and the recovery (I10).

const (
	clients      = 5
	livesPerSeed = 6
)

// deathSpecs are the images. With a limit of open zones nobody opens explicitly.
var deathSpecs = []spec{
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 512, RefcountBits: 16, Size: 96 << 10, ZoneSize: 8 << 10, ZoneCapacity: 6<<10 + 512, Conventional: 2}},
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 4096, RefcountBits: 1, Size: 128 << 10, ZoneSize: 16 << 10, ZoneCapacity: 12<<10 + 512, Conventional: 1, MaxOpen: 2}},
	{CreateOptions: qcow2.CreateOptions{ClusterSize: 64 << 10, RefcountBits: 16, Size: 640 << 10, ZoneSize: 64 << 10, ZoneCapacity: 20 << 10, Conventional: 1}},
}

// enoughLives is how many seeds are known to meet everything that the census
// wants.
const enoughLives = 500

func TestTheDeathOfTheServerGoesUnnoticed(t *testing.T) {
	seen := new(census)
	if *seedFlag != 0 {
		synctest.Test(t, func(t *testing.T) { dieAndGoOn(t, *seedFlag, seen) })
		seen.report(t, nil)
		return
	}
	seeds := uint64(*cutsFlag / 20)
	t.Cleanup(func() {
		if t.Failed() || seeds < enoughLives {
			seen.report(t, nil)
		} else {
			seen.report(t, mustSurvive)
		}
	})
	lanes := runtime.GOMAXPROCS(0)
	for lane := range lanes {
		t.Run(fmt.Sprint("lane=", lane), func(t *testing.T) {
			t.Parallel()
			for seed := *firstFlag + uint64(lane); seed < *firstFlag+seeds && !t.Failed(); seed += uint64(lanes) {
				t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { dieAndGoOn(t, seed, seen) })
				})
			}
		})
	}
}

// world is what outlives the servers: the clients and what they know, the disk
// with its page cache, the journal.
type world struct {
	t    *testing.T
	seed uint64
	s    spec
	disk *crashfile.File
	mem  []uint64 // the journal's
	rng  *rand.Rand
	seen *census
	cut  bool // the power was off: only what was durable counts

	mu    sync.Mutex // guards what follows, and is held by nobody who waits
	zones []clientZone
	open  [clients]*errand // without an answer
	stamp uint64
	log   []string
}

// clientZone is what the clients know of a zone.
type clientZone struct {
	users   int  // writes in flight
	alone   bool // somebody does something to the zone as a whole
	conv    bool
	appends bool           // it is only appended to
	sectors map[int]uint64 // what was answered: the stamp of each sector
	written int            // sectors; of a zone that is not appended to
	full    bool           // finished
	opened  bool           // explicitly
	strays  int            // sectors that an append sent again may have left

	// What a power cut leaves of it; see aftermath_test.go.
	gen     int              // how often it was reset
	durable int              // sectors from its start on that stay
	flushed map[int]uint64   // of a conventional zone: its sectors as the last flush found them
	since   map[int][]uint64 // and what has been on its way there since, in any order
	sent    map[uint64]bool  // the stamps of the appends since it was empty
}

func newClientZone(conv, appends bool) clientZone {
	return clientZone{conv: conv, appends: appends, sectors: map[int]uint64{}, flushed: map[int]uint64{}, since: map[int][]uint64{}, sent: map[uint64]bool{}}
}

// errand is a request of a client until it is answered.
type errand struct {
	op     zns.Op
	fua    bool
	zone   int
	sector int // in the zone
	n      int // sectors
	stamp  uint64
	again  bool    // a server has died with it
	covers []cover // of a flush
}

// life is one server.
type life struct {
	w       *world
	im      *qcow2.Image
	dev     *zns.Device
	journal *zns.Journal
	disk    *crashfile.File
	dead    bool // guarded by w.mu
}

func dieAndGoOn(t *testing.T, seed uint64, seen *census) {
	w := &world{t: t, seed: seed, s: deathSpecs[seed%uint64(len(deathSpecs))], disk: crashfile.New(), rng: rand.New(rand.NewPCG(seed, 7)), seen: seen}
	if err := qcow2.Format(w.disk, w.s.CreateOptions); err != nil {
		t.Fatal(err)
	}
	n := uint32(w.s.Size / w.s.ZoneSize)
	for i := range n {
		w.zones = append(w.zones, newClientZone(uint64(i) < w.s.Conventional, i%2 == 1))
	}
	w.mem = make([]uint64, zns.JournalBytes(n, clients)/8)
	w.disk.Pause(evenly(rand.New(rand.NewPCG(seed, 8))))
	resumed := false
	for range livesPerSeed {
		l := w.start(resumed)
		resumed = false
		switch w.rng.IntN(8) {
		case 0:
			if l.fails() {
				w.powerCut("failed syncs")
			}
		case 1:
			l.work(true)
			l.close()
			w.seen.add("orderly leaves")
			for c := range clients { // what comes then is not begun
				if w.rng.IntN(2) == 0 {
					w.open[c] = w.choose(c, w.rng)
				}
			}
			if resumed = w.rng.IntN(4) != 0; !resumed {
				w.powerCut("power cuts after leaves")
			}
		case 2:
			l.work(true)
			l.flush()
			l.verify()
			if w.rng.IntN(2) == 0 {
				l.end()
				w.powerCut("power cuts after flushes")
				break
			}
			l.close()
			for i := range w.zones {
				w.zones[i].opened = false
			}
		default:
			l.work(false)
			if resumed = w.rng.IntN(4) != 0; !resumed {
				w.powerCut("power cuts after deaths")
			}
		}
		if !resumed {
			w.disk.Pause(evenly(rand.New(rand.NewPCG(seed, w.rng.Uint64()))))
		}
	}
	l := w.start(resumed)
	l.work(true)
	l.verify()
	l.close()
}

// evenly is a slow disk whose operations end at even times: a kill comes at an
// odd one, when nothing runs.
func evenly(rng *rand.Rand) func(crashfile.Kind) {
	var mu sync.Mutex
	return func(k crashfile.Kind) {
		mu.Lock()
		d := time.Duration(1+rng.IntN(500)) * 2
		mu.Unlock()
		if k == crashfile.Sync {
			d *= 10
		}
		time.Sleep(d)
	}
}

// start makes a server, however often it is killed on its way.
func (w *world) start(resumed bool) *life {
	z := w.s.CreateOptions
	g := zns.Geometry{
		Size: z.Size, ZoneSize: z.ZoneSize, ZoneCapacity: z.ZoneCapacity, NrZones: uint32(len(w.zones)),
		Conventional: uint32(z.Conventional), MaxOpen: uint32(z.MaxOpen), MaxAppend: z.ZoneSize, BlockSize: 512,
	}
	for deaths := 0; ; deaths++ {
		if deaths > 1 {
			w.seen.add("deaths in a row")
		}
		l := &life{w: w, disk: w.disk}
		mem := unsafe.Slice((*byte)(unsafe.Pointer(&w.mem[0])), len(w.mem)*8)
		var err error
		if l.journal, err = zns.NewJournal(mem, g.NrZones, clients); err != nil {
			w.fatalf("%v", err)
		}
		o, option := qcow2.Options{CacheBytes: 1}, zns.WithJournal(l.journal)
		if w.rng.IntN(2) == 0 {
			o.SyncInterval = 20_000
		}
		if resumed {
			o.Pointers = func(zone uint32) (uint64, bool) { return uint64(zone)*g.ZoneSize + l.journal.Pointer(zone), true }
			option = zns.Resume(l.journal)
			switch w.rng.IntN(12) {
			case 0, 1, 2, 3:
				w.disk.CutIn(1 + w.rng.IntN(30))
			case 4: // the host could not write what the dead one has written
				w.disk.Fault(func(op crashfile.Op) error {
					if op.Kind == crashfile.Sync {
						return errBroken
					}
					return nil
				})
			}
		}
		if l.im, err = qcow2.Open(w.disk, o); err == nil {
			l.dev, err = zns.New(g, l.im, option)
			if err == nil && w.disk.Dead() {
				err = crashfile.ErrCut // in something that need not succeed
			}
			if err == nil {
				w.disk.CutIn(0)
				if w.cut {
					l.afterCut()
				}
				l.verifyResets()
				w.grow()
				return l
			}
			l.im.Abandon()
		}
		if errors.Is(err, qcow2.ErrLost) {
			w.powerCut("writes lost before a recovery")
			resumed = false
			continue
		}
		if !errors.Is(err, crashfile.ErrCut) {
			w.fatalf("start (resumed: %v): %v", resumed, err)
		}
		w.note("killed while starting")
		w.seen.add("deaths while starting")
		w.seen.add(crashStates)
		w.disk = w.disk.Kill()
	}
}

// work lets the clients work until the server is killed or, in order, they have
// done enough.
func (l *life) work(inOrder bool) {
	w := l.w
	var wg sync.WaitGroup
	for c := range clients {
		rng := rand.New(rand.NewPCG(w.rng.Uint64(), uint64(c)))
		wg.Go(func() {
			for n := 0; !inOrder || n < 20 || w.open[c] != nil; n++ {
				if !l.serve(c, rng) {
					return
				}
			}
		})
	}
	if !inOrder {
		time.Sleep(time.Duration(w.rng.IntN(60_000)>>w.rng.IntN(6))*2 + 1)
		w.mu.Lock()
		l.dead = true
		left := make([]uint64, len(w.mem)) // what the dead one still does goes nowhere
		for i := range left {
			left[i] = atomic.LoadUint64(&w.mem[i])
		}
		w.mem = left
		w.disk = l.disk.Kill()
		w.log = append(w.log, "killed")
		w.seen.add("deaths")
		w.seen.add(crashStates)
		for c, e := range w.open {
			if e != nil {
				e.again = true
				w.log = append(w.log, fmt.Sprintf("  client %d has no answer to %v", c, *e))
				if e.op == zns.OpAppend {
					w.zones[e.zone].strays += e.n
				}
			}
		}
		w.mu.Unlock()
		wg.Wait()
		l.im.Abandon()
		return
	}
	wg.Wait()
}

// flush makes everything durable. Nothing is in flight.
func (l *life) flush() {
	w := l.w
	if err := l.do(&errand{op: zns.OpFlush}, clients, nil); err != nil {
		w.fatalf("flush: %v", err)
	}
	w.allDurable()
}

// close closes the image in order. Nothing is in flight.
func (l *life) close() {
	w := l.w
	w.note("close")
	if err := l.im.Close(); err != nil {
		w.fatalf("close: %v", err)
	}
	if rep, err := qcow2.Check(w.disk, nil); err != nil || rep.Dirty || rep.Corruptions+rep.Leaks != 0 {
		w.fatalf("check: %+v, %v", rep, err)
	}
	w.allDurable()
}

// end stops a server without a word.
func (l *life) end() {
	w := l.w
	w.mu.Lock()
	l.dead = true
	w.disk = l.disk.Kill()
	w.mu.Unlock()
	l.im.Abandon()
}

// serve has one request of a client answered, and reports whether the server
// lives.
func (l *life) serve(c int, rng *rand.Rand) bool {
	w := l.w
	w.mu.Lock()
	e := w.open[c]
	if e == nil {
		e = w.choose(c, rng)
		w.open[c] = e
	} else if e.again {
		w.seen.add(e.op.String() + " sent again")
	}
	w.mu.Unlock()
	var at uint64
	err := l.do(e, uint32(c), &at)
	unheard := time.Duration(rng.IntN(50)) * 2                          // done, but not answered
	if rng.IntN(16) == 0 || e.op == zns.OpOpen || e.op == zns.OpClose { // which take no time themselves
		unheard *= 100
	}
	time.Sleep(unheard)
	w.mu.Lock()
	dead := l.dead || err != nil && l.im.Failed() != nil
	if !dead {
		w.answered(c, e, at, err)
		w.open[c] = nil
	}
	w.mu.Unlock()
	if dead {
		return false
	}
	unnoted := time.Duration(rng.IntN(20)) * 2 // answered, but nobody has noted it
	if rng.IntN(4) == 0 {
		unnoted *= 100
	}
	time.Sleep(unnoted)
	l.journal.Answered(uint32(c))
	time.Sleep(time.Duration(rng.IntN(200)) * 2)
	return true
}

// do carries out a request.
func (l *life) do(e *errand, slot uint32, at *uint64) error {
	zoneSize := l.w.s.ZoneSize
	r := &zns.Request{Op: e.op, FUA: e.fua, Slot: slot, Start: uint64(e.zone)*zoneSize + uint64(e.sector)*512, Len: uint64(e.n) * 512}
	data := make([]byte, r.Len)
	for k := range e.n {
		binary.BigEndian.PutUint64(data[k*512:], e.stamp)
	}
	err := zns.Do(l.dev, r, l.disk, data)
	if at != nil {
		*at = r.At
	}
	return err
}

// choose decides what a client does next. w.mu is held.
func (w *world) choose(c int, rng *rand.Rand) *errand {
	e := w.wish(c, rng)
	w.expect(e)
	return e
}

// wish is what a client wants: like a file system, it writes a zone from one
// place only, and resets it when nobody else uses it.
func (w *world) wish(c int, rng *rand.Rand) *errand {
	i := rng.IntN(len(w.zones))
	z := &w.zones[i]
	w.stamp++
	e := &errand{op: zns.OpFlush, zone: i, stamp: w.stamp, fua: rng.IntN(6) == 0}
	room := int(w.s.ZoneCapacity / 512)
	switch {
	case z.alone:
		e.zone = 0
		return e
	case z.conv: // each client has its own share
		share := int(w.s.ZoneSize/512) / clients
		e.op, e.sector = zns.OpWrite, c*share+rng.IntN(share)
		e.n = 1 + rng.IntN((c+1)*share-e.sector)
	case z.users == 0 && (rng.IntN(8) == 0 || z.opened && rng.IntN(3) == 0 || z.full || !z.appends && z.written == room || z.appends && len(z.sectors) > room-4):
		e.op, z.alone = zns.OpReset, true
		switch rng.IntN(8) {
		case 0:
			e.op = zns.OpFinish
		case 1, 2, 3, 4:
			if w.s.MaxOpen == 0 && !z.full && !z.appends && z.written < room {
				if e.op = zns.OpOpen; z.opened {
					e.op = zns.OpClose
				}
			}
		}
	case z.full:
		e.zone = 0
		return e
	case z.appends:
		e.op, e.n = zns.OpAppend, 1+rng.IntN(4)
	case z.users == 0 && z.written < room:
		e.op, e.sector = zns.OpWrite, z.written
		if e.n = 1 + rng.IntN(min(8, room-z.written)); rng.IntN(8) == 0 {
			e.op, e.stamp = zns.OpWriteZeroes, 0
		}
	default:
		e.zone = 0
		return e
	}
	z.users++
	return e
}

// answered takes over what a client has heard. w.mu is held.
func (w *world) answered(c int, e *errand, at uint64, err error) {
	w.log = append(w.log, fmt.Sprintf("client %d: %v at %d: %v", c, *e, at, err))
	if e.op == zns.OpFlush {
		if err != nil {
			w.fail("flush: %v", err)
		}
		w.covered(e)
		return
	}
	z := &w.zones[e.zone]
	z.users--
	z.alone = false
	if e.op == zns.OpAppend && (errors.Is(err, zns.ErrFull) || errors.Is(err, zns.ErrBoundary)) {
		return // others were faster
	}
	if err != nil {
		w.fail("client %d: %v: %v", c, *e, err)
		return
	}
	room := int(w.s.ZoneCapacity / 512)
	switch e.op {
	case zns.OpReset:
		gen := z.gen
		*z = newClientZone(z.conv, z.appends)
		z.gen = gen + 1
	case zns.OpFinish:
		for k := z.written; k < room && !z.appends; k++ {
			z.sectors[k] = 0
		}
		z.written, z.full, z.opened = room, true, false
	case zns.OpOpen:
		z.opened = true
	case zns.OpClose:
		z.opened = false
	case zns.OpAppend:
		first := int(at-uint64(e.zone)*w.s.ZoneSize) / 512
		for k := range e.n {
			if old, there := z.sectors[first+k]; there {
				w.fail("client %d: %v went to sector %d, where %d is", c, *e, first+k, old)
			}
			z.sectors[first+k] = e.stamp
		}
	default:
		for k := range e.n {
			z.sectors[e.sector+k] = e.stamp
		}
		if z.written += e.n; !z.conv && z.written == room {
			z.opened = false
		}
	}
	if e.fua {
		w.coveredByFUA(e, int(at-uint64(e.zone)*w.s.ZoneSize)/512)
	}
}

// verify compares the device with what the clients know. Nothing is in flight.
func (l *life) verify() {
	w := l.w
	for i := range w.zones {
		z := &w.zones[i]
		rep := l.dev.Zone(uint32(i))
		wp := int(rep.WP-rep.Start) / 512
		p := make([]byte, w.s.ZoneSize)
		if err := zns.Do(l.dev, &zns.Request{Op: zns.OpRead, Slot: clients, Start: rep.Start, Len: w.s.ZoneSize}, l.disk, p); err != nil {
			w.fatalf("read zone %d: %v", i, err)
		}
		strays := 0
		for k := range int(w.s.ZoneSize / 512) {
			got := binary.BigEndian.Uint64(p[k*512:])
			want, known := z.sectors[k]
			switch {
			case known && got != want:
				w.fatalf("zone %d: sector %d reads as %d, want %d", i, k, got, want)
			case !known && z.appends && k < wp:
				strays++
			case !known && got != 0:
				w.fatalf("zone %d: sector %d reads as %d, and nobody has an answer for it", i, k, got)
			}
		}
		if !z.full && strays > z.strays {
			w.fatalf("zone %d: %d sectors that no append has, at most %d were without an answer", i, strays, z.strays)
		}
		if !z.conv && !z.appends && wp != z.written {
			w.fatalf("zone %d: write pointer %d, want %d", i, wp, z.written)
		}
		if (rep.Cond == zns.CondExpOpen) != z.opened {
			w.fatalf("zone %d is %v, opened by a client: %v", i, rep.Cond, z.opened)
		}
	}
	w.note("verified")
}

// grow makes some of the writes without an answer longer, as the kernel does
// with what it has to issue again.
func (w *world) grow() {
	for _, e := range w.open {
		if e == nil || e.op != zns.OpWrite && e.op != zns.OpWriteZeroes || w.zones[e.zone].conv {
			continue
		}
		if room := int(w.s.ZoneCapacity/512) - e.sector - e.n; room > 0 && w.rng.IntN(2) == 0 {
			e.n += 1 + w.rng.IntN(min(room, 3))
			w.seen.add("writes grown")
		}
	}
}

// verifyResets looks at zones whose reset has no answer yet: it has happened or
// it has not.
func (l *life) verifyResets() {
	w := l.w
	for _, e := range w.open {
		if e == nil || e.op != zns.OpReset {
			continue
		}
		rep := l.dev.Zone(uint32(e.zone))
		p := make([]byte, w.s.ZoneSize)
		if err := zns.Do(l.dev, &zns.Request{Op: zns.OpRead, Slot: clients, Start: rep.Start, Len: w.s.ZoneSize}, l.disk, p); err != nil {
			w.fatalf("read zone %d: %v", e.zone, err)
		}
		for k, want := range w.zones[e.zone].sectors {
			if got := binary.BigEndian.Uint64(p[k*512:]); rep.WP != rep.Start && got != want {
				w.fatalf("zone %d: sector %d reads as %d, want %d: half of a reset has happened", e.zone, k, got, want)
			}
		}
	}
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, fmt.Sprintf(format, args...))
}

// fail reports what is wrong from any goroutine. w.mu is held.
func (w *world) fail(format string, args ...any) {
	if !w.t.Failed() {
		w.t.Errorf("seed %d: %s\nlast events:\n%s", w.seed, fmt.Sprintf(format, args...), lastOf(w.log, 60))
	}
}

// fatalf ends the test.
func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.mu.Lock()
	w.fail(format, args...)
	w.mu.Unlock()
	w.disk.Kill()
	w.t.FailNow()
}

func lastOf(log []string, n int) (text string) {
	for _, line := range log[max(0, len(log)-n):] {
		text += "  " + line + "\n"
	}
	return text
}
