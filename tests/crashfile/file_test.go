package crashfile

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"syscall"
	"testing"
)

func block(v byte, sectors int) []byte { return bytes.Repeat([]byte{v}, sectors*SectorSize) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, f *File, v byte, sector, n int64) {
	t.Helper()
	_, err := f.WriteAt(block(v, int(n)), sector*SectorSize)
	must(t, err)
}

// read returns the first byte of a sector, and makes sure that it is whole.
func read(t *testing.T, f *File, sector int64) byte {
	t.Helper()
	p := make([]byte, SectorSize)
	if _, err := f.ReadAt(p, sector*SectorSize); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if !bytes.Equal(p, block(p[0], 1)) {
		t.Fatalf("sector %d is torn", sector)
	}
	return p[0]
}

// Each sector goes its own way: of what no sync has covered every version is
// met, of what one has covered only the last, and none that never was.
func TestACutLeavesAnyVersionSinceTheLastSync(t *testing.T) {
	seen := map[int64]map[byte]bool{}
	for seed := range uint64(400) {
		f := New()
		write(t, f, 9, 0, 4)
		write(t, f, 1, 0, 4)
		must(t, f.Sync())
		write(t, f, 2, 0, 2)
		must(t, f.WriteDurable(block(3, 1), 2*SectorSize))
		must(t, f.Punch(0, SectorSize))
		write(t, f, 4, 4, 1) // longer than what is durable
		n := f.Cut(rand.New(rand.NewPCG(seed, 0)))
		for s := range int64(5) {
			if seen[s] == nil {
				seen[s] = map[byte]bool{}
			}
			seen[s][read(t, n, s)] = true
		}
		if _, err := f.WriteAt(block(5, 1), 0); !errors.Is(err, ErrCut) {
			t.Fatalf("the dead process writes: %v", err)
		}
	}
	for s, want := range [][]byte{{1, 2, 0}, {1, 2}, {3}, {1}, {0, 4}} {
		for _, v := range want {
			if !seen[int64(s)][v] {
				t.Errorf("sector %d never was %d", s, v)
			}
		}
		if len(seen[int64(s)]) != len(want) {
			t.Errorf("sector %d was %v, want only %v", s, seen[int64(s)], want)
		}
	}
}

func TestAKillLeavesThePageCacheAndItsUncertainty(t *testing.T) {
	lost := false
	for seed := range uint64(50) {
		f := New()
		write(t, f, 1, 0, 1)
		must(t, f.Sync())
		write(t, f, 2, 0, 1)
		n := f.Kill()
		if v := read(t, n, 0); v != 2 {
			t.Fatalf("the successor reads %d, want 2", v)
		}
		lost = lost || read(t, n.Cut(rand.New(rand.NewPCG(seed, 0))), 0) == 1
	}
	if !lost {
		t.Error("what a killed process has not synced is never lost")
	}
}

func TestThePowerGoesOffWhereItIsToldTo(t *testing.T) {
	f := New()
	write(t, f, 1, 0, 1)
	f.CutIn(2)
	write(t, f, 2, 0, 1)
	if err := f.Sync(); !errors.Is(err, ErrCut) || !f.Dead() {
		t.Errorf("second operation: %v", err)
	}
	f = f.Kill()
	f.CutInDurableWrite(2)
	must(t, f.WriteDurable(block(3, 1), 0))
	must(t, f.Sync())
	if err := f.WriteDurable(block(4, 1), 0); !errors.Is(err, ErrCut) {
		t.Errorf("second durable write: %v", err)
	}
}

func TestAFullOrFailingFileSaysSo(t *testing.T) {
	f := New()
	write(t, f, 1, 0, 2)
	f.Fill(1)
	if _, err := f.WriteAt(block(2, 3), SectorSize); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("two more sectors with room for one: %v", err)
	}
	write(t, f, 2, 1, 2)
	f.Fill(-1)
	write(t, f, 2, 3, 1)
	f.Fault(func(op Op) error {
		if op.Kind == Write {
			return ErrShortWrite
		}
		return syscall.EIO
	})
	if n, err := f.WriteAt(block(3, 4), 0); n != 2*SectorSize || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("short write: %d bytes, %v", n, err)
	}
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Errorf("failing sync: %v", err)
	}
	f.Fault(nil)
	if a, b := read(t, f, 1), read(t, f, 2); a != 3 || b != 2 {
		t.Errorf("sectors 1 and 2 are %d and %d after half a write, want 3 and 2", a, b)
	}
}

// The kernel calls clean what it could not write: a later sync says nothing
// about it, only a later write does.
func TestWhatAFailedSyncHasNotWrittenIsNotDurableLater(t *testing.T) {
	seen := map[byte]bool{}
	for seed := range uint64(100) {
		f := New()
		write(t, f, 1, 0, 3)
		must(t, f.Sync())
		write(t, f, 2, 0, 2)
		f.Fault(func(op Op) error {
			if op.Kind == Sync || op.Kind == WriteDurable {
				return syscall.EIO
			}
			return nil
		})
		if err := f.Sync(); !errors.Is(err, syscall.EIO) {
			t.Fatalf("sync: %v", err)
		}
		if err := f.WriteDurable(block(2, 1), 2*SectorSize); !errors.Is(err, syscall.EIO) {
			t.Fatalf("durable write: %v", err)
		}
		f.Fault(nil)
		write(t, f, 3, 1, 1)
		must(t, f.Sync())
		if v := read(t, f, 0); v != 2 {
			t.Fatalf("the page cache has %d, want 2", v)
		}
		n := f.Cut(rand.New(rand.NewPCG(seed, 0)))
		if v := read(t, n, 1); v != 3 {
			t.Fatalf("what was written again is %d, want 3", v)
		}
		seen[read(t, n, 0)] = true
		seen[10+read(t, n, 2)] = true
	}
	for _, v := range []byte{1, 2, 11, 12} {
		if !seen[v] {
			t.Errorf("never seen: %d", v)
		}
	}
}

func TestACutIsFoundInItsOperation(t *testing.T) {
	f := New()
	var told []Kind
	f.Watch(func(op Op, _ []byte) { told = append(told, op.Kind) })
	write(t, f, 1, 0, 1)
	f.CutIn(1)
	if err := f.WriteDurable(block(2, 1), SectorSize); !errors.Is(err, ErrCut) {
		t.Fatalf("durable write: %v", err)
	}
	if op, ok := f.CutOp(); !ok || op.Kind != WriteDurable || op.Off != SectorSize {
		t.Errorf("the power went off in %+v, %v", op, ok)
	}
	if len(told) != 2 || told[1] != WriteDurable {
		t.Errorf("told of %v", told)
	}
}
