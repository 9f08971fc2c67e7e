package ublk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/zns"
)

// bench is a queue without the kernel's ublk: its ring and its data file are
// real, a sparse file stands in for the char device (user copy reads and
// writes it at the same positions), and answers are noted down instead of
// committed. Nothing here says how the kernel behaves; kernel_test.go does.
type bench struct {
	testing.TB
	*queue
	char    *os.File
	answers map[uint16]answer
}

type answer struct {
	result int32
	addr   uint64
}

func newBench(t testing.TB, target Target, data *os.File, depth, maxIO int) *bench {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	char, err := os.Create(filepath.Join(t.TempDir(), "char"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { char.Close() })
	if err := char.Truncate(copyPos(0, uint16(depth))); err != nil {
		t.Fatal(err)
	}
	zeros, err := unix.Mmap(-1, 0, maxIO, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(zeros) })
	d := &Device{
		cfg:      Config{Queues: 1, Depth: depth, MaxIO: maxIO, DataFD: int(data.Fd())}.withDefaults(),
		geometry: target.Geometry(), target: target, log: zap.NewNop(), born: time.Now(),
		charFD: int(char.Fd()), zeros: zeros, workers: newWorkers(target, depth),
	}
	b := &bench{TB: t, queue: newQueue(d, 0), char: char, answers: map[uint16]answer{}}
	b.descs = make([]ioDesc, depth)
	b.commit = func(tag uint16, result int32, addr uint64) error {
		if _, ok := b.answers[tag]; ok {
			t.Errorf("tag %d is answered twice", tag)
		}
		b.answers[tag] = answer{result, addr}
		return nil
	}
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.workers.close()
		b.close()
	})
	return b
}

// give puts a request into a tag's descriptor and serves it.
func (b *bench) give(tag uint16, flags uint32, start, n uint64) {
	b.descs[tag] = ioDesc{OpFlags: flags, StartSector: sector(start), NrSectors: uint32(n)}
	b.fetched(&b.tags[tag], ioResOK)
}

// wait turns the loop until the tag is answered, and takes the answer.
func (b *bench) wait(tag uint16) answer {
	b.Helper()
	for {
		if a, ok := b.answers[tag]; ok {
			delete(b.answers, tag)
			return a
		}
		if err := b.turn(); err != nil {
			b.Fatal(err)
		}
	}
}

func (b *bench) do(flags uint32, start, n uint64) answer {
	b.Helper()
	b.give(0, flags, start, n)
	return b.wait(0)
}

// request reads or writes the data of a tag's request, as the kernel would.
func (b *bench) setData(tag uint16, p []byte) {
	b.Helper()
	if _, err := b.char.WriteAt(p, copyPos(0, tag)); err != nil {
		b.Fatal(err)
	}
}

func (b *bench) getData(tag uint16, n int) []byte {
	b.Helper()
	p := make([]byte, n)
	if _, err := b.char.ReadAt(p, copyPos(0, tag)); err != nil {
		b.Fatal(err)
	}
	return p
}

func random(n int) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

const (
	mib   = 1 << 20
	zoneS = mib / 512 // sectors of a toy zone in these tests
)

func TestWhatIsWrittenIsRead(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	b := newBench(t, x, x.file, 4, mib)
	x.chunk = 4096 // 256 extents: many windows
	data := random(mib - 512)
	b.setData(0, data)
	if a := b.do(opWrite|flagFUA, zoneS, uint64(len(data)/512)); a != (answer{int32(len(data)), 0}) {
		t.Fatalf("write: %+v", a)
	}
	if x.fua != 1 {
		t.Errorf("the target saw %d FUA writes", x.fua)
	}
	b.setData(0, random(mib)) // must be overwritten up to the last byte
	if a := b.do(opRead, zoneS, zoneS); a != (answer{mib, 0}) {
		t.Fatalf("read: %+v", a)
	}
	if got := b.getData(0, mib); !bytes.Equal(got, append(data, make([]byte, 512)...)) {
		t.Error("the data differs, or what was never written is not zero")
	}
	// Nothing but holes, where the request held something.
	b.setData(0, random(mib))
	if a := b.do(opRead, 2*zoneS, 8); a != (answer{4096, 0}) {
		t.Fatalf("read of a hole: %+v", a)
	}
	if got := b.getData(0, 4096); !bytes.Equal(got, make([]byte, 4096)) {
		t.Error("a hole is not zero")
	}
	if len(b.bufs.free) != 4 {
		t.Errorf("%d of 4 buffers are free", len(b.bufs.free))
	}
}

