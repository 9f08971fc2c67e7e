package ublk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// inMemory makes a file on tmpfs.
func inMemory(t testing.TB) *os.File {
	t.Helper()
	f, err := os.CreateTemp("/dev/shm", "ublk-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		os.Remove(f.Name())
	})
	return f
}

func TestAFileInMemoryNeedsNoRing(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	x.file = inMemory(t)
	b := newBench(t, x, x.file, 4, mib)
	b.shortcut.open(int(x.file.Fd()))
	data := random(mib)
	b.setData(0, data)
	b.give(0, opWrite, zoneS, zoneS)
	if a, ok := b.answers[0]; !ok || a.result != mib {
		t.Fatalf("write: %+v, answered at once: %v", a, ok)
	}
	delete(b.answers, 0)
	b.setData(0, make([]byte, mib))
	b.give(0, opRead, zoneS, zoneS)
	if a, ok := b.answers[0]; !ok || a.result != mib {
		t.Fatalf("read: %+v, answered at once: %v", a, ok)
	}
	delete(b.answers, 0)
	if !bytes.Equal(b.getData(0, mib), data) {
		t.Error("the data differs")
	}
	// The end of the file goes the long way, and reads as zeros.
	if err := x.file.Truncate(mib + 1000); err != nil {
		t.Fatal(err)
	}
	b.setData(0, random(4096))
	if a := b.do(opRead, zoneS, 8); a.result != 4096 {
		t.Fatalf("%+v", a)
	}
	if got := b.getData(0, 4096); !bytes.Equal(got[:1000], data[:1000]) || !bytes.Equal(got[1000:], make([]byte, 3096)) {
		t.Error("the end of the file differs")
	}
}

func TestWhatMustWaitTakesTheRing(t *testing.T) {
	dir := t.TempDir()
	f, err := os.OpenFile(filepath.Join(dir, "direct"), os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var s shortcut
	s.open(int(f.Fd()))
	if s.read || s.write {
		t.Error("O_DIRECT is taken for something that need not wait")
	}
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer w.Close()
	s.open(int(w.Fd()))
	if n := s.move(false, []byte{1}, 0); n != 0 {
		t.Errorf("%d bytes were written to a pipe at an offset", n)
	}
	s.open(-1)
	if n := s.move(true, []byte{1}, 0); n != 0 {
		t.Errorf("%d bytes were read from nothing", n)
	}
}

func TestTheShortcutAllocatesNothing(t *testing.T) {
	b, do := hot(t)
	b.setData(0, random(mib))
	b.shortcut.open(b.dev.cfg.DataFD)
	for _, flags := range []uint32{opRead, opWrite} {
		do(flags, zoneS)
		if allocs := testing.AllocsPerRun(200, func() { do(flags, 8) }); allocs != 0 {
			t.Errorf("%v allocations for operation %d, want 0", allocs, flags)
		}
	}
}

func BenchmarkWrite4kInMemory(b *testing.B) { benchmarkInMemory(b, opWrite) }
func BenchmarkRead4kInMemory(b *testing.B)  { benchmarkInMemory(b, opRead) }

func benchmarkInMemory(b *testing.B, flags uint32) {
	q, do := hot(b)
	f := inMemory(b)
	if err := f.Truncate(4 * mib); err != nil {
		b.Fatal(err)
	}
	q.shortcut.open(int(f.Fd()))
	q.setData(0, random(mib))
	b.ReportAllocs()
	for b.Loop() {
		do(flags, 8)
	}
}
