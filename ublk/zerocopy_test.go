package ublk

import (
	"bytes"
	"testing"
)

// TestWhatCannotGoStraightIsCopied has a ring without places for buffers and a
// file that is no driver: every attempt at zero copy fails.
func TestWhatCannotGoStraightIsCopied(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	b := newBench(t, x, x.file, 4, mib)
	b.zeroCopy = true
	data := random(mib)
	if _, err := b.char.WriteAt(data, copyPos(0, 1)); err != nil {
		t.Fatal(err)
	}
	const sectors = mib / 512
	b.give(1, opWrite, zoneS, sectors)
	if a := b.wait(1); a.result != mib {
		t.Fatalf("write: %+v", a)
	}
	b.give(2, opRead, zoneS, sectors)
	if a := b.wait(2); a.result != mib {
		t.Fatalf("read: %+v", a)
	}
	got := make([]byte, mib)
	if _, err := b.char.ReadAt(got, copyPos(0, 2)); err != nil || !bytes.Equal(got, data) {
		t.Errorf("what was written is not what is read (%v)", err)
	}
	if len(b.bufs.free) != 4 {
		t.Errorf("%d of 4 buffers are free", len(b.bufs.free))
	}
}

func TestWhoGetsZeroCopy(t *testing.T) {
	for _, c := range []struct {
		no, can, want bool
	}{{false, true, true}, {true, true, false}, {false, false, false}} {
		f := fUserCopy
		if c.can {
			f |= fSupportZeroCopy
		}
		if got := (Config{NoZeroCopy: c.no}).zeroCopy(f); got != c.want {
			t.Errorf("asked not to: %v, by a driver that can: %v: %v", c.no, c.can, got)
		}
	}
	b := newBench(t, newToy(t, 2, 1, mib, mib), newToy(t, 2, 1, mib, mib).file, 1, mib)
	b.zeroCopy = true
	r := &request{}
	for _, c := range []struct {
		n        uint64
		compare  bool
		inMemory bool
		want     bool
	}{
		{straightMin, false, false, true}, {straightMin - 512, false, false, false}, {mib, true, false, false},
		{straightMinInMemory, false, true, true}, {straightMinInMemory - 512, false, true, false},
	} {
		r.Len, r.data.compare, b.inMemory = c.n, c.compare, c.inMemory
		if got := b.goesStraight(r); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