func TestAnAppendIsAnsweredWithItsPlace(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	b := newBench(t, x, x.file, 4, mib)
	for tag := range uint16(3) {
		b.setData(tag, bytes.Repeat([]byte{byte(tag + 1)}, 4096))
		b.give(tag, opZoneAppend, 2*zoneS, 8)
	}
	for tag := range uint16(3) {
		if a := b.wait(tag); a != (answer{4096, 2*zoneS + 8*uint64(tag)}) {
			t.Errorf("append %d: %+v", tag, a)
		}
	}
	if a := b.do(opRead, 2*zoneS, 24); a.result != 3*4096 {
		t.Fatalf("%+v", a)
	}
	for i, c := range b.getData(0, 3*4096) {
		if int(c) != i/4096+1 {
			t.Fatalf("byte %d is %d", i, c)
		}
	}
}

func TestEveryOperationIsAnswered(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib/2)
	b := newBench(t, x, x.file, 4, mib)
	refused := func(e syscall.Errno) answer { return answer{result: -int32(e)} }
	for _, c := range []struct {
		what     string
		flags    uint32
		start, n uint64
		want     answer
	}{
		{"open", opZoneOpen, zoneS, 0, answer{}},
		{"open conventional", opZoneOpen, 0, 0, refused(syscall.EIO)},
		{"write", opWrite, zoneS, 16, answer{8192, 0}},
		{"write elsewhere", opWrite, zoneS, 8, refused(syscall.EIO)},
		{"close", opZoneClose, zoneS, 0, answer{}},
		{"write zeroes", opWriteZeroes, zoneS + 16, 16, answer{8192, 0}},
		{"flush", opFlush, 1<<64 - 1, 0, answer{}},
		{"finish", opZoneFinish, zoneS, 0, answer{}},
		{"append to a full zone", opZoneAppend, zoneS, 8, refused(syscall.EIO)},
		{"read a finished zone", opRead, zoneS, zoneS, answer{mib, 0}},
		{"reset", opZoneReset, zoneS, 0, answer{}},
		{"write after reset", opWrite, zoneS, 8, answer{4096, 0}},
		{"reset all", opZoneResetAll, 0, 0, answer{}},
		{"write after reset all", opWrite, zoneS, 8, answer{4096, 0}},
		{"discard", opDiscard, 0, 8, refused(syscall.EOPNOTSUPP)},
		{"nonsense", 200, 0, 8, refused(syscall.EOPNOTSUPP)},
		{"too large a read", opRead, 0, zoneS + 1, refused(syscall.EIO)},
		{"too large a report", opReportZones, 0, mib/64 + 1, refused(syscall.EIO)},
	} {
		if a := b.do(c.flags, c.start, c.n); a != c.want {
			t.Errorf("%s: %+v, want %+v", c.what, a, c.want)
		}
	}
}

func TestAReportIsAlwaysComplete(t *testing.T) {
	x := newToy(t, 8, 1, mib, mib/2)
	b := newBench(t, x, x.file, 4, mib)
	for i, c := range []struct {
		cond zns.Cond
		wp   uint64
	}{
		1: {zns.CondEmpty, 0}, 2: {zns.CondImpOpen, 4096}, 3: {zns.CondExpOpen, 512},
		4: {zns.CondClosed, 8192}, 5: {zns.CondFull, mib / 2}, 6: {zns.CondReadOnly, 4096}, 7: {zns.CondOffline, 0},
	} {
		if i > 0 {
			z := &x.zones[i]
			z.Cond, z.done = c.cond, z.Start+c.wp
		}
	}
	b.setData(0, random(12*64))
	if a := b.do(opReportZones, 2*zoneS, 10); a != (answer{640, 0}) {
		t.Fatalf("%+v", a)
	}
	data := b.getData(0, 12*64)
	if !bytes.Equal(data[640:], random(12 * 64)[640:]) {
		t.Error("the report is longer than asked for")
	}
	zones := unsafe.Slice((*blkZone)(unsafe.Pointer(&data[0])), 10)
	for i, z := range zones {
		n := i + 2
		if n >= 8 {
			if z != (blkZone{}) {
				t.Errorf("beyond the last zone: %+v", z)
			}
			continue
		}
		want := blkZone{
			Start: sector(n) * zoneS, Len: zoneS, Capacity: zoneS / 2, Type: 2,
			Cond: uint8(x.zones[n].Cond), WP: sectorsOf(x.zones[n].done),
		}
		if n >= 5 {
			want.WP = noSector
		}
		if z != want {
			t.Errorf("zone %d: %+v, want %+v", n, z, want)
		}
	}
	if a := b.do(opReportZones, 0, 1); a != (answer{64, 0}) {
		t.Fatalf("%+v", a)
	}
	data = b.getData(0, 64)
	if z := *(*blkZone)(unsafe.Pointer(&data[0])); z != (blkZone{Len: zoneS, WP: noSector, Type: 1, Capacity: zoneS}) {
		t.Errorf("conventional zone: %+v", z)
	}
}

