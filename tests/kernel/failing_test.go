//go:build kernel

package kernel

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/zns"
)

const (
	unixEIO    = unix.EIO
	unixENOSPC = unix.ENOSPC
	eoverflow  = unix.EOVERFLOW
)

// tryRead is a read that may fail.
func (k *disk) tryRead(at int64, n int) (int, error) { return unix.Pread(k.fd, aligned(n), at) }

// Writers that do what a file system does when a write has failed: they ask
// where the zone is and go on from there. Everything they were told is written
// is there, in this device and in the next.
func TestZonesGoOnAfterFailures(t *testing.T) {
	h := begin(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	im := h.create("a.qcow2", "size=64M,zone.size=8M,zone.capacity=6M,zone.max_open_zones=3")
	s := im.serveHere(2)
	var dice atomic.Uint64
	dice.Store(seed)
	var failed atomic.Int32
	s.failData(func(r *zns.Request) error {
		x := dice.Add(0x9e3779b97f4a7c15) // splitmix64
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		if (x^x>>27)%6 == 0 {
			failed.Add(1)
			return unixEIO
		}
		return nil
	})
	const zones = 5
	written := make([]int64, zones)
	var writers sync.WaitGroup
	for i := range zones {
		k := s.open()
		writers.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			start := int64(i) * zlen
			for range 150 {
				n := 512 << rnd.IntN(8)
				err := k.pwrite(start+written[i], pattern(1, start+written[i], n), 0)
				switch {
				case err == nil:
					written[i] += int64(n)
				case !errors.Is(err, unix.EIO):
					t.Errorf("write to zone %d: %v", i, err)
					return
				default:
					if z := k.zone(i); z.written() != written[i] {
						t.Errorf("zone %d is %v at %#x after a failure, %#x was answered", i, z.cond, z.written(), written[i])
						return
					}
				}
			}
		})
	}
	watch := s.open()
	done := make(chan struct{})
	var watcher sync.WaitGroup
	watcher.Go(func() { // what is reported as written stays so
		least := make([]int64, zones)
		for {
			select {
			case <-done:
				return
			default:
			}
			for i, z := range watch.report(0, zones) {
				if z.written() < least[i] {
					t.Errorf("zone %d had %#x written and has %#x", i, least[i], z.written())
				}
				least[i] = z.written()
			}
		}
	})
	writers.Wait()
	close(done)
	watcher.Wait()
	if failed.Load() < 50 {
		t.Errorf("%d failures", failed.Load())
	}
	s.failData(nil)
	verify := func(k *disk) {
		t.Helper()
		for i, n := range written {
			if z := k.zone(i); z.written() != n {
				t.Errorf("zone %d has %#x written, want %#x", i, z.written(), n)
			}
			k.holds(1, int64(i)*zlen, int(n))
			k.zeros(int64(i)*zlen+n, 1<<20)
		}
	}
	verify(watch)
	s.stop()
	verify(im.attach().open())
}
