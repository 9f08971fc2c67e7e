//go:build kernel

package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls of linux/blkzoned.h.
const (
	blkReportZone = 0xc0101282
	blkResetZone  = 0x40101283
	blkOpenZone   = 0x40101286
	blkCloseZone  = 0x40101287
	blkFinishZone = 0x40101288
)

// cond is enum blk_zone_cond.
type cond uint8

const (
	notWP   cond = 0
	empty   cond = 1
	impOpen cond = 2
	expOpen cond = 3
	closed  cond = 4
	full    cond = 14
)

func (c cond) String() string {
	if name, ok := map[cond]string{
		notWP: "nw", empty: "em", impOpen: "oi", expOpen: "oe", closed: "cl", full: "fu",
	}[c]; ok {
		return name
	}
	return fmt.Sprintf("cond %d", uint8(c))
}

const conventional = 1 // enum blk_zone_type

// zone is a struct blk_zone in bytes.
type zone struct {
	start, length, wp, capacity int64
	kind                        uint8
	cond                        cond
}

// written is how many bytes of the zone have been written.
func (z zone) written() int64 {
	switch z.cond {
	case notWP, empty:
		return 0
	case full: // the pointer of a full zone is not defined
		return z.capacity
	}
	return z.wp - z.start
}

// disk is a block device opened by this process, past the page cache.
type disk struct {
	t  *testing.T
	fd int
}

func (d *device) open() *disk {
	d.im.h.t.Helper()
	return d.im.h.openDisk(d.node)
}

func (h *host) openDisk(node string) *disk {
	h.t.Helper()
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		h.t.Fatalf("open %s: %v", node, err)
	}
	k := &disk{h.t, fd}
	h.t.Cleanup(k.close)
	return k
}

// close may be called any number of times.
func (k *disk) close() {
	if k.fd >= 0 {
		unix.Close(k.fd)
		k.fd = -1
	}
}

// aligned is memory that O_DIRECT accepts.
func aligned(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	shift := -int(uintptr(unsafe.Pointer(&b[0]))) & (page - 1)
	return b[shift : shift+n : shift+n]
}

// pattern is what the tests write: n bytes for a place on the device, from
// which place and seed can be told.
func pattern(seed uint64, at int64, n int) []byte {
	b := aligned(n)
	for i := 0; i < n; i += 8 {
		x := seed + uint64(at)/8 + uint64(i)/8 // splitmix64
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(b[i:], x^x>>31)
	}
	return b
}

// pwrite writes everything or reports an error.
func (k *disk) pwrite(at int64, b []byte, flags int) error {
	n, err := unix.Pwritev2(k.fd, [][]byte{b}, at, flags)
	if err == nil && n != len(b) {
		err = fmt.Errorf("short write: %d of %d bytes", n, len(b))
	}
	return err
}

// write puts a pattern at a place where it belongs.
func (k *disk) write(seed uint64, at int64, n int) {
	k.t.Helper()
	if err := k.pwrite(at, pattern(seed, at, n), 0); err != nil {
		k.t.Fatalf("write of %d bytes at %#x: %v", n, at, err)
	}
}

// refuse writes where it must fail with the given error.
func (k *disk) refuse(want error, at int64, n int) {
	k.t.Helper()
	if err := k.pwrite(at, pattern(^uint64(0), at, n), 0); !errors.Is(err, want) {
		k.t.Errorf("write of %d bytes at %#x: %v, want %v", n, at, err, want)
	}
}

func (k *disk) read(at int64, n int) []byte {
	k.t.Helper()
	b := aligned(n)
	got, err := unix.Pread(k.fd, b, at)
	if err != nil || got != n {
		k.t.Fatalf("read of %d bytes at %#x: %d, %v", n, at, got, err)
	}
	return b
}

// holds checks a range for the pattern that was written there.
func (k *disk) holds(seed uint64, at int64, n int) {
	k.t.Helper()
	k.same(at, pattern(seed, at, n))
}

// differs checks that a range does not have the pattern.
func (k *disk) differs(seed uint64, at int64, n int) {
	k.t.Helper()
	if bytes.Equal(k.read(at, n), pattern(seed, at, n)) {
		k.t.Errorf("%d bytes at %#x are as they were written, but should not be", n, at)
	}
}