func TestTheImageFilesEndReadsAsZeros(t *testing.T) {
	x := newToy(t, 2, 1, mib, mib)
	b := newBench(t, x, x.file, 1, mib)
	data := random(mib)
	if _, err := x.file.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	const end = 200_000 // in the midst of an extent and of a sector
	if err := x.file.Truncate(end); err != nil {
		t.Fatal(err)
	}
	b.setData(0, random(mib))
	if a := b.do(opRead, 0, zoneS); a.result != mib {
		t.Fatalf("%+v", a)
	}
	clear(data[end:])
	if !bytes.Equal(b.getData(0, mib), data) {
		t.Error("the data differs")
	}
}

func TestAnErrorOfTheDataFileEndsTheRequestAlone(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	name := x.file.Name()
	ro, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	x.chunk = 4096
	b := newBench(t, x, ro, 4, mib)
	b.give(0, opWrite, zoneS, 512)
	b.give(1, opRead, 0, 512)
	if a := b.wait(0); a.result != -int32(syscall.EIO) {
		t.Errorf("write: %+v", a)
	}
	if a := b.wait(1); a.result != 512*512 {
		t.Errorf("read: %+v", a)
	}
	if len(b.bufs.free) != 4 {
		t.Errorf("%d of 4 buffers are free", len(b.bufs.free))
	}
}

// TestShortAndInterruptedIO plays what io_uring may answer to a piece.
func TestShortAndInterruptedIO(t *testing.T) {
	x := newToy(t, 2, 1, mib, mib)
	b := newBench(t, x, x.file, 1, mib)
	for _, c := range []struct {
		name  string
		op    zns.Op
		align int
		res   int32
		again bool
		left  int
		errno syscall.Errno
	}{
		{"all", zns.OpWrite, 1, 4096, false, 4096, 0},
		{"short write", zns.OpWrite, 1, 1000, true, 3096, 0},
		{"short read", zns.OpRead, 1, 1000, true, 3096, 0},
		{"short direct write", zns.OpWrite, 512, 1024, true, 3072, 0},
		{"short direct read", zns.OpRead, 512, 1024, true, 3072, 0},
		{"direct write of part of a sector", zns.OpWrite, 512, 1000, false, 4096, syscall.EIO},
		{"end of file in a sector", zns.OpRead, 512, 1000, false, 4096, 0},
		{"end of file in a block", zns.OpRead, 4096, 1024, false, 4096, 0},
		{"no write", zns.OpWrite, 1, 0, false, 4096, syscall.EIO},
		{"end of file", zns.OpRead, 1, 0, false, 4096, 0},
		{"interrupted", zns.OpWrite, 1, -int32(syscall.EINTR), true, 4096, 0},
		{"try again", zns.OpRead, 1, -int32(syscall.EAGAIN), true, 4096, 0},
		{"no space", zns.OpWrite, 1, -int32(syscall.ENOSPC), false, 4096, syscall.ENOSPC},
	} {
		b.dev.cfg.DataAlign = c.align
		r := &request{op: &operations[opRead]}
		r.Op = c.op
		r.data.reads = c.op == zns.OpRead
		mem := bytes.Repeat([]byte{1}, 4096)
		r.data.buf = mem
		p := &piece{used: true, len: len(mem)}
		again := b.movedPart(r, p, c.res)
		if ended := c.op == zns.OpRead && !c.again; ended && !bytes.Equal(mem[c.res:], make([]byte, 4096-c.res)) {
			t.Errorf("%s: what lies behind the end is not zero", c.name)
		}
		if again != c.again || p.len != c.left {
			t.Errorf("%s: again %v with %d bytes left", c.name, again, p.len)
		}
		if !errors.Is(r.data.err, c.errno) && (c.errno != 0 || r.data.err != nil) {
			t.Errorf("%s: %v", c.name, r.data.err)
		}
	}
	r := &request{op: &operations[opRead]}
	p := &piece{used: true, len: 4096}
	n := 0
	for b.movedPart(r, p, -int32(syscall.EAGAIN)) {
		n++
	}
	if r.data.err == nil || n != maxRetries-1 {
		t.Errorf("%d retries, then %v", n, r.data.err)
	}
}

