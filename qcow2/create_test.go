package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// create makes an image from options as the command line takes them.
func create(t testing.TB, path, opts string) {
	t.Helper()
	o, _, err := ParseCreateOptions([]string{opts}, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := Create(path, o); err != nil {
		t.Fatal(err)
	}
}

// checkClean fails the test unless Check finds nothing at all.
func checkClean(t testing.TB, f File) {
	t.Helper()
	r, err := Check(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	if r.ExitCode() != 0 {
		t.Errorf("check: %d corruptions, %d leaks\n%s", r.Corruptions, r.Leaks, strings.Join(r.Messages, "\n"))
	}
}

func TestSeedExampleMakesTheSampleImage(t *testing.T) {
	// As two of the founding command line's many -o.
	o, warnings, err := ParseCreateOptions([]string{
		"size=768M", "zone.size=64M,zone.capacity=64M,zone.conventional_zones=0,zone.max_append_bytes=4096," +
			"zone.max_open_zones=6,zone.max_active_zones=8,zone.mode=host-managed"}, "")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	path := filepath.Join(t.TempDir(), "zbc.qcow2")
	if err := Create(path, o); err != nil {
		t.Fatal(err)
	}
	ours, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(sample(t, "v9-seed-fresh"))
	if err != nil {
		t.Fatal(err)
	}
	// The same fixed header and the same tables in the same places; only the
	// extensions are in another order, and ours ends at a cluster boundary.
	if !bytes.Equal(ours[:112], theirs[:112]) {
		t.Errorf("header\n% x\nwant\n% x", ours[:112], theirs[:112])
	}
	if !bytes.Equal(ours[0x10000:len(theirs)], theirs[0x10000:]) {
		t.Error("the tables differ")
	}
	if !bytes.Equal(ours[112:112+64], theirs[0x228:0x228+64]) {
		t.Errorf("zoned extension\n% x\nwant\n% x", ours[112:112+64], theirs[0x228:0x228+64])
	}
	st, err := os.Stat(path)
	if err != nil || st.Size() != 0x50000 {
		t.Errorf("the file is %#x bytes long", st.Size())
	}
	checkClean(t, openOS(t, path))
}

func TestEveryClusterSizeAndRefcountWidth(t *testing.T) {
	for bits := minClusterBits; bits <= maxClusterBits; bits++ {
		for order := range maxRefcountOrder + 1 {
			f := openOS(t, lockFile(t))
			o := CreateOptions{
				Size: 300<<20 + 512, ClusterSize: 1 << bits, RefcountBits: 1 << order,
				ZoneSize: 4 << 20, ZoneCapacity: 3<<20 + 512, Conventional: 3, MaxActive: 7, LazyRefcounts: true,
			}
			if err := Format(f, o); err != nil {
				t.Fatalf("%+v: %v", o, err)
			}
			h, wps, err := ReadPointers(f)
			if err != nil {
				t.Fatalf("%+v: %v", o, err)
			}
			if h.Size != o.Size || h.Zoned.NrZones != 76 || h.Zoned.MaxOpen != 7 || h.Compatible != compatLazyRefcounts {
				t.Errorf("%+v", h)
			}
			for i, wp := range wps {
				if wp != h.ZoneStart(uint32(i)) {
					t.Errorf("zone %d is at %#x", i, wp)
				}
			}
			checkClean(t, f)
			f.Close()
		}
	}
}

// plain turns an image of create's layout into one that QEMU opens: without the
// feature bit and the extension, which is the first one. QEMU's check then finds
// exactly zonedmeta leaked.
func plain(t *testing.T, f File, h *Header) {
	t.Helper()
	var b [8]byte
	_, err := f.WriteAt(b[:], offIncompatible)
	must(t, err)
	area := make([]byte, h.ClusterSize()-int64(h.HeaderLength))
	must(t, readPadded(f, area, int64(h.HeaderLength)))
	if kind := binary.BigEndian.Uint32(area); kind != extZoned {
		t.Fatalf("the first extension is %#08x", kind)
	}
	n := copy(area, area[8+binary.BigEndian.Uint32(area[4:]):]) // its length needs no padding
	clear(area[n:])
	_, err = f.WriteAt(area, int64(h.HeaderLength))
	must(t, err)
	h.Incompatible = 0
}

func TestQEMUAgreesWithRefcountsOfFreshImages(t *testing.T) {
	for _, opts := range []string{
		"size=768M,zone.size=64M",
		"size=1T,zone.size=1G",
		"size=1G,zone.size=1M,cluster_size=512,refcount_bits=64",
		"size=1G,zone.size=64K,cluster_size=512,refcount_bits=1",
		"size=8G,zone.size=2M,cluster_size=2M,refcount_bits=2,lazy_refcounts=on",
		"size=1G,zone.size=4K,cluster_size=4K",
	} {
		path := filepath.Join(t.TempDir(), "image")
		create(t, path, opts)
		qemuAgrees(t, path)
	}
}

func TestBadOptionsAreAllReportedAtOnce(t *testing.T) {
	for _, c := range []struct{ opts, arg, want string }{
		{"", "", "size is missing: give it as the argument or as the option size"},
		{"size=1G", "2G", "size=1G: the size is given twice, the argument is 2G"},
		{"size=1G,size=2G", "", "size=2G: it is given twice, the other value is 1G"},
		{"", "0", "size=0: it must be a multiple of 512 above 0"},
		{"", "1000", "size=1000: it must be a multiple of 512 above 0"},
		{"", "lots", "size=lots: it must be a size such as 65536, 64K, 1.5G or 1T"},
		{"", "-1G", "size=-1G: it must be a size such as 65536, 64K, 1.5G or 1T"},
		{"", "16E", "size=16E: it must be less than 16E"},
		{"zone.size=1T", "1E", "size=1E: the last zone ends beyond 2^59, where a write pointer does not fit"},
		{"zone.size=1T,cluster_size=512", "1T", "size=1T: with a cluster_size of 512 the L1 table would exceed 33554432 bytes"},
		{"zone.size=64M,cluster_size=512,refcount_bits=64", "100G", "size=100G: the refcount table for clusters of 512 bytes with refcounts of 64 bits would exceed 8388608 bytes"},
		{"zone.size=100M", "1G", "zone.size=100M: it must be a power of two from 512"},
		{"zone.size=0", "1G", "zone.size=0: it must be a power of two from 512"},
		{"zone.size=32K", "1M", "zone.size=32K: it must be a multiple of cluster_size, 65536"},
		{"cluster_size=4M", "1G", "cluster_size=4M: it must be a power of two from 512 to 2M"},
		{"cluster_size=256", "1G", "cluster_size=256: it must be a power of two from 512 to 2M"},
		{"refcount_bits=3", "1G", "refcount_bits=3: it must be a power of two from 1 to 64"},
		{"refcount_bits=0", "1G", "refcount_bits=0: it must be a power of two from 1 to 64"},
		{"refcount_bits=x", "1G", "refcount_bits=x: it must be a whole number"},
		{"lazy_refcounts=maybe", "1G", "lazy_refcounts=maybe: it must be on or off"},
		{"zone.capacity=257M", "1G", "zone.capacity=257M: it must be a multiple of 512, from that to zone.size, 268435456"},
		{"zone.capacity=0", "1G", "zone.capacity=0: it must be a multiple of 512, from that to zone.size, 268435456"},
		{"zone.capacity=1000", "1G", "zone.capacity=1000: it must be a multiple of 512, from that to zone.size, 268435456"},
		{"zone.conventional_zones=4", "1G", "zone.conventional_zones=4: it must be less than the number of zones, 4"},
		{"zone.max_active_zones=5", "1G", "zone.max_active_zones=5: it must be at most the number of sequential zones, 4"},
		{"zone.max_open_zones=5", "1G", "zone.max_open_zones=5: it must be at most the number of sequential zones, 4"},
		{"zone.max_active_zones=4,zone.conventional_zones=1", "1G", "zone.max_active_zones=4: it must be at most the number of sequential zones, 3"},
		{"zone.max_open_zones=3,zone.max_active_zones=2", "1G", "zone.max_open_zones=3: it must be at most zone.max_active_zones, 2"},
		{"zone.max_append_bytes=1000", "1G", "zone.max_append_bytes=1000: it must be a multiple of 512 below 4G"},
		{"zone.max_append_bytes=4G,zone.size=8G", "16G", "zone.max_append_bytes=4G: it must be a multiple of 512 below 4G"},
		{"zone.max_append_bytes=256M", "1G", "zone.max_append_bytes=256M: with 512 added it must be less than zone.capacity, 268435456"},
		{"zone.size=64K", "1T", "size=1T: 16777216 zones of 65536 bytes are needed, at most 1048576 are supported"},
		{"zone.mode=host-aware", "1G", "zone.mode=host-aware: only host-managed is built"},
		{"preallocation=half", "1G", "preallocation=half: it must be off, metadata, falloc, full"},
		{"backing_file=a,,b", "1G", "backing_file=a,b: this option is not built: leave it out"},
		{"extended_l2=on", "1G", "extended_l2=on: this is not built, only off is"},
		{"compression_type=zstd", "1G", "compression_type=zstd: this is not built, only zlib is"},
		{"compat=0.10", "1G", "compat=0.10: this is not built, only 1.1 is"},
		{"encrypt.format=luks", "1G", "encrypt.format=luks: this option is not built: leave it out"},
		{"zone.sise=1M", "1G", "zone.sise=1M: there is no such option: -o help lists them"},
		{"zone.size=100M,cluster_size=3,zone.max_open_zones=x,zone.mode=none", "1G",
			"zone.max_open_zones=x: it must be a whole number\nzone.mode=none: only host-managed is built\n" +
				"cluster_size=3: it must be a power of two from 512 to 2M\nzone.size=100M: it must be a power of two from 512"},
	} {
		var list []string
		if c.opts != "" {
			list = []string{c.opts}
		}
		_, _, err := ParseCreateOptions(list, c.arg)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s %s\ngot  %v\nwant %s", c.opts, c.arg, err, c.want)
		}
	}
}

func TestOptionsThatAskForNothingSpecialPass(t *testing.T) {
	o, warnings, err := ParseCreateOptions([]string{
		"preallocation=off,extended_l2=off,compression_type=zlib,compat=v3,lazy_refcounts,zone.max_open_zones=2"}, "1.5G")
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	want := CreateOptions{
		Size: 3 << 29, ClusterSize: 64 << 10, RefcountBits: 16, LazyRefcounts: true,
		ZoneSize: 256 << 20, ZoneCapacity: 256 << 20, MaxOpen: 2, MaxAppend: 64 << 10,
	}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("got %+v\nwant %+v", o, want)
	}
	// The default of an append must not make small zones impossible.
	for zone, want := range map[string]uint64{"64K": 64<<10 - 1024, "512": 0, "1K": 0, "2K": 1024, "128K": 64 << 10} {
		o, _, err := ParseCreateOptions([]string{"cluster_size=512,zone.size=" + zone}, "1M")
		if err != nil || o.MaxAppend != want {
			t.Errorf("zone.size=%s: append %d, want %d, %v", zone, o.MaxAppend, want, err)
		}
	}
}

