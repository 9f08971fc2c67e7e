package qcow2

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var preallocShapes = []string{
	"size=64M,zone.size=8M,zone.conventional_zones=2",
	"size=20M,zone.size=4M,zone.capacity=3M,cluster_size=512,refcount_bits=1",
	"size=10000K,zone.size=2M,zone.capacity=1000448,zone.max_append_bytes=4096,cluster_size=4K,refcount_bits=64,zone.conventional_zones=1",
	"size=33M,zone.size=8M,zone.capacity=5M,cluster_size=2M,refcount_bits=8,zone.max_active_zones=3",
}

func forPreallocations(t *testing.T, do func(t *testing.T, path string, o CreateOptions)) {
	for _, shape := range preallocShapes {
		for _, p := range []Preallocation{PreallocationMetadata, PreallocationFalloc, PreallocationFull} {
			t.Run(fmt.Sprintf("%s,%s", p, shape), func(t *testing.T) {
				o, _, err := ParseCreateOptions([]string{shape, "preallocation=" + p.String()}, "")
				must(t, err)
				path := filepath.Join(t.TempDir(), "image")
				must(t, Create(path, o))
				do(t, path, o)
			})
		}
	}
}

func TestAPreallocatedImageIsMappedEmptyAndClean(t *testing.T) {
	forPreallocations(t, func(t *testing.T, path string, o CreateOptions) {
		f := openOS(t, path)
		checkClean(t, f)
		in, err := ReadInfo(f)
		must(t, err)
		h, wps, err := ReadPointers(f)
		must(t, err)
		mapped := int64(0)
		for i, wp := range wps {
			if start := h.ZoneStart(uint32(i)); wp != start {
				t.Errorf("zone %d is at %#x, want it empty", i, wp)
			}
			mapped += h.roundUp(int64(h.ZoneCapacity(uint32(i))))
		}
		if *in.Allocated != mapped {
			t.Errorf("%d bytes are mapped, want %d", *in.Allocated, mapped)
		}
		switch o.Preallocation {
		case PreallocationMetadata:
			if in.DiskSize > in.FileSize-mapped+1<<20 {
				t.Errorf("the file takes %d bytes of the disk; it has %d, of which %d are data", in.DiskSize, in.FileSize, mapped)
			}
		default:
			if in.DiskSize < mapped {
				t.Errorf("the file takes %d bytes of the disk, want at least %d", in.DiskSize, mapped)
			}
		}
		if hole, err := unix.Seek(int(f.Fd()), in.FileSize-mapped, unix.SEEK_HOLE); o.Preallocation == PreallocationFull && (err != nil || hole != in.FileSize) {
			t.Errorf("there is a hole at %d of %d, %v", hole, in.FileSize, err)
		}
		im := open(t, openOS(t, path), Options{ReadOnly: true})
		for z := range im.nrZones {
			p, err := read(im, int(h.ZoneLength(z)), h.ZoneStart(z))
			must(t, err)
			if !allZero(p) {
				t.Errorf("zone %d does not read as zeros", z)
			}
			if n := hostRuns(t, im, h.ZoneStart(z), h.ZoneCapacity(z)); n != 1 {
				t.Errorf("zone %d lies in %d pieces", z, n)
			}
		}
		qemuAgrees(t, path)
	})
}

