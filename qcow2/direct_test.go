package qcow2

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"testing"
)

// openDirect is a file of n random bytes with a way for data past the page
// cache, or where the file system of the test has none, with one that demands
// as much.
func openDirect(t *testing.T, n int) (*OSFile, []byte) {
	t.Helper()
	f := openOS(t, lockFile(t))
	content := make([]byte, n)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(n)); err != nil {
		t.Fatal(err)
	}
	_, err := f.UseDirect()
	if errors.Is(err, ErrNoDirect) {
		f.needs = Direct{Offset: 512, Memory: 512, Block: 4096}
		f.direct, err = os.OpenFile(f.Name(), os.O_RDWR, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f, content
}

func TestZerosGoPastThePageCacheToTheLastByte(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, noPunch := range []bool{false, true} {
		const sectors = 2048
		f, want := openDirect(t, sectors*512)
		f.noPunch.Store(noPunch)
		unit := int64(f.needs.Offset) // of what a request can ask for
		for range 200 {
			off := rng.Int64N(sectors*512/unit) * unit
			n := min((1+rng.Int64N(64))*unit, sectors*512-off)
			if rng.IntN(2) == 0 { // something to zero
				data := alignedBytes(int(n))
				for i := range data {
					data[i] = byte(rng.Uint32())
				}
				if _, err := dataWay(f).WriteAt(data, off); err != nil {
					t.Fatal(err)
				}
				copy(want[off:], data)
				continue
			}
			if err := f.Punch(off, n); err != nil {
				t.Fatal(err)
			}
			clear(want[off : off+n])
		}
		got := alignedBytes(len(want))
		if _, err := dataWay(f).ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Error("read past the page cache the file differs")
		}
		if err := f.Punch(int64(len(want))-unit, 8*unit); err != nil {
			t.Fatal(err)
		}
		if n, err := f.Size(); err != nil || n != int64(len(want)) {
			t.Errorf("zeros beyond the end made the file %d bytes long, %v", n, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		back, err := os.ReadFile(f.Name())
		clear(want[int64(len(want))-unit:])
		if err != nil || !bytes.Equal(back, want) {
			t.Errorf("read through the page cache the file differs (%v)", err)
		}
	}
}

func TestTheWayOfTheDataKeepsTheLock(t *testing.T) {
	f := openOS(t, lockFile(t))
	if err := Lock(f.File, true); err != nil {
		t.Fatal(err)
	}
	if _, err := f.UseDirect(); err != nil && !errors.Is(err, ErrNoDirect) {
		t.Fatal(err)
	}
	if f.direct != nil {
		f.direct.Close()
		f.direct = nil
	}
	other := openOS(t, f.Name())
	if err := Lock(other.File, false); !errors.Is(err, ErrInUse) {
		t.Errorf("a second lock: %v", err)
	}
}