func TestBlockedRequestsHoldUpNobody(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	const depth = 64
	x.block = make(chan struct{})
	b := newBench(t, x, x.file, depth, 4096)
	for tag := range uint16(depth - 1) {
		b.give(tag, opFlush, 0, 0)
	}
	for range 100 {
		b.give(depth-1, opRead, 0, 8)
		if a := b.wait(depth - 1); a.result != 4096 {
			t.Fatalf("%+v", a)
		}
	}
	b.give(depth-1, opZoneReset, zoneS, 0) // even through a worker
	if a := b.wait(depth - 1); a.result != 0 {
		t.Fatalf("%+v", a)
	}
	close(x.block)
	for tag := range uint16(depth - 1) {
		if a := b.wait(tag); a.result != 0 {
			t.Errorf("flush %d: %+v", tag, a)
		}
	}
	if b.dev.workers.running > depth {
		t.Errorf("%d workers for %d tags", b.dev.workers.running, depth)
	}
}

func TestWorkersAreReused(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	b := newBench(t, x, x.file, 64, 4096)
	for range 500 {
		if a := b.do(opFlush, 0, 0); a.result != 0 {
			t.Fatalf("%+v", a)
		}
	}
	if n := b.dev.workers.running; n > 4 {
		t.Errorf("%d workers for one request at a time", n)
	}
}

// TestManyRequestsAtOnce keeps all tags busy with everything.
func TestManyRequestsAtOnce(t *testing.T) {
	x := newToy(t, 64, 8, 64<<10, 64<<10)
	x.chunk = 4096
	const depth = 32
	b := newBench(t, x, x.file, depth, 64<<10)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	ops := []uint32{opRead, opWrite, opZoneAppend, opWriteZeroes, opFlush, opZoneReset, opZoneFinish, opReportZones}
	given := 0
	start := func(tag uint16) {
		op := ops[rng.IntN(len(ops))]
		zone := rng.Uint64N(64) * 128
		n := 1 + rng.Uint64N(16)
		switch op {
		case opFlush, opZoneReset, opZoneFinish:
			n = 0
		case opRead:
			n *= 8
		}
		if op == opZoneFinish || op == opZoneReset || op == opZoneAppend {
			zone = max(zone, 8*128)
		}
		given++
		b.give(tag, op, zone, n)
	}
	for tag := range uint16(depth) {
		start(tag)
	}
	for answered := 0; answered < 20000; {
		if err := b.turn(); err != nil {
			t.Fatal(err)
		}
		for tag := range b.answers {
			delete(b.answers, tag)
			answered++
			start(tag)
		}
	}
	for tag := range uint16(depth) {
		if b.tags[tag].busy {
			b.wait(tag)
		}
	}
	if len(b.bufs.free) != depth {
		t.Errorf("%d of %d buffers are free", len(b.bufs.free), depth)
	}
}

func TestTheMailboxKeepsOrderAndLosesNothing(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	const depth = 256
	b := newBench(t, x, x.file, depth, 4096)
	for round := range 50 {
		var wg sync.WaitGroup
		for part := range 8 {
			wg.Go(func() {
				for i := range depth / 8 {
					r := &b.tags[part*depth/8+i]
					r.busy, r.op, r.step = true, &operations[opFlush], zns.Answer
					b.post(r)
				}
			})
		}
		for len(b.answers) < depth {
			if err := b.turn(); err != nil {
				t.Fatal(err)
			}
		}
		wg.Wait()
		clear(b.answers)
		_ = round
	}
}

func TestProgrammerErrorsPanic(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	b := newBench(t, x, x.file, 4, mib)
	panics := func(what string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", what)
			}
		}()
		f()
	}
	r := &b.tags[0]
	r.op = &operations[opRead]
	panics("an answer without a request", func() { b.finish(r, 0, 0) })
	r.busy = true
	panics("a request on a busy tag", func() { b.serve(r) })
	r.Len = 4096
	panics("too few extents", func() { b.startTransfer(r, false) })
	r.Op, r.Extents = zns.OpWrite, []zns.Extent{{Off: zns.Hole, Len: 4096}}
	panics("a hole in a write", func() { b.startTransfer(r, false) })
	panics("an unknown step", func() { b.advance(r, 99) })
	r.busy = false
}

// flat is the cheapest Target: the file is the device.
type flat struct{ *toy }

func (f flat) Begin(r *zns.Request) zns.Step {
	r.At = r.Start
	r.Extents = append(r.Extents, zns.Extent{Off: int64(r.At), Len: int64(r.Len)})
	return zns.IO
}

func (f flat) End(r *zns.Request, err error) zns.Step {
	r.Err = err
	return zns.Answer
}

