package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestQEMUNamesTheFeatureThatItLacks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	create(t, path, "size=1G,cluster_size=512,zone.size=1M") // the least room for names
	out, err := exec.Command(qemu(t, "qemu-img"), "info", path).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(out), "Unsupported qcow2 feature(s): zoned format") {
		t.Errorf("qemu-img info: %v\n%s", err, out)
	}
}

// QEMU, told nothing of zones, finds in a closed image exactly what the device
// shows.
func TestQEMUReadsWhatWasWritten(t *testing.T) {
	for i, opts := range []string{
		"size=16M,zone.size=2M,zone.conventional_zones=2",
		"size=4M,zone.size=512K,zone.capacity=400K,cluster_size=512,refcount_bits=1",
		"size=8M,zone.size=1M,cluster_size=4K,refcount_bits=64,zone.conventional_zones=1,lazy_refcounts=on",
		"size=33M,zone.size=4M,zone.capacity=3M,cluster_size=2M,refcount_bits=8",
		"size=16M,zone.size=2M,zone.conventional_zones=1,preallocation=metadata",
		"size=4M,zone.size=512K,zone.capacity=300K,cluster_size=512,refcount_bits=32,zone.conventional_zones=1,preallocation=falloc",
		"size=8M,zone.size=1M,zone.capacity=1000K,cluster_size=16K,refcount_bits=2,preallocation=full",
	} {
		for seed := range uint64(2) {
			t.Run(fmt.Sprintf("%s,seed=%d", opts, seed), func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, uint64(i)))
				dir := t.TempDir()
				path := filepath.Join(dir, "image")
				create(t, path, opts)
				want := writeAtRandom(t, path, rnd)
				copied, raw := filepath.Join(dir, "copy"), filepath.Join(dir, "raw")
				b, err := os.ReadFile(path)
				must(t, err)
				must(t, os.WriteFile(copied, b, 0o600))
				qemuAgrees(t, copied)
				if out, err := exec.Command(qemu(t, "qemu-img"), "convert", "-f", "qcow2", "-O", "raw", copied, raw).CombinedOutput(); err != nil {
					t.Fatalf("qemu-img convert: %v\n%s", err, out)
				}
				got, err := os.ReadFile(raw)
				must(t, err)
				if len(got) != len(want) {
					t.Fatalf("%d bytes, want %d", len(got), len(want))
				}
				for at := 0; at < len(got); at += sectorSize {
					if end := min(at+sectorSize, len(got)); !bytes.Equal(got[at:end], want[at:end]) {
						t.Fatalf("the sector at %d differs", at)
					}
				}
			})
		}
	}
}

// writeAtRandom uses an image in several sessions, closes it and returns what
// its device then shows.
func writeAtRandom(t *testing.T, path string, rnd *rand.Rand) []byte {
	t.Helper()
	var want []byte
	for session := range 3 {
		im := open(t, openOS(t, path), Options{})
		if want == nil {
			want = make([]byte, im.size)
		}
		for range 25 {
			z := uint32(rnd.IntN(int(im.nrZones)))
			start, wp, end := im.zoneStart(z), im.Pointer(z), im.zoneEnd(z)
			random := func(n uint64) []byte {
				p := make([]byte, n)
				for k := range p {
					p[k] = byte(rnd.Uint32())
				}
				return p
			}
			sectors := func(room uint64) uint64 { return 512 * (1 + rnd.Uint64N(min(room/512, 300))) }
			switch k := rnd.IntN(10); {
			case im.conventional(z):
				at := start + 512*rnd.Uint64N((end-start)/512)
				n := sectors(end - at)
				if k < 2 {
					must(t, im.Zero(at, n))
					clear(want[at : at+n])
					break
				}
				p := random(n)
				must(t, put(im, p, at))
				copy(want[at:], p)
			case k == 0 && session > 0:
				must(t, im.Reset([]uint32{z}))
				clear(want[start:end])
			case k == 1 && wp < end:
				must(t, im.Finish(z, wp))
			case k == 2:
				must(t, im.Round())
			case wp < end:
				p := random(sectors(end - wp))
				must(t, put(im, p, wp))
				copy(want[wp:], p)
				im.Stage(z, wp+uint64(len(p)))
			}
		}
		must(t, im.Close())
	}
	return want
}
