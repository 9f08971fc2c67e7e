//go:build kernel

package kernel

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// crowded puts the test's images into a small file system, part of which is
// taken by a file. room gives that part back.
func (h *host) crowded(fs string) (room func()) {
	h.t.Helper()
	const total, ballast = "32M", 18 << 20
	if fs == "tmpfs" {
		h.onFileSystem("tmpfs", "none", "size="+total)
	} else {
		node := h.loop(filepath.Join(h.dir, "small"), total)
		h.run("mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", "-m", "0", node)
		h.dir, _ = h.mount("ext4", node)
	}
	name := filepath.Join(h.dir, "ballast")
	h.run("fallocate", "-l", "18M", name)
	return func() {
		h.t.Helper()
		if st, err := os.Stat(name); err != nil || st.Size() != ballast {
			h.t.Errorf("%s: %v", name, err)
		}
		h.run("rm", name)
		h.run("sync", "-f", h.dir)
	}
}

// filler is what the writers of a test have been told is written.
type filler struct {
	h       *host
	seed    uint64
	written []int64          // of each zone, bytes; conventional ones have 0
	blocks  map[int64]uint64 // of conventional zones: place to seed, chunkSize each
	torn    map[int64]uint64 // the same for what was refused
}

const chunkSize = 32 << 10 // of a write to a conventional zone

// fill writes to zones 2 and on of a mixed image at once, and to the
// conventional ones, until every writer has been refused several times. want is
// how it is refused, or nil if the zones must become full.
func (w *filler) fill(d *device, zones int, want error) {
	t := w.h.t
	t.Helper()
	var writers sync.WaitGroup
	for i := 2; i < 2+zones; i++ {
		k := d.open()
		writers.Go(func() {
			defer k.close()
			rnd := rand.New(rand.NewPCG(w.seed, uint64(i)))
			start := int64(i) * zlen
			for refused := 0; refused < 5 && w.written[i] < zcap; {
				n := int(min(512*(1+rnd.Int64N(256)), zcap-w.written[i]))
				err := k.pwrite(start+w.written[i], pattern(w.seed, start+w.written[i], n), 0)
				if err == nil {
					w.written[i] += int64(n)
					continue
				}
				if refused++; !errors.Is(err, want) {
					t.Errorf("write of %d bytes to zone %d at %#x: %v, want %v", n, i, w.written[i], err, want)
					return
				}
				if z := k.zone(i); z.written() != w.written[i] {
					t.Errorf("zone %d is %v with %#x written after a refusal, %#x was answered", i, z.cond, z.written(), w.written[i])
					return
				}
			}
		})
	}
	k := d.open()
	writers.Go(func() {
		defer k.close()
		rnd := rand.New(rand.NewPCG(w.seed, 0))
		refused := 0
		for n := uint64(1); refused < 5 && n < 200; n++ {
			at, seed := rnd.Int64N(2*zlen/chunkSize)*chunkSize, rnd.Uint64()
			switch err := k.pwrite(at, pattern(seed, at, chunkSize), 0); {
			case err == nil:
				w.blocks[at] = seed
				delete(w.torn, at)
			case errors.Is(err, want):
				w.torn[at] = seed
				refused++
			default:
				t.Errorf("write to a conventional zone at %#x: %v, want %v", at, err, want)
				return
			}
		}
		if want != nil && refused < 5 {
			t.Errorf("a conventional zone refused %d writes only", refused)
		}
	})
	writers.Wait()
	for i, n := range w.written {
		if want == nil && i >= 2 && i < 2+zones && n != zcap {
			t.Errorf("zone %d has %#x written, and there is room for more", i, n)
		}
	}
}

// verify checks that everything answered is there.
func (w *filler) verify(d *device) {
	t := w.h.t
	t.Helper()
	k := d.open()
	defer k.close()
	for i, z := range k.zones() {
		if i < 2 {
			continue
		}
		n := w.written[i]
		if z.written() != n {
			t.Errorf("zone %d is %v with %#x written, want %#x", i, z.cond, z.written(), n)
		}
		k.holds(w.seed, z.start, int(n))
		k.zeros(z.start+n, int(min(1<<20, zlen-n)))
	}
	for at := int64(0); at < 2*zlen; at += chunkSize {
		old := make([]byte, chunkSize)
		if seed, ok := w.blocks[at]; ok {
			old = pattern(seed, at, chunkSize)
		}
		seed, torn := w.torn[at]
		if !torn {
			k.same(at, old)
			continue
		}
		// Of a refused overwrite any block may have been written.
		got, refused := k.read(at, chunkSize), pattern(seed, at, chunkSize)
		for i := 0; i < chunkSize; i += 512 {
			if b := got[i : i+512]; !bytes.Equal(b, old[i:i+512]) && !bytes.Equal(b, refused[i:i+512]) {
				t.Fatalf("block %#x has neither what was answered nor what was refused", at+int64(i))
			}
		}
	}
}

