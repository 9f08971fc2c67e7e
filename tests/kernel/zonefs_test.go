//go:build kernel

package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// zonefsSuper is a super block of zonefs (fs/zonefs/zonefs.h). The tools of
// that file system are not everywhere, and this is all it has on disk.
func zonefsSuper() []byte {
	b := aligned(4096)
	le := binary.LittleEndian
	le.PutUint32(b, 0x5a4f4653)                 // s_magic
	b[72] = 1                                   // s_uuid, anything but zeros
	le.PutUint32(b[4:], ^crc32.ChecksumIEEE(b)) // s_crc, without the usual last inversion
	return b
}

// zonefs shows each zone as a file: its size is the write pointer, truncation
// is reset or finish, and with explicit-open to open a file is to open the
// zone. The super block has zone 0, so that cnv/0 is zone 1 and seq/0 zone 2.
func TestZonefs(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=128M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=2,zone.max_open_zones=3,zone.max_active_zones=4")
	d := im.attach()
	k := d.open()
	if err := k.pwrite(0, zonefsSuper(), 0); err != nil {
		t.Fatal(err)
	}
	dir, unmount := h.mount("zonefs", d.node, "explicit-open")
	path := func(name string) string { return filepath.Join(dir, name) }
	open := func(name string) *disk { // a file does what we want of a disk
		t.Helper()
		fd, err := unix.Open(path(name), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatalf("open %s: %v", name, err)
		}
		f := &disk{t, fd}
		t.Cleanup(f.close) // before the file system is unmounted
		return f
	}
	sizes := func(want ...int64) {
		t.Helper()
		for i, n := range want {
			st, err := os.Stat(path("seq/" + string(rune('0'+i))))
			if err != nil || st.Size() != n {
				t.Errorf("seq/%d: size %d, want %d (%v)", i, st.Size(), n, err)
			}
		}
	}

	f := open("seq/0")
	k.isIn(2, expOpen, 0)
	f.write(1, 0, 69632)
	f.write(1, 69632, 4096)
	f.refuse(unix.EINVAL, 4096, 4096) // the file system's own refusal
	f.holds(1, 0, 73728)
	f.close()
	k.isIn(2, closed, 73728)

	f = open("seq/1")
	f.close()
	k.isIn(3, empty, 0) // opened, never written
	f = open("seq/2")
	f.write(1, 0, 4096)
	f.close()
	for name, n := range map[string]int64{"seq/2": 0, "seq/3": zcap} {
		if err := os.Truncate(path(name), n); err != nil {
			t.Error(err)
		}
	}
	k.isIn(4, empty, 0)
	k.isIn(5, full, zcap)
	f = open("seq/4")
	f.write(1, 0, zcap)
	f.close()
	k.isIn(6, full, zcap)
	sizes(73728, 0, 0, zcap, zcap, 0)

	a, b, c := open("seq/5"), open("seq/6"), open("seq/7")
	k.isIn(9, expOpen, 0)
	if fd, err := unix.Open(path("seq/8"), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a fourth file opened for writing: %v", err)
		unix.Close(fd)
	}
	a.close()
	b.close()
	c.close()

	f = open("cnv/0")
	f.write(1, 1<<20, 8192)
	f.write(2, 1<<20+4096, 4096)
	f.close()
	k.close()
	unmount()
	d.detach()

	d = im.attach()
	k = d.open()
	k.are(notWP, notWP, closed, empty, empty, full, full, empty)
	if super := k.read(0, 4096); !bytes.Equal(super, zonefsSuper()) {
		t.Error("the super block is another one")
	}
	dir, unmount = h.mount("zonefs", d.node)
	sizes(73728, 0, 0, zcap, zcap, 0)
	f = open("seq/0")
	f.write(1, 73728, 4096)
	f.holds(1, 0, 77824)
	f.close()
	f = open("seq/4")
	f.holds(1, 0, zcap)
	f.close()
	f = open("cnv/0")
	f.holds(1, 1<<20, 4096)
	f.holds(2, 1<<20+4096, 4096)
	f.close()
	unmount()
}