func TestImagesThatCannotBeAttachedAreCreatedWithAWarning(t *testing.T) {
	for _, c := range []struct{ opts, size, want string }{
		{"zone.size=64M", "100M", "the last zone is only 37748736 of 67108864 bytes long: such an image can be attached only without that zone, with --drop-short-zone"},
		{"zone.size=256M", "64M", "the last zone is only 67108864 of 268435456 bytes long: no Linux kernel serves it, and without it no sequential zone is left to attach: make the size a multiple of zone.size, or zone.size smaller"},
		{"zone.size=64M,zone.conventional_zones=1", "100M", "the last zone is only 37748736 of 67108864 bytes long: no Linux kernel serves it, and without it no sequential zone is left to attach: make the size a multiple of zone.size, or zone.size smaller"},
		{"zone.size=64K", "2G", "the image has 32768 zones: with more than 16384 it cannot be attached"},
		{"cluster_size=512,zone.size=2K", "1M", "zones are 2048 bytes long: with zones of less than 4K the image cannot be attached"},
		{"zone.size=2T", "4T", "zones are 2199023255552 bytes long: with zones of more than 1T the image cannot be attached"},
	} {
		_, warnings, err := ParseCreateOptions([]string{c.opts}, c.size)
		if err != nil || len(warnings) != 1 || warnings[0] != c.want {
			t.Errorf("%s %s: %v %q", c.opts, c.size, err, warnings)
		}
	}
}

