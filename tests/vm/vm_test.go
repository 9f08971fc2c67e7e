package vm

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const testIndex = `Package: linux-image-7.2.9+deb14-amd64
Version: 7.2.9-1
Depends: kmod, dracut | linux-initramfs-tool, linux-binary-7.2.9+deb14-amd64 (= 7.2.9-1), linux-modules-7.2.9+deb14-amd64 (= 7.2.9-1)
Description: Linux
 with a second line

Package: linux-binary-7.2.9+deb14-amd64
Version: 7.2.9-1
Depends: linux-base-7.2.9+deb14-amd64 (= 7.2.9-1)

Package: linux-modules-7.2.9+deb14-amd64
Version: 7.2.9-1
Depends: kmod, linux-base-7.2.9+deb14-amd64 (= 7.2.9-1)

Package: linux-base-7.2.9+deb14-amd64
Version: 7.2.9-1

Package: linux-image-7.2.13+deb14-amd64
Version: 7.2.13-1
Depends: linux-modules-7.2.13+deb14-amd64 (= 7.2.13-1)

Package: linux-image-7.2.14+deb14-cloud-amd64
Version: 7.2.14-1

Package: linux-image-6.12.90+deb12-amd64
Version: 6.12.90-1~bpo12+1

Package: linux-image-6.12.90+deb12.1-amd64
Version: 6.12.90-2~bpo12+1
`

func TestIndexResolvesToTheNewestCompleteKernel(t *testing.T) {
	index, err := parseIndex(strings.NewReader(testIndex), regexp.MustCompile(`^linux-`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		series   Series
		release  string
		packages []string
	}{
		// 7.2.13 lacks its modules, 7.2.14 is a cloud kernel.
		{Series7, "7.2.9+deb14-amd64", []string{
			"linux-image-7.2.9+deb14-amd64", "linux-binary-7.2.9+deb14-amd64",
			"linux-base-7.2.9+deb14-amd64", "linux-modules-7.2.9+deb14-amd64",
		}},
		{Series612, "6.12.90+deb12.1-amd64", []string{"linux-image-6.12.90+deb12.1-amd64"}},
	} {
		release, packages, err := resolve(index, c.series)
		if err != nil {
			t.Errorf("%s: %v", c.series, err)
			continue
		}
		var names []string
		for _, p := range packages {
			names = append(names, p.Name)
		}
		if release != c.release || !slices.Equal(names, c.packages) {
			t.Errorf("%s: got %s %v, want %s %v", c.series, release, names, c.release, c.packages)
		}
	}
	if _, _, err := resolve(index, "5.10"); err == nil {
		t.Error("a series that is not there was found")
	}
}

func TestVersionsCompareAsDebianSays(t *testing.T) {
	ordered := []string{"6.12.9-1", "6.12.90-1~bpo12+1", "6.12.90-1", "6.12.90-1+b1", "6.12.90-2~bpo12+1", "6.12.95-1", "7.2.9-1", "7.2.13-1"}
	for i, a := range ordered {
		for j, b := range ordered {
			if got := compareVersions(a, b); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compare %s with %s: got %d", a, b, got)
			}
		}
	}
}