func TestAPreallocatedImageStaysCleanInUse(t *testing.T) {
	forPreallocations(t, func(t *testing.T, path string, o CreateOptions) {
		size := func() int64 {
			st, err := os.Stat(path)
			must(t, err)
			return st.Size()
		}
		whole := size()
		im := open(t, openOS(t, path), Options{})
		h := im.Header()
		for z := range im.nrZones {
			n := int(h.ZoneCapacity(z)) / 3 &^ 511
			if im.conventional(z) {
				must(t, put(im, fill(n, byte(z+1)), h.ZoneStart(z)+512))
			} else if z%3 != 0 {
				grow(t, im, z, n, 256<<10)
			}
		}
		must(t, im.Round())
		if n := size(); n != whole {
			t.Errorf("writing made the file %d bytes long, it had %d", n, whole)
		}
		must(t, im.Close())
		checkClean(t, openOS(t, path))
		wps, data := dataOf(t, openOS(t, path))

		im = open(t, openOS(t, path), Options{})
		last := im.nrZones - 1
		must(t, im.Reset([]uint32{last}))
		must(t, im.Finish(last-1, im.Pointer(last-1)))
		p, err := read(im, int(h.ZoneCapacity(last)), h.ZoneStart(last))
		must(t, err)
		if !allZero(p) {
			t.Error("a reset zone does not read as zeros")
		}
		must(t, im.Close())
		checkClean(t, openOS(t, path))
		if in, err := ReadInfo(openOS(t, path)); err != nil || *in.Allocated > whole-h.roundUp(int64(h.ZoneCapacity(last))) {
			t.Errorf("after a reset %d bytes are mapped, %v", *in.Allocated, err)
		}
		full := make([]byte, h.ZoneCapacity(last-1))
		copy(full, data[last-1])
		wps[last], data[last] = h.ZoneStart(last), nil
		wps[last-1], data[last-1] = h.ZoneStart(last-1)+h.ZoneCapacity(last-1), full
		wantData(t, openOS(t, path), wps, data)
		qemuAgrees(t, path)
	})
}

// What is mapped above the pointers is not known to be empty when the image was
// not closed: it goes.
func TestAPreallocatedImageThatWasNotClosedLosesWhatIsAhead(t *testing.T) {
	f := newMemFile()
	build(t, f, spec{clusterBits: 12, refOrder: 4, size: 2 << 20, zoneSize: 256 << 10, conventional: 1, prealloc: PreallocationFull})
	im := open(t, f, Options{})
	grow(t, im, 2, 64<<10, 64<<10)
	must(t, put(im, fill(4096, 9), 0))
	must(t, im.Round())
	im.Abandon()
	wps, data := dataOf(t, f)
	f = f.cut(rand.New(rand.NewPCG(1, 1)))
	im = open(t, f, Options{})
	must(t, im.Close())
	wantClean(t, f)
	wantData(t, f, wps, data)
	if in, err := ReadInfo(f); err != nil || *in.Allocated != 256<<10+64<<10 {
		t.Errorf("%d bytes are mapped, want a conventional zone's and what was written, %v", *in.Allocated, err)
	}
}

func TestPreallocationTellsItsProgress(t *testing.T) {
	for p := range Preallocation(len(preallocationNames)) {
		last, total := int64(-1), int64(0)
		o := CreateOptions{Size: 64 << 20, ZoneSize: 8 << 20, Preallocation: p, Progress: func(done, of int64) {
			if done <= last || done > of {
				t.Errorf("%d of %d after %d", done, of, last)
			}
			last, total = done, of
		}}
		must(t, Create(filepath.Join(t.TempDir(), "image"), o))
		if p != PreallocationOff && (last != total || total == 0) {
			t.Errorf("%s: it ended at %d of %d", p, last, total)
		}
	}
}

// listing names what is in a directory, with sizes.
func listing(t *testing.T, dir string) (names string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range list {
		st, err := e.Info()
		must(t, err)
		names += fmt.Sprintf("%s:%d ", e.Name(), st.Size())
	}
	return names
}

// fullDisk fails the operation that failAt counts down to, as a full disk does,
// or kills the process.
type fullDisk struct {
	*OSFile
	n, failAt int
	kill      bool
}

func (f *fullDisk) step() error {
	if f.n++; f.n != f.failAt {
		return nil
	}
	if f.kill {
		_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	}
	return syscall.ENOSPC
}

func (f *fullDisk) WriteAt(p []byte, off int64) (int, error) {
	if err := f.step(); err != nil {
		return 0, err
	}
	return f.OSFile.WriteAt(p, off)
}

func (f *fullDisk) Truncate(n int64) error { return errors.Join(f.step(), f.OSFile.Truncate(n)) }
func (f *fullDisk) Sync() error            { return errors.Join(f.step(), f.OSFile.Sync()) }
func (f *fullDisk) Reserve(off, n int64) error {
	return errors.Join(f.step(), f.OSFile.Reserve(off, n))
}

