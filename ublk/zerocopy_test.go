package ublk

import (
	"bytes"
	"os"
	"path/filepath"
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
	disk, err := os.Open("zerocopy_test.go") // the files for temporary use may be in memory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	memory, err := unix.MemfdCreate("data", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(memory) })
	onDisk := int(disk.Fd())
	sysctl := filepath.Join(t.TempDir(), "panic_on_warn")
	defer func(names []string) { warnSysctls = names }(warnSysctls)
	warnSysctls = []string{sysctl}
	set := func(value string) {
		if err := os.WriteFile(sysctl, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set("0")
	const all = zeroCopyFeatures
	disks := Features(all)
	if in, err := isInMemory(onDisk); err != nil {
		t.Fatal(err)
	} else if in {
		disks = 0 // here is no disk at all
	}
	for _, c := range []struct {
		no   bool
		fd   int
		can  Features
		want Features
	}{
		{false, onDisk, all, disks},
		{false, memory, all, 0},
		{false, onDisk, fSupportZeroCopy, 0},
		{false, onDisk, fAutoBufReg, 0},
		{true, onDisk, all, 0},
		{false, onDisk, 0, 0},
	} {
		got, why, err := Config{NoZeroCopy: c.no, DataFD: c.fd}.zeroCopy(fUserCopy | c.can)
		if err != nil || got != c.want || (why == "") != (got != 0) {
			t.Errorf("%+v: %v, %q, %v", c, got, why, err)
		}
	}
	if _, _, err := (Config{DataFD: -1}).zeroCopy(all); err == nil {
		t.Error("a file that is none has a file system")
	}
	set("1")
	if got, _, err := (Config{DataFD: onDisk}).zeroCopy(all); err != nil || got != 0 {
		t.Errorf("where a warning ends the machine: %v, %v", got, err)
	}
	warnSysctls = []string{sysctl + ".not-there"}
	if got, _, err := (Config{DataFD: onDisk}).zeroCopy(all); err != nil || got != 0 {
		t.Errorf("where nobody knows: %v, %v", got, err)
	}
}

func TestWhatGoesStraight(t *testing.T) {
	for _, c := range []struct{ zeroCopy, unregistered, compare, want bool }{
		{true, false, false, true},
		{true, true, false, false},
		{true, false, true, false},
		{false, false, false, false},
	} {
		r := &request{unregistered: c.unregistered}
		r.data.compare = c.compare
		if got := (&queue{zeroCopy: c.zeroCopy}).goesStraight(r); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
