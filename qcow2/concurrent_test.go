package qcow2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"
)

// jitterFile lets others run in the middle of operations.
type jitterFile struct{ File }

func (f jitterFile) pause() {
	for range rand.IntN(4) {
		runtime.Gosched()
	}
}

func (f jitterFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.pause()
	return n, err
}

func (f jitterFile) WriteAt(p []byte, off int64) (int, error) {
	f.pause()
	defer f.pause()
	return f.File.WriteAt(p, off)
}

func (f jitterFile) Sync() error {
	f.pause()
	defer f.pause()
	return f.File.Sync()
}

// Each goroutine is the only one in its zones, as zns guarantees it for what
// changes a zone; they share tables, slices, the allocator and the rounds.
func TestZonesDoNotDisturbEachOther(t *testing.T) {
	for _, s := range []spec{
		{clusterBits: 9, refOrder: 4, size: 1 << 20, zoneSize: 32 << 10, conventional: 4},
		{clusterBits: 12, refOrder: 4, size: 4 << 20, zoneSize: 128 << 10, conventional: 4, maxActive: 20},
	} {
		t.Run(fmt.Sprintf("%+v", s), func(t *testing.T) {
			f := newMemFile()
			build(t, f, s)
			im := open(t, jitterFile{f}, Options{CacheBytes: 1, SyncInterval: time.Millisecond})
			var wg sync.WaitGroup
			for g := range uint32(8) {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(uint64(g), 7))
					zones := []uint32{g, g + 8, g + 16, g + 24}
					var data [4][]byte
					for i, z := range zones {
						if z < s.conventional {
							data[i] = make([]byte, s.zoneSize)
						}
					}
					for range 150 {
						i := rnd.IntN(4)
						z := zones[i]
						start, room := im.zoneStart(z), int(s.zoneSize)-len(data[i])
						var err error
						switch k := rnd.IntN(20); {
						case z < s.conventional:
							n := 512 * (1 + rnd.IntN(20))
							at := 512 * rnd.IntN(int(s.zoneSize)/512-20)
							p := fill(n, byte(rnd.Uint32()))
							if err = put(im, p, start+uint64(at)); err == nil {
								copy(data[i][at:], p)
							}
						case k < 10 && room > 0:
							p := fill(min(room, 512*(1+rnd.IntN(40))), byte(rnd.Uint32()))
							if err = put(im, p, start+uint64(len(data[i]))); err == nil {
								data[i] = append(data[i], p...)
								im.Stage(z, start+uint64(len(data[i])))
							}
						case k < 13:
							if err = im.Reset([]uint32{z}); err == nil {
								data[i] = nil
							}
						case k < 14 && room > 0:
							if err = im.Finish(z, start+uint64(len(data[i]))); err == nil {
								data[i] = append(data[i], make([]byte, room)...)
							}
						case k < 15 && room > 0:
							n := min(room, 4096)
							if err = im.Zero(start+uint64(len(data[i])), uint64(n)); err == nil {
								data[i] = append(data[i], make([]byte, n)...)
								im.Stage(z, start+uint64(len(data[i])))
							}
						case k < 17:
							err = im.Round()
						default:
							var p []byte
							if p, err = read(im, len(data[i]), start); err == nil && !bytes.Equal(p, data[i]) {
								t.Errorf("zone %d has other data", z)
								return
							}
						}
						if err != nil {
							t.Error(err)
							return
						}
					}
					for i, z := range zones {
						p, err := read(im, len(data[i]), im.zoneStart(z))
						if err != nil || !bytes.Equal(p, data[i]) {
							t.Errorf("zone %d has other data at the end: %v", z, err)
						}
					}
				})
			}
			wg.Wait()
			must(t, im.Close())
			wantClean(t, f)
		})
	}
}

// blockingFile stops the next read of a range after it has got the data.
type blockingFile struct {
	File
	mu      sync.Mutex
	at      int64
	reached chan struct{}
	resume  chan struct{}
}

func (f *blockingFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.mu.Lock()
	hit := f.at != 0 && off == f.at
	if hit {
		f.at = 0
	}
	f.mu.Unlock()
	if hit {
		close(f.reached)
		<-f.resume
	}
	return n, err
}

func TestALoadDoesNotBringBackEntriesThatWereCleared(t *testing.T) {
	s := small // zones 0 to 3 share an L2 table of one slice
	f := newMemFile()
	build(t, f, s)
	im := open(t, f, Options{})
	grow(t, im, 1, 64<<10, 64<<10)
	grow(t, im, 2, 64<<10, 64<<10)
	must(t, im.Close())

	b := &blockingFile{File: f, reached: make(chan struct{}), resume: make(chan struct{})}
	im = open(t, b, Options{})
	defer im.Abandon()
	b.at = im.tableOf(0).Offset()
	done := make(chan error)
	go func() {
		_, err := read(im, 4096, im.zoneStart(2))
		done <- err
	}()
	<-b.reached
	must(t, im.Reset([]uint32{1}))
	close(b.resume)
	must(t, <-done)
	ext, ok := im.Map(nil, im.zoneStart(1), 64<<10, false)
	if !ok || len(ext) != 1 || ext[0].Off != Hole {
		t.Errorf("zone 1 is mapped to %v after its reset", ext)
	}
}

func TestMapAllocatesNothing(t *testing.T) {
	_, im := fresh(t, small, Options{})
	grow(t, im, 1, 256<<10, 64<<10)
	dst := make([]Extent, 0, 4)
	for _, write := range []bool{false, true} {
		off := im.zoneStart(1)
		if n := testing.AllocsPerRun(1000, func() {
			ext, ok := im.Map(dst, off, 8192, write)
			if !ok || len(ext) != 1 || ext[0].Len != 8192 {
				t.Fatal("not mapped to one extent")
			}
		}); n != 0 {
			t.Errorf("write %v: %v allocations, want 0", write, n)
		}
	}
	wp := im.zoneStart(1) + 256<<10
	if n := testing.AllocsPerRun(1000, func() { im.Stage(1, wp); _ = im.Pointer(1) }); n != 0 {
		t.Errorf("stage: %v allocations, want 0", n)
	}
}

func BenchmarkMap(b *testing.B) {
	_, im := fresh(b, spec{clusterBits: 16, refOrder: 4, size: 64 << 20, zoneSize: 16 << 20}, Options{})
	for z := range uint32(4) {
		must(b, im.Zero(im.zoneStart(z), 512))
		_, err := im.MapSlow(nil, im.zoneStart(z), 16<<20, true)
		must(b, err)
	}
	dst := make([]Extent, 0, 8)
	for _, n := range []uint64{4 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dK", n>>10), func(b *testing.B) {
			b.ReportAllocs()
			off := uint64(0)
			for b.Loop() {
				if _, ok := im.Map(dst, off, n, true); !ok {
					b.Fatal("not mapped")
				}
				off = (off + 5*n) & (64<<20 - 1)
			}
		})
	}
}

// The cost of planning a round follows the zones that have moved.
func BenchmarkRound(b *testing.B) {
	_, im := fresh(b, spec{clusterBits: 16, refOrder: 4, size: 16384 << 20, zoneSize: 1 << 20}, Options{})
	must(b, put(im, make([]byte, 512), 0))
	for _, n := range []uint32{0, 1, 1000} {
		b.Run(fmt.Sprintf("%d of 16384", n), func(b *testing.B) {
			wp := uint64(512)
			for b.Loop() {
				for z := range n {
					im.Stage(z, im.zoneStart(z)+wp)
				}
				wp ^= 1536
				must(b, im.Round())
			}
		})
	}
}