func TestMirrorIsTheMachinesOwn(t *testing.T) {
	for _, c := range []struct{ name, targets, want string }{
		{"with an index", "Other http://a.example/x nodistro\nDebian http://m.example/debian/ bookworm-updates\nDebian http://m.example/debian/ bookworm\n", "http://m.example/debian/"},
		{"without an index", "http://m.example/debian-security bookworm-security\nhttp://m.example/debian bookworm\n", "http://m.example/debian"},
		{"not Debian", "Ubuntu http://u.example/ubuntu noble\n", ""},
	} {
		got, err := parseTargets(c.targets)
		if got != c.want || (c.want == "") != errors.Is(err, errNoMirror) {
			t.Errorf("%s: got %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}

func TestDmesgComplaintsAreFound(t *testing.T) {
	for _, c := range []struct {
		line string
		bad  bool
	}{
		{"[    1.0] nullb0: disk nullb0 created", false},
		{"[    1.0] WARNING: CPU: 0 PID: 7 at block/blk-zoned.c:12 f+0x1/0x2", true},
		{"[    1.0] BUG: kernel NULL pointer dereference, address: 0000000000000000", true},
		{"[    1.0] Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI", true},
		{"[    1.0] INFO: task fio:71 blocked for more than 120 seconds.", true},
		{`[    1.0] "echo 0 > /proc/sys/kernel/hung_task_timeout_secs" disables this message.`, true},
		{"[    1.0] UBSAN: array-index-out-of-bounds in fs/btrfs/x.c:1:2", true},
		{"[    1.0] UBSAN: array-index-out-of-bounds in /build/linux/io_uring/rsrc.c:970:3", false},
		{"[    1.0] Oopsla conference", false},
		{"[    0.0] Kernel command line: sysctl.kernel.hung_task_timeout_secs=0", false},
	} {
		if got := len(scanDmesg("[    0.9] quiet\n"+c.line+"\n")) > 0; got != c.bad {
			t.Errorf("%q: complaint %v, want %v", c.line, got, c.bad)
		}
	}
	long := "[    1.0] BUG: x\n" + strings.Repeat("[    1.0] trace\n", 100)
	if n := len(scanDmesg(long)); n != linesOfContext+1 {
		t.Errorf("%d lines shown, want %d", n, linesOfContext+1)
	}
}

func TestModulesLoadAfterWhatTheyNeed(t *testing.T) {
	dep := `kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/fs/netfs/netfs.ko.xz:
kernel/net/9p/9pnet.ko.xz: kernel/fs/netfs/netfs.ko.xz
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz
kernel/drivers/char/dashed-name.ko:
`
	got := loadOrder(dep, []string{"virtio_pci", "9pnet_virtio", "9p", "dashed_name"})
	want := []string{
		"kernel/fs/netfs/netfs.ko.xz", "kernel/net/9p/9pnet.ko.xz", "kernel/net/9p/9pnet_virtio.ko.xz",
		"kernel/fs/9p/9p.ko.xz", "kernel/drivers/char/dashed-name.ko",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestEnvironmentCarriesOnlyWhatIsMeant(t *testing.T) {
	got := environment([]string{"HOME=/root", "PATH=/go/bin:/usr/bin", "GOFLAGS=-x", "QZBD_SEED=1", "SECRET=1", "DISPLAY=:0"}, Options{Env: []string{"QZBD_BIN=/b"}})
	for _, want := range []string{"HOME=/root", "GOFLAGS=-x", "QZBD_SEED=1", "QZBD_VM=1", "QZBD_BIN=/b",
		"PATH=/go/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin"} {
		if !slices.Contains(got, want) {
			t.Errorf("%s is missing in %q", want, got)
		}
	}
	for _, e := range got {
		if strings.HasPrefix(e, "SECRET") || strings.HasPrefix(e, "DISPLAY") {
			t.Errorf("%s leaks into the guest", e)
		}
	}
}

func TestWhatATmpfsCoversIsExposed(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "qzbd-expose-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "a b")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	got := expose([]string{"/usr", file, file, dir, "/tmp/not there", "-flag", "/tmpfile"})
	if want := []string{file, dir}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestJobKeepsItsArguments(t *testing.T) {
	argv := []string{"./x", "a b", "", "$(c)", "d,e"}
	job, err := newJob(Options{Dir: "/usr"}, Kernel{}, argv)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(job.Argv[1:], argv[1:]) {
		t.Errorf("got %q, want %q", job.Argv[1:], argv[1:])
	}
	if !filepath.IsAbs(job.Argv[0]) {
		t.Errorf("the program %q is relative, but the guest may be elsewhere", job.Argv[0])
	}
}

func TestQemuOptionsQuoteCommas(t *testing.T) {
	m := &machine{o: Options{CPUs: 2, Memory: "1G", Disks: []string{"/a,b"}}, dir: "/d"}
	if args := strings.Join(m.qemuArgs(), " "); !strings.Contains(args, "file=/a,,b") {
		t.Errorf("no quoted comma in %s", args)
	}
}

func TestAVirtualClockWantsOneCPU(t *testing.T) {
	o, err := Options{VirtualClock: true}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{o: o, dir: "/d"}
	args := strings.Join(m.qemuArgs(), " ")
	for _, want := range []string{"-smp 1 ", "-icount shift=0,sleep=off", "thread=single", "max,-erms,-fsrm", " nowatchdog "} {
		if !strings.Contains(args, want) {
			t.Errorf("no %q in %s", want, args)
		}
	}
	if strings.Contains(args, "tsc_early_khz") {
		t.Errorf("the guest's counter is said to be the host's: %s", args)
	}
	if _, err := (Options{VirtualClock: true, CPUs: 2}).withDefaults(); err == nil {
		t.Error("two CPUs are accepted")
	}
}

func TestRamDiskIsAnArchive(t *testing.T) {
	var a cpio
	a.add("init", 0o100755, []byte("12345"))
	a.end()
	b := a.Bytes()
	if len(b)%4 != 0 || string(b[:6]) != "070701" || string(b[110:115]) != "init\x00" {
		t.Errorf("not a newc archive: %q", b)
	}
	if data := b[116:121]; string(data) != "12345" {
		t.Errorf("data is %q, not where the format wants it", data)
	}
}