func TestSizesAreReadAsQEMUReadsThem(t *testing.T) {
	for s, want := range map[string]uint64{
		"0": 0, "512": 512, "0x200": 512, "0X200": 512, "0100000": 100000, "010K": 10 << 10, "64k": 64 << 10, "64K": 64 << 10, "1M": 1 << 20, "1.5G": 3 << 29, "2T": 2 << 40,
		"1P": 1 << 50, "15E": 15 << 60, "512b": 512, "0.1K": 102, "1.": 1, "18446744073709551615": 1<<64 - 1,
	} {
		if got, err := ParseSize(s); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "K", ".", ".5G", "1e3", "1/2", "1 G", "1GB", "1_000", "+1", "0x1K", "0x", "0x1_0", "0o17", "0b11", "1.2.3", "18446744073709551616"} {
		if got, err := ParseSize(s); err == nil {
			t.Errorf("%q is read as %d", s, got)
		}
	}
}

func TestCreateDoesNotReplaceALinkToNothing(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink("gone", link))
	err := Create(link, CreateOptions{Size: 1 << 30})
	if err == nil || !strings.Contains(err.Error(), "is a symbolic link to gone, which cannot be followed") {
		t.Errorf("got %v", err)
	}
	if target, err := os.Readlink(link); err != nil || target != "gone" {
		t.Errorf("the link is now %q, %v", target, err)
	}
}

