//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// zonefs as its own tools make it, with all conventional zones as one file.
// It has no check of its own, nor anything to check: names and sizes follow
// from a report of the zones, so they are held against one.
func TestZonefsByItsOwnTools(t *testing.T) {
	h := begin(t)
	const conventionals, zones = 3, 16
	im := h.create("a.qcow2", "size=128M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=3,zone.max_open_zones=4,zone.max_active_zones=6")
	d := im.attach("--queues", queues())
	k := d.open()
	k.write(9, 5*zlen, 64<<10) // something for mkzonefs to throw away
	k.write(9, 6*zlen, zcap)
	k.close()

	var dir string
	var unmount func()
	mount := func() {
		t.Helper()
		dir, unmount = h.mount("zonefs", d.node, "errors=remount-ro")
	}
	open := func(name string) *disk {
		t.Helper()
		f := h.openDisk(filepath.Join(dir, name))
		return f
	}
	agree := func() { // the file system with the device
		t.Helper()
		k := d.open()
		defer k.close()
		if n := count(t, dir+"/seq/*"); n != zones-conventionals {
			t.Errorf("%d sequential files, want %d", n, zones-conventionals)
		}
		for i, z := range k.zones()[conventionals:] {
			st, err := os.Stat(fmt.Sprintf("%s/seq/%d", dir, i))
			if err != nil || st.Size() != z.written() {
				t.Errorf("seq/%d: size %d, want %d (%v)", i, st.Size(), z.written(), err)
			}
		}
		// The first zone is the super block's.
		if st, err := os.Stat(dir + "/cnv/0"); err != nil || st.Size() != (conventionals-1)*zlen {
			t.Errorf("cnv/0: size %d, want the two zones after the first (%v)", st.Size(), err)
		}
		if n := count(t, dir+"/cnv/*"); n != 1 {
			t.Errorf("%d conventional files, want them in one", n)
		}
	}
	holds := func() {
		t.Helper()
		for _, f := range []struct {
			name string
			seed uint64
			at   int64
			n    int
		}{
			{"cnv/0", 1, 0, 4096},
			{"cnv/0", 2, zlen - 64<<10, 128 << 10}, // over the border of its zones
			{"cnv/0", 3, 2*zlen - 4096, 4096},
			{"seq/0", 4, 0, 1 << 20},
			{"seq/7", 5, 0, zcap},
			{"seq/12", 6, 0, 4096},
		} {
			k := open(f.name)
			k.holds(f.seed, f.at, f.n)
			k.close()
		}
	}

	h.tool("mkzonefs", "-f", "-o", "aggr_cnv", d.node)
	mount()
	agree()
	c := open("cnv/0")
	c.write(1, 0, 4096)
	c.write(9, zlen-64<<10, 128<<10)
	c.write(2, zlen-64<<10, 128<<10) // overwritten
	c.write(3, 2*zlen-4096, 4096)
	c.close()
	for name, n := range map[string]int{"seq/0": 1 << 20, "seq/7": zcap, "seq/12": 4096, "seq/3": 64 << 10, "seq/4": 128 << 10} {
		seed := map[string]uint64{"seq/0": 4, "seq/7": 5, "seq/12": 6}[name]
		s := open(name)
		for at := 0; at < n; at += 1 << 20 {
			s.write(seed, int64(at), min(1<<20, n-at))
		}
		s.sync()
		s.close()
	}
	if err := os.Truncate(filepath.Join(dir, "seq/3"), 0); err != nil { // a reset
		t.Error(err)
	}
	if err := os.Truncate(filepath.Join(dir, "seq/4"), zcap); err != nil { // a finish
		t.Error(err)
	}
	f := open("seq/7")
	f.refuse(unix.EFBIG, zcap, 4096)
	f.close()
	agree()
	unmount()
	mount()
	agree()
	holds()
	unmount()
	d.detach()
	im.check()

	d = im.attach()
	mount()
	agree()
	holds()
	f = open("seq/0")
	f.write(4, 1<<20, 64<<10) // the zones go on, too
	f.close()
	unmount()

	h.tool("mkzonefs", "-f", d.node)
	mount()
	for name, want := range map[string]int{"cnv": conventionals - 1, "seq": zones - conventionals} {
		if n := count(t, filepath.Join(dir, name, "*")); n != want {
			t.Errorf("made anew, it has %d files in %s, want %d", n, name, want)
		}
	}
	unmount()
	k = d.open()
	for i, z := range k.zones()[conventionals:] {
		if z.cond != empty {
			t.Errorf("made anew, zone %d is %v", conventionals+i, z.cond)
		}
	}
	k.close()
	d.detach()
}