func TestAFullDiskLeavesNothingOfAnImage(t *testing.T) {
	for p := range Preallocation(len(preallocationNames)) {
		for _, replace := range []bool{false, true} {
			dir := t.TempDir()
			path := filepath.Join(dir, "image")
			if replace {
				must(t, os.WriteFile(path, []byte("something else"), 0o600))
			}
			before := listing(t, dir)
			o := CreateOptions{Size: 16 << 20, ZoneSize: 8 << 20, Preallocation: p}
			for at := 1; ; at++ {
				err := createWith(path, o, func(f *OSFile) File { return &fullDisk{OSFile: f, failAt: at} })
				if err == nil {
					checkClean(t, openOS(t, path))
					if at < 9 {
						t.Errorf("preallocation %s took only %d operations", p, at-1)
					}
					break
				}
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				}
				if got := listing(t, dir); got != before {
					t.Fatalf("preallocation %s, a full disk in operation %d left %s", p, at, got)
				}
			}
		}
	}
}

const killEnv = "QCOW2_TEST_KILL_CREATE"

// A process that is killed while it creates an image leaves none under the name,
// and whatever had the name before. The process is this test once more.
func TestAKilledCreateLeavesNoHalfImage(t *testing.T) {
	if v := os.Getenv(killEnv); v != "" {
		path, at, _ := strings.Cut(v, "=")
		n, err := strconv.Atoi(at)
		must(t, err)
		o := CreateOptions{Size: 16 << 20, ZoneSize: 8 << 20, Preallocation: PreallocationFull}
		must(t, createWith(path, o, func(f *OSFile) File { return &fullDisk{OSFile: f, failAt: n, kill: true} }))
		return
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	for at := 1; ; at++ {
		before := listing(t, dir)
		cmd := exec.Command(os.Args[0], "-test.run=^TestAKilledCreateLeavesNoHalfImage$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s=%d", killEnv, path, at))
		out, err := cmd.CombinedOutput()
		if err == nil {
			checkClean(t, openOS(t, path))
			break
		}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
			t.Fatalf("%v\n%s", err, out)
		}
		if got := listing(t, dir); got != before {
			// Only where files always have names one is left, a hidden one.
			if _, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o600); err == nil || strings.Contains(got, "image:") {
				t.Fatalf("killed in operation %d it left %s", at, got)
			}
		}
		if at == 4 {
			must(t, os.WriteFile(path, []byte("something else"), 0o600))
		}
	}
}

// Every value that is refused is refused before anything is on the disk.
func TestARefusedOptionLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	for _, o := range []CreateOptions{
		{}, {Size: 1}, {Size: 1 << 30, ClusterSize: 3}, {Size: 1 << 30, RefcountBits: 3}, {Size: 1 << 30, ZoneSize: 3 << 20},
		{Size: 1 << 30, ZoneCapacity: 1}, {Size: 1 << 30, Conventional: 4}, {Size: 1 << 30, MaxOpen: 5}, {Size: 1 << 30, MaxActive: 5},
		{Size: 1 << 30, MaxAppend: 1}, {Size: 1 << 30, MaxOpen: 3, MaxActive: 2}, {Size: 1 << 62}, {Size: 1 << 50, ZoneSize: 1 << 20},
		{Size: 1 << 30, Preallocation: 4},
	} {
		if err := Create(filepath.Join(dir, "image"), o); err == nil {
			t.Errorf("%+v is accepted", o)
		}
		if got := listing(t, dir); got != "" {
			t.Fatalf("%+v left %s", o, got)
		}
	}
	if err := Create(filepath.Join(dir, "none", "image"), CreateOptions{Size: 1 << 30}); err == nil || !strings.Contains(err.Error(), "none/image: no such file") {
		t.Errorf("in a directory that is not there: %v", err)
	}
}

func TestAFileThatCannotReserveSpaceIsNamed(t *testing.T) {
	err := Format(newMemFile(), CreateOptions{Size: 1 << 20, ZoneSize: 128 << 10, Preallocation: PreallocationFalloc})
	if err == nil || err.Error() != "this kind of file cannot reserve space" {
		t.Error(err)
	}
}