// hot makes a bench whose answers cost nothing.
func hot(t testing.TB) (b *bench, do func(flags uint32, n uint64)) {
	x := newToy(t, 4, 1, mib, mib)
	b = newBench(t, flat{x}, x.file, 32, mib)
	answered := false
	b.commit = func(uint16, int32, uint64) error { answered = true; return nil }
	return b, func(flags uint32, n uint64) {
		answered = false
		b.give(0, flags, 0, n)
		for !answered {
			if err := b.turn(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestTheHotPathAllocatesNothing(t *testing.T) {
	b, do := hot(t)
	b.setData(0, random(mib))
	for name, flags := range map[string]uint32{"read": opRead, "write": opWrite, "append": opZoneAppend} {
		for _, n := range []uint64{8, zoneS} {
			if allocs := testing.AllocsPerRun(200, func() { do(flags, n) }); allocs != 0 {
				t.Errorf("%v allocations per %s of %d sectors, want 0", allocs, name, n)
			}
		}
	}
}

func TestTheWayThroughAWorkerAllocatesNothing(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	b := newBench(t, x, x.file, 32, mib)
	answered := false
	b.commit = func(uint16, int32, uint64) error { answered = true; return nil }
	if allocs := testing.AllocsPerRun(200, func() {
		answered = false
		b.give(0, opFlush, 0, 0)
		for !answered {
			if err := b.turn(); err != nil {
				t.Fatal(err)
			}
		}
	}); allocs != 0 {
		t.Errorf("%v allocations per flush, want 0", allocs)
	}
}

func BenchmarkRead4k(b *testing.B)  { benchmark(b, opRead, 8) }
func BenchmarkWrite4k(b *testing.B) { benchmark(b, opWrite, 8) }
func BenchmarkWrite1M(b *testing.B) { benchmark(b, opWrite, zoneS) }

func benchmark(b *testing.B, flags uint32, n uint64) {
	q, do := hot(b)
	q.setData(0, random(mib))
	b.ReportAllocs()
	b.SetBytes(int64(n * 512))
	for b.Loop() {
		do(flags, n)
	}
}

// nothing is a Target with nothing to do: what is left is to decode a request
// and to answer it.
type nothing struct{ *toy }

func (nothing) Begin(r *zns.Request) zns.Step { return zns.Answer }

func BenchmarkDecode4k(b *testing.B) {
	x := newToy(b, 4, 1, mib, mib)
	q := newBench(b, nothing{x}, x.file, 32, mib)
	q.commit = func(uint16, int32, uint64) error { return nil }
	b.ReportAllocs()
	for b.Loop() {
		q.give(0, opWrite, 0, 8)
	}
}

// still is a zns.Media of empty zones that nothing is done to.
type still struct{ zns.Media }

func (still) Pointer(zone uint32) uint64 { return uint64(zone) * mib }

// largestReport makes a function that answers for as many zones as there can be.
func largestReport(t testing.TB) (do func()) {
	x := newToy(t, 1, 0, mib, mib) // for its file
	d, err := zns.New(toyGeometry(MaxZones, 1, mib, mib), still{})
	if err != nil {
		t.Fatal(err)
	}
	q := newBench(t, d, x.file, 4, DefaultMaxIO)
	q.commit = func(uint16, int32, uint64) error { return nil }
	return func() { q.give(0, opReportZones, 0, MaxZones) }
}

func TestAReportAllocatesNothing(t *testing.T) {
	if allocs := testing.AllocsPerRun(10, largestReport(t)); allocs != 0 {
		t.Errorf("%v allocations per report, want 0", allocs)
	}
}

func BenchmarkReport16384(b *testing.B) {
	do := largestReport(b)
	b.ReportAllocs()
	for b.Loop() {
		do()
	}
}

func TestAThreadKeepsToTheCPUsThatItMayUse(t *testing.T) {
	runtime.LockOSThread() // for good: the thread ends with the test
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	var first, others unix.CPUSet
	for i := range len(all) * 64 {
		if all.IsSet(i) && first.Count() == 0 {
			first.Set(i)
		} else if !all.IsSet(i) {
			others.Set(i)
		}
	}
	both := others
	for i := range both {
		both[i] |= first[i]
	}
	for _, c := range []struct {
		name      string
		cpus, now unix.CPUSet
	}{
		{"none", unix.CPUSet{}, all},
		{"forbidden ones", others, all},
		{"one, and forbidden ones", both, first},
	} {
		if err := keepTo(c.cpus); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		var now unix.CPUSet
		if err := unix.SchedGetaffinity(0, &now); err != nil || now != c.now {
			t.Errorf("%s: %v instead of %v (%v)", c.name, now, c.now, err)
		}
	}
}
