package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

func faultSpecs() []spec {
	return []spec{
		{CreateOptions: qcow2.CreateOptions{ClusterSize: 512, RefcountBits: 16, Size: 256 << 10, ZoneSize: 32 << 10, ZoneCapacity: 30 << 10, Conventional: 1}},
		{CreateOptions: qcow2.CreateOptions{ClusterSize: 4096, RefcountBits: 1, Size: 512 << 10, ZoneSize: 64 << 10, Conventional: 1}},
		{CreateOptions: qcow2.CreateOptions{ClusterSize: 64 << 10, RefcountBits: 16, Size: 512 << 10, ZoneSize: 64 << 10, Conventional: 1}},
		{CreateOptions: qcow2.CreateOptions{ClusterSize: 512, RefcountBits: 64, Size: 2560 << 10, ZoneSize: 256 << 10, Conventional: 1}, narrow: true},
		{CreateOptions: qcow2.CreateOptions{ClusterSize: 512, RefcountBits: 16, Size: 256 << 10, ZoneSize: 32 << 10, ZoneCapacity: 30 << 10, Conventional: 1, Preallocation: qcow2.PreallocationFull}},
	}
}

// forSeeds runs f with hosts whose requests may fail.
func forSeeds(t *testing.T, n int, f func(t *testing.T, h *host, rng *rand.Rand)) {
	for seed := uint64(1); seed <= uint64(max(n/slow, 8)); seed++ {
		if *seedFlag != 0 {
			seed = *seedFlag
		}
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 1))
			specs := faultSpecs()
			h := newHost(t, rng.IntN, specs[seed%uint64(len(specs))])
			h.loose = true
			if err := h.open(); err != nil {
				t.Fatal(err)
			}
			defer func() { h.im.Abandon() }()
			f(t, h, rng)
		})
		if *seedFlag != 0 || t.Failed() {
			break
		}
	}
}

func TestAFullFileSystemRefusesRequestsAndLosesNothing(t *testing.T) {
	refused := 0
	forSeeds(t, 60, func(t *testing.T, h *host, rng *rand.Rand) {
		for range 3 {
			more := rng.Int64N(int64(h.s.Size / 512))
			h.disk.Fill(more)
			for range 100 {
				h.step()
				if err := h.im.Failed(); err != nil {
					h.fatalf("a full file system has failed the image: %v", err)
				}
			}
			refused += h.refused
			h.verify()
			if rng.IntN(2) == 0 {
				h.disk.Fill(-1)
			}
			if err := h.reopen(); err != nil {
				h.fatalf("close and open: %v", err)
			}
			h.verify()
		}
	})
	if refused == 0 {
		t.Error("the file system was never full")
	}
}

// An image that was copied sparsely, or comes from a program that leaves zeros
// out, has holes in its metadata.
func TestAFullFileSystemDoesNotFailAnImageWithHolesInItsMetadata(t *testing.T) {
	refused := 0
	forSeeds(t, 120, func(t *testing.T, h *host, rng *rand.Rand) {
		for range 4 {
			for range rng.IntN(60) {
				h.step()
			}
			h.drain()
			if rng.IntN(2) == 0 {
				h.flush()
				h.disk.Sparse()
				h.kill()
			} else {
				if err := h.shut(); err != nil {
					h.fatalf("close: %v", err)
				}
				h.disk.Sparse()
				if err := h.open(); err != nil {
					h.fatalf("open: %v", err)
				}
			}
			h.disk.Fill(rng.Int64N(24))
			for range 60 {
				h.step()
				if err := h.im.Failed(); err != nil {
					h.fatalf("a full file system has failed the image: %v", err)
				}
			}
			refused += h.refused
			h.drain()
			h.verify()
			h.disk.Fill(-1)
		}
	})
	if refused == 0 {
		t.Error("the file system was never full")
	}
}

func TestAnyRefusedWriteOfDataOrLengthIsHarmless(t *testing.T) {
	forSeeds(t, 60, func(t *testing.T, h *host, rng *rand.Rand) {
		h.wasteful = true
		dice := rand.New(rand.NewPCG(rng.Uint64(), 1)) // used with the disk's lock held
		h.disk.Fault(func(op crashfile.Op) error {
			// Metadata is written in place to what has been allocated.
			if (op.Kind == crashfile.Truncate || op.Kind == crashfile.Punch || op.Kind == crashfile.Reserve || op.Kind == crashfile.Write && op.Hole) && dice.IntN(6) == 0 {
				return syscall.ENOSPC
			}
			return nil
		})
		for range 150 {
			h.step()
			if err := h.im.Failed(); err != nil {
				h.fatalf("a refused write has failed the image: %v", err)
			}
		}
		h.verify()
		h.disk.Fault(nil)
		if err := h.reopen(); err != nil {
			h.fatalf("close and open: %v", err)
		}
		h.verify()
	})
}

