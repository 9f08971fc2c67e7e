package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"time"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

// tb is what *testing.T and *rapid.T have in common.
type tb interface {
	Helper()
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// spec is an image and how it is used.
type spec struct {
	qcow2.CreateOptions
	block  uint32 // 0: 512
	narrow bool   // the refcount table has to grow
}

func (s spec) String() string {
	return fmt.Sprintf("cluster=%d,refcount=%d,size=%d,zone=%d,capacity=%d,conventional=%d,open=%d,active=%d,block=%d,narrow=%v",
		s.ClusterSize, s.RefcountBits, s.Size, s.ZoneSize, s.ZoneCapacity, s.Conventional, s.MaxOpen, s.MaxActive, s.block, s.narrow)
}

// host drives a device over an image and holds everything that is answered
// against its model. It works in one of two ways: with virtual time every
// request has a goroutine; without, requests move only when the host says so,
// and then every error and condition is known beforehand.
type host struct {
	t        tb
	pick     func(n int) int // 0 … n-1
	s        spec
	virtual  bool
	loose    bool // requests may fail: conditions are not known beforehand
	wasteful bool // holes may not be punched
	options  qcow2.Options
	disk     *crashfile.File
	im       *qcow2.Image
	dev      *zns.Device
	g        zns.Geometry
	block    int     // sectors
	seen     *census // or nil

	wg sync.WaitGroup // flights with virtual time

	mu      sync.Mutex // guards what follows
	zones   []zone
	flights []*flight
	woken   []*flight
	clock   int
	stamp   uint64
	err     error
	log     []string
	refused int // by the disk
}

// flight is a request and what is expected of it.
type flight struct {
	r      zns.Request
	z      int
	at, n  int
	data   []byte
	piece  *piece
	began  int
	want   error
	marks  []mark           // of a flush
	sure   int              // read: sectors below were answered
	before []uint64         // read of a sequential zone: what was reserved
	may    map[int][]uint64 // read of a conventional zone: what each sector could have
	step   zns.Step
	wake   chan struct{}
	done   bool
}

func newHost(t tb, pick func(n int) int, s spec) *host {
	t.Helper()
	if s.block == 0 {
		s.block = 512
	}
	if s.ZoneCapacity == 0 {
		s.ZoneCapacity = s.ZoneSize
	}
	h := &host{t: t, pick: pick, s: s, disk: crashfile.New(), block: int(s.block / 512), clock: 1}
	if err := qcow2.Format(h.disk, s.CreateOptions); err != nil {
		t.Fatalf("format: %v", err)
	}
	if s.narrow {
		h.narrow()
	}
	for i := range s.Size / s.ZoneSize {
		h.zones = append(h.zones, newZone(i < s.Conventional, int(s.ZoneSize/512)))
	}
	return h
}

// narrow makes the refcount table one cluster long, which no fresh image of
// ours has: the table has to move when the image fills. The next Open counts
// refcounts anew.
func (h *host) narrow() {
	var b [512]byte
	if _, err := h.disk.ReadAt(b[:], 0); err != nil {
		h.t.Fatalf("%v", err)
	}
	binary.BigEndian.PutUint32(b[56:], 1)
	b[79] |= 1
	if _, err := h.disk.WriteAt(b[:], 0); err != nil {
		h.t.Fatalf("%v", err)
	}
}

// open opens the image and makes a device of it.
func (h *host) open() error {
	h.observe()
	im, err := qcow2.Open(h.disk, h.options)
	if err != nil {
		return err
	}
	hdr := im.Header()
	z := hdr.Zoned
	h.g = zns.Geometry{
		Size: hdr.Size, ZoneSize: z.ZoneSize, ZoneCapacity: z.ZoneCapacity, NrZones: z.NrZones,
		Conventional: z.Conventional, MaxOpen: z.MaxOpen, MaxActive: z.MaxActive,
		MaxAppend: uint64(z.MaxAppend), BlockSize: h.s.block,
	}
	if z.MaxAppend == 0 {
		h.g.MaxAppend = z.ZoneSize
	}
	dev, err := zns.New(h.g, im)
	if err != nil {
		h.t.Fatalf("%v", err)
	}
	h.im, h.dev = im, dev
	return nil
}

func (h *host) capacity(z int) int {
	if h.zones[z].conv {
		return int(h.g.ZoneSize / 512)
	}
	return int(h.g.ZoneCapacity / 512)
}

func (h *host) start(z int) uint64 { return uint64(z) * h.g.ZoneSize }

func (h *host) note(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

// fail remembers the first thing that is wrong; check reports it.
func (h *host) fail(format string, args ...any) {
	if h.err == nil {
		h.err = fmt.Errorf(format, args...)
	}
}

func (h *host) check() {
	h.t.Helper()
	h.mu.Lock()
	err := h.err
	h.mu.Unlock()
	if err != nil {
		h.fatalf("%v", err)
	}
}

func (h *host) fatalf(format string, args ...any) {
	h.t.Helper()
	for _, l := range h.log[max(0, len(h.log)-40):] {
		h.t.Logf("%s", l)
	}
	h.t.Fatalf("%v: %s", h.s, fmt.Sprintf(format, args...))
}

// begin starts a request of n sectors at sector at of zone z.
func (h *host) begin(op zns.Op, z, at, n int, fua bool) *flight {
	h.t.Helper()
	h.settleFailed(z)
	h.mu.Lock()
	h.clock++
	f := &flight{z: z, at: at, n: n, began: h.clock, wake: make(chan struct{}, 1)}
	f.r = zns.Request{Op: op, FUA: fua, Start: h.start(z) + uint64(at)*512, Len: uint64(n) * 512}
	if op == zns.OpAppend {
		f.r.Start = h.start(z)
	}
	f.r.Wake = func(*zns.Request) {
		if h.virtual {
			f.wake <- struct{}{}
			return
		}
		h.woken = append(h.woken, f)
	}
	if !h.virtual {
		f.want = h.expect(f)
	}
	if h.loose && byCondition(f.want) {
		f.want = nil // a request that has failed may have left another condition
	}
	h.prepare(f)
	h.note("%d: %v zone %d at %d, %d sectors, fua %v", f.began, op, z, at, n, fua)
	h.mu.Unlock()

	// Begin does not block, so it is the caller who says in which order
	// requests take their ranges.
	step := h.dev.Begin(&f.r)

	h.mu.Lock()
	if step == zns.Answer && f.r.Err != nil {
		h.answered(f)
		h.mu.Unlock()
		return f
	}
	h.place(f)
	h.flights = append(h.flights, f)
	h.mu.Unlock()
	if !h.virtual {
		h.run(f, step)
		h.wakeUp()
		return f
	}
	h.wg.Go(func() { h.run(f, step) })
	return f
}

// byCondition says that a request is refused for the condition of a zone.
func byCondition(err error) bool {
	return errors.Is(err, zns.ErrOpenLimit) || errors.Is(err, zns.ErrActiveLimit) || errors.Is(err, zns.ErrCond)
}

// prepare notes what is known when a request begins. h.mu is held.
func (h *host) prepare(f *flight) {
	zn := &h.zones[f.z]
	switch f.r.Op {
	case zns.OpWrite, zns.OpAppend:
		s := make([]uint64, f.n)
		for i := range s {
			h.stamp++
			s[i] = h.stamp
		}
		f.data = fill(s)
	case zns.OpRead:
		f.data = fill(make([]uint64, f.n))
		if !zn.conv {
			f.sure = zn.answered
			f.before = append([]uint64(nil), zn.data[min(f.at, len(zn.data)):min(f.at+f.n, len(zn.data))]...)
			break
		}
		f.may = make(map[int][]uint64)
		for i := f.at; i < min(f.at+f.n, len(zn.versions)); i++ {
			f.may[i] = zn.current(i)
		}
	case zns.OpFlush:
		for i := range h.zones {
			f.marks = append(f.marks, mark{h.zones[i].epoch, h.zones[i].answered})
		}
	case zns.OpReset, zns.OpFinish:
		zn.busy, zn.resets = !zn.conv, f.r.Op == zns.OpReset
	case zns.OpResetAll:
		for i := range h.zones {
			h.zones[i].busy, h.zones[i].resets = !h.zones[i].conv, true
		}
	}
}

// current returns what a sector of a conventional zone may read as.
func (z *zone) current(i int) []uint64 {
	var s []uint64
	for k := len(z.versions[i]) - 1; k >= 0; k-- {
		s = append(s, z.versions[i][k].stamp)
		if z.versions[i][k].answered != 0 {
			break
		}
	}
	return s
}

// place gives a request that was not refused its range in the model. h.mu is
// held.
func (h *host) place(f *flight) {
	switch f.r.Op {
	case zns.OpWrite, zns.OpAppend, zns.OpWriteZeroes:
	default:
		return
	}
	zn := &h.zones[f.z]
	if at := int((f.r.At - h.start(f.z)) / 512); !zn.conv && at != len(zn.data) && !h.isDead() {
		h.fail("%v in zone %d was placed at %d, the pointer is %d", f.r.Op, f.z, at, len(zn.data))
	}
	s := make([]uint64, f.n)
	if f.r.Op != zns.OpWriteZeroes {
		s = stamps(f.data)
	}
	f.piece = zn.reserve(f.at, s)
}

// run takes a request on from a step.
func (h *host) run(f *flight, step zns.Step) {
	for {
		f.step = step
		switch step {
		case zns.IO:
			if !h.virtual {
				return
			}
			step = h.dev.End(&f.r, zns.Transfer(&f.r, h.disk, f.data))
		case zns.Work:
			step = h.dev.Work(&f.r)
		case zns.Wait:
			if !h.virtual {
				f.ended()
				return
			}
			<-f.wake
			step = f.r.Next
		case zns.Answer:
			h.mu.Lock()
			h.answered(f)
			h.mu.Unlock()
			return
		}
	}
}

// ended notes that a request that writes has written, so that the committed
// pointer can pass it.
func (f *flight) ended() {
	if f.piece != nil && f.r.Err == nil {
		f.piece.ended = true
	}
}

// move does the I/O of a request that waits for it, without virtual time.
func (h *host) move(f *flight) {
	if f.step == zns.IO {
		h.run(f, h.dev.End(&f.r, zns.Transfer(&f.r, h.disk, f.data)))
		h.wakeUp()
	}
}

// settleFailed ends what is in flight in a zone if some of it has failed: until
// then the zone takes no newcomers, and there is only one goroutine.
func (h *host) settleFailed(z int) {
	if h.virtual {
		return
	}
	for {
		failed := false
		var next *flight
		for _, f := range h.flights {
			if f.z == z {
				failed = failed || f.r.Err != nil
				if f.step == zns.IO {
					next = f
				}
			}
		}
		if !failed || next == nil {
			return
		}
		h.move(next)
	}
}

func (h *host) wakeUp() {
	for len(h.woken) > 0 {
		f := h.woken[0]
		h.woken = h.woken[1:]
		h.run(f, f.r.Next)
	}
}

// drain ends what is in flight, in random order.
func (h *host) drain() {
	if h.virtual {
		h.wg.Wait()
		return
	}
	for len(h.flights) > 0 {
		h.move(h.flights[h.pick(len(h.flights))])
	}
}

// answered holds an answer against the model. h.mu is held.
func (h *host) answered(f *flight) {
	h.clock++
	f.done = true
	for i, g := range h.flights {
		if g == f {
			h.flights = append(h.flights[:i], h.flights[i+1:]...)
			break
		}
	}
	if h.isDead() {
		// Nobody hears it. Whether it has happened is decided when the image
		// is opened.
		h.note("%d: answered without power: %v", f.began, f.r.Err)
		return
	}
	h.countAnswer(f)
	if err := f.r.Err; err != nil {
		h.note("%d: answered: %v", f.began, err)
		h.rejected(f, err)
		return
	}
	if f.want != nil {
		h.fail("%v in zone %d at %d: succeeded, want %q", f.r.Op, f.z, f.at, f.want)
	}
	zn := &h.zones[f.z]
	switch f.r.Op {
	case zns.OpRead:
		h.compareRead(f)
	case zns.OpWrite, zns.OpAppend, zns.OpWriteZeroes:
		zn.written(f.at, f.n, h.clock, f.piece, f.r.FUA)
	case zns.OpFlush:
		for i := range h.zones {
			h.zones[i].settle(f.marks[i], f.began)
		}
	case zns.OpReset:
		zn.reset()
		zn.busy = false
	case zns.OpResetAll:
		for i := range h.zones {
			if zn := &h.zones[i]; !zn.conv {
				zn.reset()
				zn.busy = false
			}
		}
	case zns.OpFinish:
		zn.finish(h.capacity(f.z))
		zn.busy = false
	}
	if !h.virtual {
		h.transit(f)
	}
	h.note("%d: answered", f.began)
}

// rejected deals with a request that was answered with an error. h.mu is held.
func (h *host) rejected(f *flight, err error) {
	zn := &h.zones[f.z]
	switch {
	case f.want != nil && errors.Is(err, f.want):
	case h.virtual && f.piece == nil && (errors.Is(err, zns.ErrOpenLimit) || errors.Is(err, zns.ErrActiveLimit)):
	case h.virtual && f.r.Op == zns.OpClose && errors.Is(err, zns.ErrCond):
	case h.virtual && f.r.Op != zns.OpRead && errors.Is(err, zns.ErrFull):
	case h.loose:
		h.refused++
		if f.piece != nil {
			if h.dev.Zone(uint32(f.z)).WP >= h.start(f.z)+uint64(f.piece.end)*512 {
				f.piece.ended = true // it is only not durable
			} else {
				zn.undo(f.piece)
			}
		}
		for i := range f.n {
			delete(zn.writing, f.at+i)
		}
	default:
		h.fail("%v in zone %d at %d, %d sectors: %v, want %v", f.r.Op, f.z, f.at, f.n, err, f.want)
	}
	if errors.Is(err, qcow2.ErrFailed) {
		return // a reset or finish may have happened
	}
	switch f.r.Op {
	case zns.OpReset, zns.OpFinish:
		zn.busy = false
	case zns.OpResetAll:
		for i := range h.zones {
			h.zones[i].busy = false
		}
	}
}

func (h *host) isDead() bool {
	return h.disk.Dead()
}

// undo takes a request that has failed out of the model, and what was reserved
// after it.
func (z *zone) undo(p *piece) {
	for i, q := range z.pieces {
		if q == p {
			z.pieces = z.pieces[:i]
			z.data = z.data[:p.from]
			return
		}
	}
}

func (h *host) compareRead(f *flight) {
	got := stamps(f.data)
	zn := &h.zones[f.z]
	if !zn.conv {
		for i, s := range got {
			want := uint64(0)
			if i < len(f.before) {
				want = f.before[i]
			}
			if s != want && (f.at+i < f.sure || s != 0) {
				h.fail("zone %d sector %d reads as %d, want %d", f.z, f.at+i, s, want)
			}
		}
		return
	}
	for i, s := range got {
		ok := false
		for _, v := range f.may[f.at+i] {
			ok = ok || v == s
		}
		for _, v := range zn.versions[f.at+i] {
			ok = ok || h.virtual && v.stamp == s
		}
		for _, v := range zn.current(f.at + i) {
			ok = ok || v == s
		}
		if !ok {
			h.fail("conventional zone %d sector %d reads as %d, want one of %v", f.z, f.at+i, s, f.may[f.at+i])
		}
	}
}

// report compares the report of every zone with the model.
func (h *host) report() {
	h.t.Helper()
	if h.isDead() {
		return
	}
	for i := range h.zones {
		h.mu.Lock()
		zn := &h.zones[i]
		sure, busy := zn.answered, zn.busy
		h.mu.Unlock()
		if busy {
			continue
		}
		got := h.dev.Zone(uint32(i))
		h.mu.Lock()
		want := zns.Zone{Start: h.start(i), Len: h.g.ZoneSize, Capacity: uint64(h.capacity(i)) * 512, Type: zns.TypeSeqWriteReq, Cond: got.Cond, WP: got.WP}
		switch wp := int(got.WP-h.start(i)) / 512; {
		case zn.conv:
			want.Type, want.Cond, want.WP = zns.TypeConventional, zns.CondNotWP, h.start(i)
		case !h.virtual:
			want.WP = h.start(i) + uint64(zn.committed())*512
			if !h.loose {
				want.Cond = zn.cond
			}
		case wp < sure || wp > len(zn.data):
			h.fail("zone %d: write pointer %d, want %d to %d", i, wp, sure, len(zn.data))
		}
		if got != want {
			h.fail("zone %d: %+v, want %+v", i, got, want)
		}
		h.mu.Unlock()
	}
	h.check()
}

// verify reads every zone.
func (h *host) verify() {
	h.t.Helper()
	for i := range h.zones {
		if h.zones[i].busy && h.virtual {
			continue
		}
		h.read(i, 0, int(h.g.ZoneSize/512))
	}
	h.check()
}

// read reads at once.
func (h *host) read(z, at, n int) []uint64 {
	f := h.begin(zns.OpRead, z, at, n, false)
	if h.virtual {
		for !h.isDone(f) {
			time.Sleep(time.Microsecond)
		}
	} else {
		h.move(f)
	}
	return stamps(f.data)
}

func (h *host) isDone(f *flight) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return f.done
}

// clean checks the file after a clean close.
func (h *host) clean() {
	h.t.Helper()
	rep, err := qcow2.Check(h.disk, nil)
	if err != nil {
		h.fatalf("check: %v", err)
	}
	if rep.ExitCode() != 0 || rep.Dirty || rep.Ahead != 0 && h.s.Preallocation == qcow2.PreallocationOff {
		h.fatalf("after a clean close: %+v", rep)
	}
	// What the host has given back is given back.
	cs := int64(h.s.ClusterSize)
	var most int64
	for i := range h.zones {
		n := int64(len(h.zones[i].data)) * 512
		if h.zones[i].conv {
			n = int64(h.g.ZoneSize)
		}
		most += (n + cs - 1) / cs
	}
	if most += rep.Ahead; rep.AllocatedClusters > most { // what was preallocated is kept
		h.fatalf("after a clean close %d clusters are allocated, at most %d are needed", rep.AllocatedClusters, most)
	}
	hdr := h.im.Header()
	per := cs * 8 / int64(h.s.RefcountBits)
	table := int64(hdr.RefTableClusters)
	meta := 1 + table + int64(hdr.L1Size) + (int64(hdr.L1Size)*8+cs-1)/cs + (int64(hdr.Zoned.MetaSize)+cs-1)/cs +
		min(table*cs/8, 2+(h.limit()+per-1)/per)
	if got := h.disk.Allocated(); got > (rep.AllocatedClusters+meta)*cs && !h.wasteful {
		h.fatalf("after a clean close the file takes %d bytes for %d clusters and at most %d of metadata", got, rep.AllocatedClusters, meta)
	}
}

// limit is about how many clusters the file may have had.
func (h *host) limit() int64 {
	n := int64(h.s.Size >> bits.TrailingZeros64(h.s.ClusterSize))
	return n + n/2 + 1024
}

// reopen closes the image and opens it again.
func (h *host) reopen() error {
	h.t.Helper()
	if err := h.shut(); err != nil {
		return err
	}
	return h.open()
}

// shut closes the image in order.
func (h *host) shut() error {
	h.t.Helper()
	h.drain()
	h.check()
	if err := h.im.Close(); err != nil {
		return err
	}
	h.clean()
	for i := range h.zones {
		zn := &h.zones[i]
		h.clock++
		zn.settle(mark{zn.epoch, len(zn.data)}, h.clock)
		if zn.cond.Active() {
			zn.cond = zns.CondClosed
			if len(zn.data) == 0 {
				zn.cond = zns.CondEmpty
			}
		}
	}
	h.note("closed")
	return nil
}
