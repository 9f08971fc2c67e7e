package ublk

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
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
	disk := newToy(t, 2, 1, mib, mib).file
	memory, err := unix.MemfdCreate("data", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(memory) })
	onDisk := int(disk.Fd())
	if in, err := isInMemory(onDisk); err != nil || in {
		onDisk = memory // so are the files for temporary use here
	}
	const all = fSupportZeroCopy | fAutoBufReg
	auto := Features(all)
	if onDisk == memory {
		auto = fSupportZeroCopy
	}
	for _, c := range []struct {
		no   bool
		fd   int
		can  Features
		want Features
	}{
		{false, onDisk, all, auto},
		{false, memory, all, fSupportZeroCopy},
		{false, onDisk, fSupportZeroCopy, fSupportZeroCopy},
		{false, onDisk, fAutoBufReg, 0},
		{true, onDisk, all, 0},
		{false, onDisk, 0, 0},
	} {
		got, err := Config{NoZeroCopy: c.no, DataFD: c.fd}.zeroCopy(fUserCopy | c.can)
		if err != nil || got != c.want {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
	if _, err := (Config{DataFD: -1}).zeroCopy(all); err == nil {
		t.Error("a file that is none has a file system")
	}
}

func TestWhatGoesStraight(t *testing.T) {
	for _, c := range []struct {
		n       uint64
		q       *queue
		r       *request
		compare bool
		want    bool
	}{
		{mib, &queue{}, &request{}, false, false},
		{straightMin, &queue{zeroCopy: true}, &request{}, false, true},
		{straightMin - 512, &queue{zeroCopy: true}, &request{}, false, false},
		{mib, &queue{zeroCopy: true}, &request{}, true, false},
		{straightMinInMemory, &queue{zeroCopy: true, inMemory: true}, &request{}, false, true},
		{straightMinInMemory - 512, &queue{zeroCopy: true, inMemory: true}, &request{}, false, false},
		{512, &queue{zeroCopy: true, autoBuf: true}, &request{}, false, true},
		{512, &queue{zeroCopy: true, autoBuf: true}, &request{}, true, false},
		{mib, &queue{zeroCopy: true, autoBuf: true}, &request{unregistered: true}, false, false},
	} {
		c.r.Len, c.r.data.compare = c.n, c.compare
		if got := c.q.goesStraight(c.r); got != c.want {
			t.Errorf("%d bytes, zero copy %v, auto %v, in memory %v, compared %v, unregistered %v: %v",
				c.n, c.q.zeroCopy, c.q.autoBuf, c.q.inMemory, c.compare, c.r.unregistered, got)
		}
	}
}
