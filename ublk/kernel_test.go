//go:build kernel

package ublk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/zns"
)

// These tests run as root on a kernel with ublk:
//
//	go test -tags kernel -exec "$PWD/tests/vm/run-7" ./ublk

// device starts a device for the test and stops it at its end.
func device(t testing.TB, x Target, file *os.File, cfg Config) *Device {
	t.Helper()
	d, err := begin(x, file, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil && !errors.Is(err, ErrGone) {
			t.Errorf("stop: %v", err)
		}
	})
	return d
}

func begin(x Target, file *os.File, cfg Config) (*Device, error) {
	cfg.ID, cfg.DataFD = -1, int(file.Fd())
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return Start(ctx, cfg, x)
}

// node opens the block device for I/O past the page cache.
func node(t testing.TB, d *Device, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(d.Path(), flags|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// direct is memory that O_DIRECT takes.
func direct(t testing.TB, n int) []byte {
	t.Helper()
	p, err := unix.Mmap(-1, 0, roundup(n, 4096), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(p) })
	return p[:n]
}

func blkzone(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("blkzone", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("blkzone %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func (x *toy) count(op zns.Op) int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.calls[op]
}

func sysfs(t testing.TB, d *Device, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/ublkb%d/queue/%s", d.ID(), name))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestTheDriverHasWhatWeNeed(t *testing.T) {
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.Features(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%#x = %v", uint64(f), f)
	if err := f.Check(); err != nil {
		t.Error(err)
	}
	var known Features
	for _, row := range FeatureTable {
		known |= row.Bit
	}
	if f&^known != 0 {
		t.Logf("this kernel has features without a name: %v", f&^known)
	}
	if _, err := c.Info(t.Context(), 77); !errors.Is(err, ErrNoDevice) {
		t.Errorf("a device that is not there: %v", err)
	}
}

func TestTheNodeIsAZonedDevice(t *testing.T) {
	x := newToy(t, 16, 2, 4*mib, 3*mib)
	x.geometry.MaxOpen, x.geometry.MaxActive = 6, 8
	d := device(t, x, x.file, Config{})
	for name, want := range map[string]string{
		"zoned": "host-managed", "nr_zones": "16", "chunk_sectors": "8192",
		"max_open_zones": "6", "max_active_zones": "8", "logical_block_size": "512",
		"physical_block_size": "4096", "rotational": "0", "write_cache": "write back",
		"fua": "1", "discard_max_bytes": "0", "write_zeroes_max_bytes": "4194304",
		"zone_append_max_bytes": "1048576", "max_hw_sectors_kb": "1024",
	} {
		if got := sysfs(t, d, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if err := Unschedule(d.ID()); err != nil { // nothing is in flight
		t.Error(err)
	}
	if s := sysfs(t, d, "scheduler"); !strings.Contains(s, "[none]") {
		t.Errorf("scheduler %s", s)
	}
	report := blkzone(t, "report", d.Path())
	lines := strings.Split(strings.TrimSpace(report), "\n")
	if len(lines) != 16 {
		t.Fatalf("%d zones:\n%s", len(lines), report)
	}
	for i, line := range lines {
		typ, capacity := "SEQ_WRITE_REQUIRED", 3*mib/512
		if i < 2 {
			typ, capacity = "CONVENTIONAL", 4*mib/512
		}
		for _, want := range []string{typ, fmt.Sprintf("start: 0x%09x", i*8192), fmt.Sprintf("cap 0x%06x", capacity)} {
			if !strings.Contains(line, want) {
				t.Errorf("zone %d: no %q in %s", i, want, line)
			}
		}
	}
}

func TestDataSurvivesTheWayThroughTheKernel(t *testing.T) {
	x := newToy(t, 8, 1, 4*mib, 4*mib)
	d := device(t, x, x.file, Config{})
	f := node(t, d, os.O_RDWR)
	data, got := direct(t, 4*mib), direct(t, 4*mib)
	copy(data, random(4*mib))
	for at, sizes, i := 0, []int{512, 4096, 65536, mib, 3 * 512, 2 * mib}, 0; at < len(data); i++ {
		n := min(sizes[i%len(sizes)], len(data)-at)
		if _, err := f.WriteAt(data[at:at+n], int64(4*mib+at)); err != nil {
			t.Fatal(err)
		}
		at += n
	}
	if _, err := f.ReadAt(got, 4*mib); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, data) {
		t.Error("what was written is not what is read")
	}
	copy(got, data)
	if _, err := f.ReadAt(got, 8*mib); err != nil || !bytes.Equal(got, make([]byte, 4*mib)) {
		t.Errorf("an empty zone is not zero (%v)", err)
	}
	// A conventional zone, in any order, over the same place.
	for _, at := range []int{2 * mib, 0, 4096, 0} {
		if _, err := f.WriteAt(data[at:at+8192], int64(at)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(got[:8192], int64(at)); err != nil || !bytes.Equal(got[:8192], data[at:at+8192]) {
			t.Errorf("conventional zone at %d: %v", at, err)
		}
	}
	if report := blkzone(t, "report", "-o", "8192", "-c", "1", d.Path()); !strings.Contains(report, "FULL") && !strings.Contains(report, "(fu)") {
		t.Errorf("the written zone: %s", report)
	}
}

func TestEveryOperationOfTheKernelArrives(t *testing.T) {
	x := newToy(t, 8, 1, 4*mib, 4*mib)
	d := device(t, x, x.file, Config{})
	f := node(t, d, os.O_RDWR)
	p := direct(t, mib)
	arrives := func(op zns.Op, f func()) {
		t.Helper()
		before := x.count(op)
		f()
		if x.count(op) == before {
			t.Errorf("%v did not arrive", op)
		}
	}
	zone := func(args ...string) func() {
		return func() { blkzone(t, append(args, "-o", "8192", "-c", "1", d.Path())...) }
	}
	arrives(zns.OpOpen, zone("open"))
	arrives(zns.OpWrite, func() {
		if _, err := f.WriteAt(p, 4*mib); err != nil {
			t.Error(err)
		}
	})
	arrives(zns.OpClose, zone("close"))
	arrives(zns.OpFlush, func() {
		if err := f.Sync(); err != nil {
			t.Error(err)
		}
	})
	arrives(zns.OpWriteZeroes, func() {
		const blkZeroOut = 0x127f
		span := [2]uint64{5 * mib, mib}
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), blkZeroOut, uintptr(unsafe.Pointer(&span))); e != 0 {
			t.Error(e)
		}
	})
	arrives(zns.OpFinish, zone("finish"))
	arrives(zns.OpReset, zone("reset"))
	arrives(zns.OpResetAll, func() { blkzone(t, "reset", d.Path()) })
	fua := node(t, d, os.O_RDWR|unix.O_DSYNC)
	if _, err := fua.WriteAt(p, 8*mib); err != nil {
		t.Error(err)
	}
	x.mu.Lock()
	if x.fua == 0 {
		t.Error("no FUA write arrived")
	}
	x.mu.Unlock()
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Error(err)
	}
}

func TestErrorsReachTheUserAndEndNothing(t *testing.T) {
	x := newToy(t, 8, 1, 4*mib, 4*mib)
	x.geometry.MaxActive = 2
	core, logs := observer.New(zap.WarnLevel)
	d := device(t, x, x.file, Config{Logger: zap.New(core)})
	f := node(t, d, os.O_RDWR)
	p := direct(t, 4096)
	if _, err := f.WriteAt(p, 4*mib+4096); !errors.Is(err, syscall.EIO) {
		t.Errorf("a write off the pointer: %v", err)
	}
	if n := logs.FilterMessage("request failed").Len(); n == 0 {
		t.Error("nothing was logged")
	}
	for zone := range 3 {
		_, err := f.WriteAt(p, int64(8+4*zone)*mib)
		if want := zone == 2; want != errors.Is(err, syscall.EOVERFLOW) {
			t.Errorf("active zone %d: %v", zone, err)
		}
	}
	if out, err := exec.Command("blkzone", "open", "-o", "0", "-c", "1", d.Path()).CombinedOutput(); err == nil {
		t.Errorf("a conventional zone was opened: %s", out)
	}
	blkzone(t, "reset", "-o", "8192", "-c", "1", d.Path())
	blkzone(t, "reset", "-o", "16384", "-c", "1", d.Path())
	if _, err := f.WriteAt(p, 4*mib); err != nil {
		t.Errorf("after the errors: %v", err)
	}
}

// left counts what a device may leave behind.
type left struct {
	fds, goroutines, nodes, maps int
}

func look(t testing.TB) left {
	t.Helper()
	count := func(pattern string) int {
		m, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		return len(m)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return left{
		fds: count("/proc/self/fd/*"), goroutines: runtime.NumGoroutine(),
		nodes: count("/dev/ublk[bc]*") + count("/sys/block/ublkb*"),
		maps:  bytes.Count(maps, []byte("ublkc")) + bytes.Count(maps, []byte("io_uring")),
	}
}

// beyond says that there is more than before. Fewer goroutines only mean that
// an earlier test's last ones were still on their way out.
func (l left) beyond(before left) bool {
	return l.fds > before.fds || l.goroutines > before.goroutines || l.nodes > before.nodes || l.maps > before.maps
}

// nothingLeft compares with before. Goroutines are counted until their last
// instruction, so it looks more than once.
func nothingLeft(t testing.TB, before left) {
	t.Helper()
	after := look(t)
	for range 1000 {
		if !after.beyond(before) {
			return
		}
		runtime.Gosched()
		after = look(t)
	}
	t.Errorf("left behind: %+v, before %+v", after, before)
}

func TestStopLeavesNothing(t *testing.T) {
	x := newToy(t, 8, 1, 4*mib, 4*mib)
	once := func(cfg Config) {
		d, err := begin(x, x.file, cfg)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 8192), 0); err != nil { // dirty in the page cache
			t.Error(err)
		}
		f.Close()
		if err := d.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := d.Stop(); err != nil {
			t.Errorf("the second stop: %v", err)
		}
		select {
		case <-d.Done():
		default:
			t.Error("not done after stop")
		}
	}
	once(Config{}) // what the runtime makes once stays
	before := look(t)
	for i := range 20 {
		once(Config{Queues: 1 + i%2, Depth: 1 << (i % 8)})
	}
	nothingLeft(t, before)
}

func TestWhatTheKernelWouldRefuseNeverReachesIt(t *testing.T) {
	before, toys := look(t), 1
	x := newToy(t, 4, 1, 4*mib, 4*mib)
	for what, broken := range map[string]func(*toy, *Config){
		"zone size":   func(x *toy, _ *Config) { x.geometry.ZoneSize = 3 * mib },
		"report":      func(x *toy, _ *Config) { x.zones[2].Capacity = 5 },
		"write point": func(x *toy, _ *Config) { x.zones[2].done = 0 },
		"depth":       func(_ *toy, c *Config) { c.Depth = 5000 },
		"max io":      func(_ *toy, c *Config) { c.MaxIO = 1000 },
	} {
		y, cfg := newToy(t, 4, 1, 4*mib, 4*mib), Config{}
		toys++
		broken(y, &cfg)
		if d, err := begin(y, x.file, cfg); err == nil {
			d.Stop()
			t.Errorf("%s: started", what)
		} else {
			t.Logf("%s: %v", what, err)
		}
	}
	before.fds += toys // their files
	nothingLeft(t, before)
}

func TestAStartThatFailsUndoesItself(t *testing.T) {
	x := newToy(t, 4, 1, 4*mib, 4*mib)
	d := device(t, x, x.file, Config{})
	before := look(t)
	// The id is taken.
	if e, err := Start(t.Context(), Config{ID: d.ID(), DataFD: int(x.file.Fd())}, x); err == nil {
		e.Stop()
		t.Fatal("two devices with one id")
	} else if !errors.Is(err, syscall.EEXIST) {
		t.Errorf("%v", err)
	}
	// The data file cannot be registered: found out by the queue.
	if e, err := Start(t.Context(), Config{ID: -1, DataFD: 999, Queues: 2}, x); err == nil {
		e.Stop()
		t.Fatal("started without a data file")
	} else {
		t.Log(err)
	}
	// The caller gave up.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if e, err := Start(ctx, Config{ID: -1, DataFD: int(x.file.Fd())}, x); err == nil {
		e.Stop()
		t.Fatal("started though the context had ended")
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	nothingLeft(t, before)
}

// TestAStartCutShortBeforeTheNode undoes a start whose queues already serve.
func TestAStartCutShortBeforeTheNode(t *testing.T) {
	x := newToy(t, 4, 1, 4*mib, 4*mib)
	device(t, x, x.file, Config{}).Stop() // what the runtime makes once stays
	before := look(t)
	cfg := Config{ID: -1, Queues: 2, DataFD: int(x.file.Fd())}.withDefaults()
	p, err := deviceParams(cfg, x.geometry)
	if err != nil {
		t.Fatal(err)
	}
	ctl, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	d := &Device{cfg: cfg, geometry: x.geometry, target: x, log: cfg.Logger, ctl: ctl, charFD: -1}
	if err := d.add(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := ctl.setParams(t.Context(), d.id, &p); err != nil {
		t.Error(err)
	}
	if d.charFD, err = openChar(t.Context(), d.id); err != nil {
		t.Fatal(err)
	}
	if err := d.startQueues(t.Context()); err != nil {
		t.Error(err)
	}
	d.discard()
	ctl.Close()
	nothingLeft(t, before)
}

func TestBlocksOf4KiBAndReadOnlyDevices(t *testing.T) {
	x := newToy(t, 4, 1, 4*mib, 4*mib)
	x.geometry.BlockSize = 4096
	d := device(t, x, x.file, Config{ReadOnly: true})
	if got := sysfs(t, d, "logical_block_size"); got != "4096" {
		t.Errorf("logical block size %s", got)
	}
	f := node(t, d, os.O_RDONLY)
	if _, err := f.ReadAt(direct(t, 4096), 4096); err != nil {
		t.Error(err)
	}
	if _, err := f.ReadAt(direct(t, 512), 512); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a read of half a block: %v", err)
	}
	const blkROGet = 0x125e
	ro, err := unix.IoctlGetInt(int(f.Fd()), blkROGet)
	if err != nil || ro != 1 {
		t.Errorf("read-only is %d (%v)", ro, err)
	}
}

func TestSomebodyElseCanStopTheDevice(t *testing.T) {
	x := newToy(t, 4, 1, 4*mib, 4*mib)
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, how := range []struct {
		name string
		end  func(context.Context, *Device) error
	}{
		{"stop", func(ctx context.Context, d *Device) error { return c.Stop(ctx, d.ID()) }},
		{"delete", func(ctx context.Context, d *Device) error { return c.Delete(ctx, d.ID(), d.mark) }},
	} {
		d, err := begin(x, x.file, Config{Queues: 2})
		if err != nil {
			t.Fatal(err)
		}
		info, err := c.Info(t.Context(), d.ID())
		if err != nil {
			t.Fatal(err)
		}
		if info.State != StateLive || info.PID != os.Getpid() || info.Depth != DefaultDepth || !info.Features.Has(fZoned) || !info.Ours() {
			t.Errorf("%+v", info)
		}
		all, err := c.List(t.Context())
		if err != nil || len(all) != 1 || all[0] != info {
			t.Errorf("list: %+v, %v", all, err)
		}
		// Whoever means another device that had the number does no harm.
		if err := c.Delete(t.Context(), d.ID(), d.mark+1); err != nil {
			t.Errorf("delete with another mark: %v", err)
		}
		if now, err := c.Info(t.Context(), d.ID()); err != nil || now.State != StateLive {
			t.Errorf("after a delete with another mark: %+v, %v", now, err)
		}
		if err := how.end(t.Context(), d); err != nil {
			t.Errorf("%s: %v", how.name, err)
		}
		if err := d.Wait(); !errors.Is(err, ErrGone) {
			t.Errorf("%s: the device ended with %v", how.name, err)
		}
		if err := d.Stop(); !errors.Is(err, ErrGone) {
			t.Errorf("%s: stop afterwards: %v", how.name, err)
		}
		if _, err := os.Stat(CharPath(d.ID())); err == nil {
			t.Errorf("%s: %s is still there", how.name, CharPath(d.ID()))
		}
	}
}

func TestStopWithTheNodeOpenElsewhere(t *testing.T) {
	x := newToy(t, 4, 1, 4*mib, 4*mib)
	d := device(t, x, x.file, Config{})
	f := node(t, d, os.O_RDONLY)
	if d.Features().Has(fSafeStopDev) {
		if err := d.ctl.TryStop(t.Context(), d.ID()); !errors.Is(err, ErrBusy) {
			t.Errorf("try stop: %v", err)
		}
	}
	begun := time.Now()
	if err := d.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if took := time.Since(begun); took > 3*deleteWait {
		t.Errorf("stop took %v", took)
	}
	if _, err := f.ReadAt(direct(t, 4096), 0); err == nil {
		t.Error("the open node still reads")
	}
	f.Close()
}

func TestABrokenQueueEndsTheDevice(t *testing.T) {
	x := newToy(t, 4, 1, 4*mib, 4*mib)
	for _, queues := range []int{1, 2} {
		d, err := begin(x, x.file, Config{Queues: queues})
		if err != nil {
			t.Fatal(err)
		}
		d.fail(errors.New("made up by the test"))
		if err := d.Wait(); err == nil || !strings.Contains(err.Error(), "made up") {
			t.Errorf("%d queues: %v", queues, err)
		}
		if _, err := os.Stat(d.Path()); err == nil {
			t.Errorf("%d queues: %s is still there", queues, d.Path())
		}
	}
}

func TestTheLargestDevice(t *testing.T) {
	x := newToy(t, MaxZones, 16, 64<<10, 64<<10)
	begun := time.Now()
	d := device(t, x, x.file, Config{})
	t.Logf("%d zones took %v", MaxZones, time.Since(begun))
	zones, err := ReportZones(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	if len(zones) != MaxZones {
		t.Fatalf("%d zones", len(zones))
	}
	for i := range zones {
		if want := x.Zone(uint32(i)); zones[i] != want {
			t.Fatalf("zone %d: %+v, want %+v", i, zones[i], want)
		}
	}
	f := node(t, d, os.O_RDWR)
	p := direct(t, 4096)
	for _, i := range []int64{0, 15, 16, MaxZones - 1} {
		if _, err := f.WriteAt(p, i<<16); err != nil {
			t.Errorf("zone %d: %v", i, err)
		}
	}
}

// TestFioVerifies has fio write zones and read them back, through several
// queues, with and without large requests.
func TestFioVerifies(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Fatal("fio is not installed")
	}
	x := newToy(t, 32, 2, 4*mib, 3*mib)
	for _, c := range []struct {
		cfg  Config
		args []string
	}{
		{Config{Queues: 2, Depth: 64}, []string{"--rw=write", "--bs=64k", "--iodepth=16", "--io_size=12m"}},
		{Config{Queues: 1, Depth: 16}, []string{"--rw=randwrite", "--bs=4k", "--iodepth=8", "--io_size=4m"}},
		{Config{Queues: 2, Depth: 128, MaxIO: 4 * mib}, []string{"--rw=write", "--bsrange=4k-1m", "--bs_unaligned=0", "--iodepth=4", "--io_size=18m"}},
	} {
		d, err := begin(x, x.file, c.cfg)
		if err != nil {
			t.Fatal(err)
		}
		blkzone(t, "reset", d.Path())
		args := append([]string{
			"--name=verify", "--filename=" + d.Path(), "--direct=1", "--ioengine=libaio", "--zonemode=zbd",
			"--offset=8m", "--size=24m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--max_open_zones=4",
			"--output-format=terse",
		}, c.args...)
		if out, err := exec.Command("fio", args...).CombinedOutput(); err != nil {
			t.Errorf("fio %v: %v\n%s", args, err, out)
		}
		if err := d.Stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAppendsAreAnsweredWithTheirPlace lets btrfs do what no system call can:
// it writes its data by zone append and believes the answer.
func TestAppendsAreAnsweredWithTheirPlace(t *testing.T) {
	x := newToy(t, 64, 0, 4*mib, 4*mib)
	d := device(t, x, x.file, Config{Queues: 2})
	sh := func(script string) string {
		t.Helper()
		out, err := exec.Command("sh", "-euc", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	dir := t.TempDir()
	sh("modprobe btrfs; mkfs.btrfs -q -O zoned " + d.Path())
	sh("mount " + d.Path() + " " + dir)
	data := random(9 * mib)
	for i := range 3 {
		name := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(name, data[i*3*mib:(i+1)*3*mib], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sh("umount " + dir + "; mount " + d.Path() + " " + dir)
	for i := range 3 {
		got, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil || !bytes.Equal(got, data[i*3*mib:(i+1)*3*mib]) {
			t.Errorf("file %d differs (%v)", i, err)
		}
	}
	sh("umount " + dir)
	t.Logf("%d appends, %d writes, %d flushes", x.count(zns.OpAppend), x.count(zns.OpWrite), x.count(zns.OpFlush))
	if x.count(zns.OpAppend) == 0 {
		t.Error("no append arrived")
	}
}