func TestCreateReplacesAFileButNotOneInUse(t *testing.T) {
	path := lockFile(t)
	dir := filepath.Dir(path)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	holder := openOS(t, path)
	if err := Lock(holder.File, false); err != nil {
		t.Fatal(err)
	}
	o := CreateOptions{Size: 1 << 30}
	if err := Create(link, o); !errors.Is(err, ErrInUse) {
		t.Errorf("create over an image in use: %v", err)
	}
	if err := Create(dir, o); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("create over a directory: %v", err)
	}
	if err := Create(filepath.Join(dir, "bad"), CreateOptions{Size: 1}); err == nil {
		t.Error("a size of one byte is accepted")
	}
	entries := func() (names string) {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			names += e.Name() + " "
		}
		return names
	}
	if got := entries(); got != "image link " {
		t.Errorf("failures left %s", got)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, make([]byte, 1<<20)) {
		t.Errorf("a failure changed the old file: %v", err)
	}
	holder.Close()
	if err := Create(link, o); err != nil {
		t.Fatal(err)
	}
	if got := entries(); got != "image link " {
		t.Errorf("after create there is %s", got)
	}
	st, err := os.Lstat(path)
	if err != nil || st.Mode() != 0o640 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	checkClean(t, openOS(t, path))
}

// orderFile notes writes and syncs, and fails the one that failAt counts down to.
type orderFile struct {
	*OSFile
	log    []string
	failAt int
}

var errInjected = errors.New("injected")

func (f *orderFile) step(s string) error {
	f.log = append(f.log, s)
	if len(f.log) == f.failAt {
		return errInjected
	}
	return nil
}

func (f *orderFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.step(fmt.Sprintf("write %d+%d", off, len(p))); err != nil {
		return 0, err
	}
	return f.OSFile.WriteAt(p, off)
}

func (f *orderFile) Truncate(n int64) error {
	if err := f.step("truncate"); err != nil {
		return err
	}
	return f.OSFile.Truncate(n)
}

func (f *orderFile) Sync() error {
	if err := f.step("sync"); err != nil {
		return err
	}
	return f.OSFile.Sync()
}

func TestTheFirstSectorIsWrittenLast(t *testing.T) {
	f := &orderFile{OSFile: openOS(t, lockFile(t))}
	if err := Format(f, CreateOptions{Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	n := len(f.log)
	if n < 6 || f.log[n-3] != "sync" || f.log[n-2] != "write 0+512" || f.log[n-1] != "sync" {
		t.Errorf("%q", f.log)
	}
	for at := 1; at <= n; at++ {
		g := &orderFile{OSFile: openOS(t, lockFile(t)), failAt: at}
		if err := Format(g, CreateOptions{Size: 1 << 30}); !errors.Is(err, errInjected) {
			t.Errorf("a failure of %s is not told: %v", f.log[at-1], err)
		}
		if _, err := ReadHeader(g); err == nil && at < n {
			t.Errorf("a failure of %s leaves an image", f.log[at-1])
		}
	}
}

func TestHelpNamesEveryOption(t *testing.T) {
	help := CreateOptionsHelp()
	for _, o := range options {
		if !strings.Contains(help, "  "+o.name+"= ") {
			t.Errorf("help does not name %s", o.name)
		}
	}
}