// The host's file system is full, under writers. Whoever needs space is told
// so, and nothing else happens: what was answered stays, flushes and reads
// work, and with space again everything goes on.
func TestAFullFileSystemRefusesOnlyWhatNeedsSpace(t *testing.T) {
	for _, c := range []struct {
		name, fs, options string
		flags             []string
		again             bool // attach again while it is full
	}{
		{"tmpfs, small clusters", "tmpfs", ",cluster_size=4K", nil, true},
		{"ext4, direct", "ext4", "", []string{"--direct"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := begin(t)
			room := h.crowded(c.fs)
			w := &filler{h: h, seed: rand.Uint64(), written: make([]int64, 8), blocks: map[int64]uint64{}, torn: map[int64]uint64{}}
			t.Logf("seed %d", w.seed)
			im := h.create("a.qcow2", mixed+c.options)
			flags := append(c.flags, "--queues", queues())
			d := im.attach(flags...)
			const zones = 2
			w.fill(d, zones, unix.ENOSPC)
			w.verify(d)
			k := d.open()
			k.sync()
			// What has its place already needs none.
			for at := range w.blocks {
				w.blocks[at] = w.seed + uint64(at)
				k.write(w.blocks[at], at, chunkSize)
				delete(w.torn, at)
			}
			k.sync()
			k.close()
			w.verify(d)
			if c.again {
				d.detach()
				im.check()
				d = im.attach(flags...)
				w.verify(d)
				w.fill(d, zones, unix.ENOSPC)
			}
			if l := h.list(); len(l) != 1 || l[0].State != "live" {
				t.Errorf("listed as %+v: a full file system has failed the image", l)
			}

			// A reset gives a zone's space back, after two rounds.
			k = d.open()
			fullest := 2 + slices.Index(w.written[2:], slices.Max(w.written[2:]))
			k.must(blkResetZone, k.zone(fullest))
			w.written[fullest] = 0
			h.wait("the space of a reset zone is used again", func() bool {
				k.sync()
				k.zone(7)
				at := 7*zlen + w.written[7]
				if err := k.pwrite(at, pattern(w.seed, at, 128<<10), 0); err == nil {
					w.written[7] += 128 << 10
				} else if !errors.Is(err, unix.ENOSPC) {
					t.Fatal(err)
				}
				return w.written[7] > 0
			})
			k.must(blkResetZone, k.zone(7))
			w.written[7] = 0
			k.close()
			w.verify(d)

			room()
			d.freshen()
			w.fill(d, zones, nil)
			w.verify(d)
			d.detach()
			im.check()
			w.verify(im.attach())
		})
	}
}

// freshen asks for all zones, as whoever goes on after an error has to.
func (d *device) freshen() {
	k := d.open()
	defer k.close()
	k.zones()
}

// Appends in flight in the same zones when the space ends: what was answered is
// where the answer says, without holes, and the zone goes on there.
func TestAppendsGoOnWhereAFullFileSystemStoppedThem(t *testing.T) {
	h := begin(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	room := h.crowded("tmpfs")
	im := h.create("a.qcow2", small)
	d := im.attach("--queues", queues())
	var mu sync.Mutex
	var all []placed
	t.Run("append", func(t *testing.T) {
		n := (&device{im: &image{&host{t, h.dir}, im.path}, node: d.node}).overNVMe()
		for round := range 2 {
			var writers sync.WaitGroup
			for w := range 8 {
				writers.Go(func() {
					rnd := rand.New(rand.NewPCG(seed, uint64(round*8+w)))
					refused := 0
					for i := 0; refused < 5 && i < 400; i++ {
						p := placed{seed: uint64(round*8+w)<<40 | uint64(i)<<20, n: 512 * (1 + rnd.IntN(128))}
						zone := int64(rnd.IntN(4))
						at, err := n.append(zone*zlen, pattern(p.seed, 0, p.n))
						if err != nil { // full: the file system, or later the zone
							refused++
							continue
						}
						p.at = at
						mu.Lock()
						all = append(all, p)
						mu.Unlock()
					}
					if round == 0 && refused < 5 {
						t.Errorf("a writer was refused %d times only", refused)
					}
				})
			}
			writers.Wait()
			t.Logf("%d appends answered", len(all))
			if round == 0 {
				room()
			}
		}
	})
	slices.SortFunc(all, func(a, b placed) int { return int(a.at - b.at) })
	verify := func(d *device) {
		t.Helper()
		k := d.open()
		defer k.close()
		var want [4]int64
		for _, p := range all {
			z := p.at / zlen
			if end := z*zlen + want[z]; p.at != end {
				t.Fatalf("zone %d: an append at %#x, the one before ends at %#x", z, p.at, end)
			}
			want[z] += int64(p.n)
			k.same(p.at, pattern(p.seed, 0, p.n))
		}
		for i, n := range want {
			if z := k.zone(i); z.written() != n {
				t.Errorf("zone %d is %v with %#x written, appends are %#x", i, z.cond, z.written(), n)
			}
		}
	}
	verify(d)
	d.detach()
	verify(im.attach())
}