// zeros checks that a range reads as zeros.
func (k *disk) zeros(at int64, n int) {
	k.t.Helper()
	k.same(at, make([]byte, n))
}

// same compares in pieces, so that large ranges need little memory.
func (k *disk) same(at int64, want []byte) {
	k.t.Helper()
	const piece = 1 << 20
	for len(want) > 0 {
		n := min(piece, len(want))
		if got := k.read(at, n); !bytes.Equal(got, want[:n]) {
			i := 0
			for got[i] == want[i] {
				i++
			}
			j := i &^ 7
			k.t.Fatalf("byte %#x differs: have % x, want % x",
				at+int64(i), got[j:j+8], want[j:j+8])
		}
		at, want = at+int64(n), want[n:]
	}
}

func (k *disk) sync() {
	k.t.Helper()
	if err := unix.Fsync(k.fd); err != nil {
		k.t.Fatalf("fsync: %v", err)
	}
}

// mgmt is one of the zone ioctls that take a range.
func (k *disk) mgmt(op uint, at, n int64) error {
	r := [2]uint64{uint64(at) / 512, uint64(n) / 512} // struct blk_zone_range
	return k.ioctl(op, unsafe.Pointer(&r))
}

// must does a zone ioctl that has to succeed, on one zone.
func (k *disk) must(op uint, z zone) {
	k.t.Helper()
	if err := k.mgmt(op, z.start, z.length); err != nil {
		k.t.Fatalf("ioctl %#x of the zone at %#x: %v", op, z.start, err)
	}
}

func (k *disk) ioctl(op uint, arg unsafe.Pointer) error {
	for {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(k.fd), uintptr(op), uintptr(arg))
		if e == 0 {
			return nil
		}
		if e != unix.EINTR {
			return e
		}
	}
}

// report asks for up to n zones from the one at a place on.
func (k *disk) report(at int64, n int) []zone {
	k.t.Helper()
	const header, entry = 16, 64
	b := make([]byte, header+n*entry)
	le := binary.LittleEndian
	le.PutUint64(b, uint64(at)/512)
	le.PutUint32(b[8:], uint32(n))
	if err := k.ioctl(blkReportZone, unsafe.Pointer(&b[0])); err != nil {
		k.t.Fatalf("BLKREPORTZONE at %#x: %v", at, err)
	}
	zones := make([]zone, le.Uint32(b[8:]))
	for i := range zones {
		e := b[header+i*entry:]
		zones[i] = zone{
			start: int64(le.Uint64(e)) * 512, length: int64(le.Uint64(e[8:])) * 512,
			wp: int64(le.Uint64(e[16:])) * 512, capacity: int64(le.Uint64(e[32:])) * 512,
			kind: e[24], cond: cond(e[25]),
		}
	}
	return zones
}

// zone reports one zone by number.
func (k *disk) zone(i int) zone {
	k.t.Helper()
	all := k.zones()
	return all[i]
}

// zones reports the whole device.
func (k *disk) zones() []zone {
	k.t.Helper()
	return k.report(0, 16384)
}

// isIn checks condition and fill of a zone.
func (k *disk) isIn(i int, c cond, written int64) {
	k.t.Helper()
	if z := k.zone(i); z.cond != c || z.written() != written {
		k.t.Errorf("zone %d is %v with %#x bytes written, want %v with %#x", i, z.cond, z.written(), c, written)
	}
}

// are checks the conditions of the first zones.
func (k *disk) are(want ...cond) {
	k.t.Helper()
	var have []cond
	for _, z := range k.report(0, len(want)) {
		have = append(have, z.cond)
	}
	if fmt.Sprint(have) != fmt.Sprint(want) {
		k.t.Errorf("conditions %v, want %v", have, want)
	}
}

// allocated is how much of its file system the image file occupies.
func (im *image) allocated() int64 {
	im.h.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(im.path, &st); err != nil {
		im.h.t.Fatal(err)
	}
	return st.Blocks * 512
}