func TestAFailedSyncFailsTheImageAndLosesNothingThatWasFlushed(t *testing.T) {
	forSeeds(t, 40, func(t *testing.T, h *host, rng *rand.Rand) {
		left := rng.IntN(120)
		broken := errors.New("the disk is broken")
		kind := [...]crashfile.Kind{crashfile.Sync, crashfile.WriteDurable}[rng.IntN(2)]
		h.disk.Fault(func(op crashfile.Op) error {
			if left--; left < 0 && op.Kind == kind {
				return broken
			}
			return nil
		})
		for range 400 {
			if h.im.Failed() != nil {
				break
			}
			h.step()
		}
		err := h.im.Failed()
		if err == nil {
			return // nothing asked for a sync
		}
		if !errors.Is(err, broken) || !errors.Is(err, qcow2.ErrFailed) {
			t.Errorf("the image has failed: %v", err)
		}
		h.drain()
		// Writes are refused, and say why; reads go on.
		for z := range h.zones {
			f := h.begin(zns.OpFlush, z, 0, 0, false)
			if !errors.Is(f.r.Err, qcow2.ErrFailed) {
				t.Errorf("flush of a failed image: %v", f.r.Err)
			}
			zn := &h.zones[z]
			r := zns.Request{Op: zns.OpRead, Start: h.start(z), Len: h.g.ZoneSize}
			if err := zns.Do(h.dev, &r, h.disk, make([]byte, r.Len)); err != nil && (zn.conv || !errors.Is(err, qcow2.ErrFailed)) {
				t.Errorf("read of a failed image: %v", err)
			}
			if zn.floor == 0 || zn.busy {
				continue
			}
			r = zns.Request{Op: zns.OpRead, Start: h.start(z), Len: uint64(zn.floor) * 512}
			if err := zns.Do(h.dev, &r, h.disk, make([]byte, r.Len)); err != nil {
				t.Errorf("read of what was flushed to zone %d before the image failed: %v", z, err)
			}
		}
		if err := h.im.Close(); !errors.Is(err, qcow2.ErrFailed) {
			t.Errorf("close of a failed image: %v", err)
		}
		h.disk.Fault(nil)
		h.disk = h.crash(func(d *crashfile.File) *crashfile.File { return d.Cut(rng) })
		h.recover(false, rng)
		if err := h.reopen(); err != nil {
			h.fatalf("close and open: %v", err)
		}
		h.verify()
	})
}

func TestAFullFileSystemIsNamedAsSuch(t *testing.T) {
	h := newHost(t, func(int) int { return 0 }, faultSpecs()[0])
	h.loose = true
	if err := h.open(); err != nil {
		t.Fatal(err)
	}
	defer h.im.Abandon()
	h.disk.Fill(8)
	f := h.begin(zns.OpWrite, 1, 0, 60, false)
	h.drain()
	if !errors.Is(f.r.Err, syscall.ENOSPC) {
		t.Errorf("a write to a full file system: %v", f.r.Err)
	}
	if f.r.Err != nil && strings.Contains(f.r.Err.Error(), "corrupt") {
		t.Errorf("the message blames the image: %v", f.r.Err)
	}
}

func TestAResetThatCannotReadATableIsRefusedUntilItsPointerIsDurable(t *testing.T) {
	for _, reads := range []int{0, 1} { // that succeed
		t.Run(fmt.Sprint(reads), func(t *testing.T) { resetWithReadErrors(t, reads) })
	}
}

func resetWithReadErrors(t *testing.T, reads int) {
	h := newHost(t, func(int) int { return 0 }, faultSpecs()[1])
	h.options.CacheBytes = 1
	if err := h.open(); err != nil {
		t.Fatal(err)
	}
	defer func() { h.im.Abandon() }()
	h.fillZones(1)
	h.flush()
	h.disk.Fault(func(op crashfile.Op) error {
		if op.Kind != crashfile.Read {
			return nil
		}
		if reads--; reads >= 0 {
			return nil
		}
		return syscall.EIO
	})
	if reads == 0 { // refused: nothing has changed (I11)
		before := h.dev.Zone(1)
		r := &zns.Request{Op: zns.OpReset, Start: h.start(1)}
		if err := zns.Do(h.dev, r, nil, nil); !errors.Is(err, syscall.EIO) {
			t.Errorf("reset: %v", err)
		}
		if z := h.dev.Zone(1); z != before {
			t.Errorf("zone %+v, before the reset %+v", z, before)
		}
		h.disk.Fault(nil)
	} else {
		h.begin(zns.OpReset, 1, 0, 0, false)
		h.disk.Fault(nil)
		h.report() // empty, as the image has it
		h.begin(zns.OpWrite, 1, 0, 8, false)
	}
	h.drain()
	h.flush()
	h.verify()
	h.kill()
	h.verify()
	if err := h.reopen(); err != nil {
		h.fatalf("close and open: %v", err)
	}
	h.verify()
}
