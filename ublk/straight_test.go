//go:build kernel

package ublk

import (
	"bytes"
	"errors"
	"os"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// copying are the ways of data through a device of this kernel.
var copying = map[string]Config{"zero copy where there is": {}, "copies only": {NoZeroCopy: true}}

// TestRequestsOfAllSizes moves data in one extent and in many, in memory and on a
// disk, and what needs a copy in between: holes, the end of the data file.
func TestRequestsOfAllSizes(t *testing.T) {
	disk := os.Getenv("QZBD_VM_SCRATCH")
	if disk == "" {
		t.Fatal("QZBD_VM_SCRATCH names no directory: give the machine -scratch")
	}
	for way, cfg := range copying {
		for place, dir := range map[string]string{"memory": t.TempDir(), "disk": disk} {
			for extents, chunk := range map[string]uint64{"whole": mib, "pieces": 12 << 10} {
				t.Run(way+"/"+place+"/"+extents, func(t *testing.T) {
					requestsOfAllSizes(t, cfg, dir, chunk)
				})
			}
		}
	}
}

func requestsOfAllSizes(t *testing.T, cfg Config, dir string, chunk uint64) {
	x := newToy(t, 4, 1, 4*mib, 4*mib)
	x.chunk = chunk
	file, err := os.CreateTemp(dir, "data")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		file.Close()
		os.Remove(file.Name())
	})
	if err := file.Truncate(16 * mib); err != nil {
		t.Fatal(err)
	}
	d := device(t, x, file, cfg)
	var driver Features
	if ctl, err := Open(); err != nil {
		t.Fatal(err)
	} else {
		driver, err = ctl.Features(t.Context())
		ctl.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	cfg.DataFD = int(file.Fd())
	want, _, err := cfg.zeroCopy(driver)
	if has := d.Features() & zeroCopyFeatures; err != nil || has != want {
		t.Errorf("zero copy: %v, want %v (%v)", has, want, err)
	}
	f := node(t, d, os.O_RDWR)
	data, got := direct(t, 4*mib), direct(t, 4*mib)
	copy(data, random(4*mib))
	// An address within a page, and lengths that are no pages.
	at := 0
	for _, n := range []int{mib, 64 << 10, mib - 512, 64<<10 + 512, 100 << 10, 4096, 512, 3 * 512} {
		if _, err := f.WriteAt(data[at:at+n], int64(4*mib+at)); err != nil {
			t.Fatalf("write %d bytes: %v", n, err)
		}
		at += n
	}
	inFile := make([]byte, at)
	if _, err := file.ReadAt(inFile, 4*mib); err != nil || !bytes.Equal(inFile, data[:at]) {
		t.Errorf("the file has something else (%v)", err)
	}
	// Beyond the pointer there are zeros, in the same request.
	same := func(what string, off int64, n int, want []byte) {
		t.Helper()
		for i := range got {
			got[i] = 0xee
		}
		if _, err := f.ReadAt(got[:n], off); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if !bytes.Equal(got[:len(want)], want) || !bytes.Equal(got[len(want):n], make([]byte, n-len(want))) {
			t.Errorf("%s: other data", what)
		}
	}
	same("all of it", 4*mib, 4*mib, data[:at])
	from := at - 300<<10
	same("across the pointer", int64(4*mib+from), 512<<10, data[from:at])
	same("an empty zone", 8*mib, mib, nil)
	// A conventional zone is not masked: the file ends within the request.
	if _, err := f.WriteAt(data[:mib], 3*mib); err != nil {
		t.Fatal(err)
	}
	end := 3*mib + 300<<10
	if err := file.Truncate(int64(end)); err != nil {
		t.Fatal(err)
	}
	same("across the end of the file", 3*mib, mib, data[:300<<10])
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
}

// TestRequestsThatTheFileRefuses has a data file that cannot be written.
func TestRequestsThatTheFileRefuses(t *testing.T) {
	for way, cfg := range copying {
		t.Run(way, func(t *testing.T) {
			x := newToy(t, 4, 1, 4*mib, 4*mib)
			ro, err := os.Open(x.file.Name())
			if err != nil {
				t.Fatal(err)
			}
			defer ro.Close()
			d := device(t, x, ro, cfg)
			f := node(t, d, os.O_RDWR)
			p := direct(t, mib)
			for zone := range int64(3) {
				if _, err := f.WriteAt(p, (zone+1)*4*mib); !errors.Is(err, syscall.EIO) {
					t.Errorf("write: %v", err)
				}
			}
			for range 3 {
				if _, err := f.ReadAt(p, 0); err != nil {
					t.Errorf("read: %v", err)
				}
			}
		})
	}
}

// TestUnalignedMemory reads and writes at any address that the kernel takes.
func TestUnalignedMemory(t *testing.T) {
	x := newToy(t, 4, 1, 4*mib, 4*mib)
	d := device(t, x, x.file, Config{})
	f := node(t, d, os.O_RDWR)
	p := direct(t, 2*mib)
	copy(p, random(2*mib))
	if _, err := f.WriteAt(p[512:512+mib], 4*mib); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(p[512 : 512+mib])
	iov := []unix.Iovec{
		{Base: &p[512], Len: 1536}, {Base: &p[mib+1024], Len: 300 << 10}, {Base: &p[4096], Len: 200<<10 - 1536},
	}
	n, _, errno := syscall.Syscall6(syscall.SYS_PREADV, f.Fd(), uintptr(unsafe.Pointer(&iov[0])), 3, 4*mib, 0, 0)
	if errno != 0 || n != 500<<10 {
		t.Fatalf("read %d bytes: %v", n, errno)
	}
	at := 0
	for _, v := range iov {
		if !bytes.Equal(unsafe.Slice(v.Base, v.Len), want[at:at+int(v.Len)]) {
			t.Errorf("other data from byte %d on", at)
		}
		at += int(v.Len)
	}
}

// TestMemoryIsAsAlignedAsBlocks where data goes straight past the page cache.
func TestMemoryIsAsAlignedAsBlocks(t *testing.T) {
	x := newToy(t, 4, 1, 4*mib, 4*mib)
	other := sysfs(t, device(t, x, x.file, Config{}), "dma_alignment")
	for way, cfg := range copying {
		cfg.DataAlign = 512
		d := device(t, x, x.file, cfg)
		want := other
		if d.ZeroCopy() {
			want = "511"
		}
		if got := sysfs(t, d, "dma_alignment"); got != want {
			t.Errorf("%s: %s, want %s", way, got, want)
		}
	}
}
