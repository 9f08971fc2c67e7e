package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeSys makes a sysfs of block devices: name to major:minor, what they lie on,
// and for loop devices their file.
type fakeDisk struct {
	name, dev string
	part      string // of that disk
	slaves    []string
	file      string
}

func fakeStacking(t *testing.T, mountinfo string, images map[int]string, disks ...fakeDisk) *stacking {
	t.Helper()
	root := t.TempDir()
	write := func(content string, path ...string) {
		t.Helper()
		name := filepath.Join(append([]string{root}, path...)...)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target string, path ...string) {
		t.Helper()
		name := filepath.Join(append([]string{root}, path...)...)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	devs := map[string]string{}
	for _, d := range disks {
		devs["/dev/"+d.name] = d.dev
		dir := filepath.Join("devices", d.part, d.name)
		write(d.dev+"\n", dir, "dev")
		link(filepath.Join(root, dir), "class/block", d.name)
		link(filepath.Join(root, dir), "dev/block", d.dev)
		if d.part != "" {
			write("1\n", dir, "partition")
		}
		for _, s := range d.slaves {
			write("", dir, "slaves", s)
		}
		if d.file != "" {
			write(d.file+"\n", dir, "loop/backing_file")
		}
	}
	for _, d := range []string{"sdb", "ublkb7"} {
		write("", "fs/btrfs/0c1d/devices", d)
	}
	write("", "fs/btrfs/features/raid56")
	all, err := readMounts(strings.NewReader(mountinfo))
	if err != nil {
		t.Fatal(err)
	}
	return &stacking{
		sys: root, mounts: all,
		rdev:  func(node string) (string, bool) { d, ok := devs[node]; return d, ok },
		image: func(id int) string { return images[id] },
	}
}

func TestWhatAnImageLiesOn(t *testing.T) {
	s := fakeStacking(t, `20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:20 / /tmp rw shared:3 - tmpfs tmpfs rw
22 20 259:3 / /mnt/direct rw - f2fs /dev/ublkb3 rw
23 20 0:41 /sub /mnt/btrfs rw - btrfs /dev/sdb rw,subvolid=5
24 20 8:33 / /mnt/xfs rw - xfs /dev/sdc1 rw,rtdev=/dev/ublkb4,noquota
25 20 253:1 / /mnt/dm rw - ext4 /dev/mapper/top rw
26 20 7:0 / /mnt/with\040blank rw - ext4 /dev/loop0 rw
27 20 259:9 / /mnt/stacked rw - f2fs /dev/ublkb9 rw
28 22 8:1 /srv /mnt/direct/bind rw - ext4 /dev/sda1 rw
29 22 8:1 /srv/a.qcow2 /mnt/direct/a.qcow2 rw - ext4 /dev/sda1 rw
30 20 259:3 / /mnt/hidden rw - f2fs /dev/ublkb3 rw
31 20 0:20 / /mnt/hidden rw - tmpfs tmpfs rw
`, map[int]string{3: "/srv/a.qcow2", 9: "/mnt/with blank/b.qcow2", 8: "/mnt/round/c.qcow2"},
		fakeDisk{name: "sda", dev: "8:0"},
		fakeDisk{name: "sda1", dev: "8:1", part: "sda"},
		fakeDisk{name: "sdb", dev: "8:16"},
		fakeDisk{name: "sdc", dev: "8:32"},
		fakeDisk{name: "sdc1", dev: "8:33", part: "sdc"},
		fakeDisk{name: "ublkb3", dev: "259:3"},
		fakeDisk{name: "ublkb3p1", dev: "259:13", part: "ublkb3"},
		fakeDisk{name: "ublkb4", dev: "259:4"},
		fakeDisk{name: "ublkb7", dev: "259:7"},
		fakeDisk{name: "ublkb9", dev: "259:9"},
		fakeDisk{name: "dm-0", dev: "253:0", slaves: []string{"sda1", "ublkb3p1"}},
		fakeDisk{name: "dm-1", dev: "253:1", slaves: []string{"dm-0"}},
		fakeDisk{name: "loop0", dev: "7:0", file: "/mnt/direct/disk"},
	)
	for path, want := range map[string]string{
		"/srv/a.qcow2":               "[]",
		"/tmp/a.qcow2":               "[]",
		"/mnt/direct/dir/a.qcow2":    "[3]",
		"/mnt/directly/a.qcow2":      "[]",
		"/mnt/direct/bind/a.qcow2":   "[]", // another file system is mounted there
		"/mnt/direct/a.qcow2":        "[]", // and another file here
		"/mnt/btrfs/a.qcow2":         "[7]",
		"/mnt/xfs/a.qcow2":           "[4]",
		"/mnt/dm/a.qcow2":            "[3]",
		"/mnt/with blank/a.qcow2":    "[3]",
		"/mnt/stacked/a.qcow2":       "[9 3]",
		"/mnt/hidden/a.qcow2":        "[]",
		"/mnt/direct/gone (deleted)": "[3]",
	} {
		if got := fmt.Sprint(s.below(path)); got != want {
			t.Errorf("%s lies on %s, want %s", path, got, want)
		}
	}
}

// Whatever lies on itself, the walk ends.
func TestAWalkInACircleEnds(t *testing.T) {
	s := fakeStacking(t, `20 1 8:1 / / rw - ext4 /dev/sda1 rw
22 20 259:3 / /mnt/a rw - f2fs /dev/ublkb3 rw
23 20 7:0 / /mnt/b rw - ext4 /dev/loop0 rw
`, map[int]string{3: "/mnt/b/image"},
		fakeDisk{name: "ublkb3", dev: "259:3"},
		fakeDisk{name: "loop0", dev: "7:0", file: "/mnt/a/disk"})
	if got := fmt.Sprint(s.below("/mnt/b/image")); got != "[3]" {
		t.Errorf("it lies on %s", got)
	}
}
