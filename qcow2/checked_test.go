package qcow2

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// Images that were in use: what the engine leaves must satisfy our check, and
// as far as it can look QEMU's.
func TestCheckOfImagesThatWereInUse(t *testing.T) {
	for _, opts := range []string{
		"size=256M,zone.size=16M,zone.conventional_zones=2",
		"size=64M,zone.size=4M,zone.capacity=3M,cluster_size=512,refcount_bits=1",
		"size=64M,zone.size=4M,cluster_size=4K,refcount_bits=64,zone.conventional_zones=1",
		"size=256M,zone.size=16M,cluster_size=2M,zone.max_active_zones=8",
	} {
		t.Run(opts, func(t *testing.T) {
			o, _, err := ParseCreateOptions([]string{opts}, "")
			must(t, err)
			path := lockFile(t)
			f := openOS(t, path)
			must(t, Format(f, o))
			h, err := ReadHeader(f)
			must(t, err)

			im := open(t, f, Options{})
			data := fill(700<<10, 0x5a)
			for z := range uint32(6) {
				must(t, put(im, data, h.ZoneStart(z)))
				if z >= h.Zoned.Conventional {
					im.Stage(z, h.ZoneStart(z)+uint64(len(data)))
				}
			}
			must(t, im.Round())
			// In use it is dirty, and whatever is mapped ahead is at worst a leak.
			r, err := Check(f, nil)
			must(t, err)
			if !r.Dirty || r.Corruptions != 0 || r.Leaks != r.Ahead {
				t.Errorf("in use: %+v", r)
			}
			must(t, im.Close())
			checkClosed(t, openOS(t, path))

			im = open(t, openOS(t, path), Options{})
			must(t, im.Reset([]uint32{3}))
			must(t, im.Finish(4, h.ZoneStart(4)+uint64(len(data))))
			must(t, put(im, data, h.ZoneStart(3)))
			im.Stage(3, h.ZoneStart(3)+uint64(len(data)))
			must(t, im.Round())
			must(t, im.Close())
			checkClosed(t, openOS(t, path))

			qemuAgrees(t, path)
		})
	}
}

func checkClosed(t *testing.T, f File) {
	t.Helper()
	checkClean(t, f)
	r, err := Check(f, nil)
	must(t, err)
	if r.Dirty || r.Ahead != 0 || r.AllocatedClusters == 0 {
		t.Errorf("a closed image: %+v", r)
	}
}

// qemuAgrees has qemu-img check the image under another name than zoned: then
// nothing but zonedmeta may be wrong with it, a leak.
func qemuAgrees(t *testing.T, path string) {
	t.Helper()
	qemuImg := qemu(t, "qemu-img")
	f := openOS(t, path)
	h, err := ReadHeader(f)
	must(t, err)
	plain(t, f, h)
	out, err := exec.Command(qemuImg, "check", "-f", "qcow2", path).CombinedOutput()
	leaked := h.roundUp(int64(h.Zoned.MetaSize)) >> h.ClusterBits
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(string(out), fmt.Sprintf("\n%d leaked clusters were found", leaked)) {
		t.Errorf("qemu-img check: want %d leaked clusters\n%v\n%s", leaked, err, out)
	}
}
