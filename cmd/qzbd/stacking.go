package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/ublk"
)

// stacking knows what lies on what: files on file systems on block devices on
// other block devices, on files, or on the image of a device of ours. Nothing of
// it touches a file on a path that it is asked about: when that lies on a device
// that waits, this would wait, too.
type stacking struct {
	sys    string // where sysfs is
	mounts []mount
	// rdev returns the major:minor of a device node.
	rdev func(node string) (string, bool)
	// image returns the path of the image of our device N, "" if it is none.
	image func(id int) string
}

// thisStacking is how it is on this machine.
func thisStacking() (*stacking, error) {
	all, err := mounts()
	if err != nil {
		return nil, err
	}
	return &stacking{
		sys: "/sys", mounts: all,
		rdev: func(node string) (string, bool) {
			var st unix.Stat_t
			if unix.Stat(node, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
				return "", false
			}
			return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), true
		},
		image: func(id int) string {
			if s, err := readState(id); err == nil {
				return s.Image
			}
			return ""
		},
	}, nil
}

// below returns the numbers of the ublk devices that a file lies on, at whatever
// depth. It sees file systems by their mounts, all disks of a btrfs, a log and a
// realtime device of XFS, the device mapper and whatever else has slaves in
// sysfs, loop devices, and devices of ours. It does not see further disks of
// f2fs, layers of overlayfs, and what comes over a network.
func (s *stacking) below(path string) []int {
	w := stackWalk{stacking: s, seen: map[string]bool{}}
	w.file(path)
	return w.found
}

type stackWalk struct {
	*stacking
	seen  map[string]bool // paths and devices
	found []int
}

// new reports whether it is the first time that the walk comes by.
func (w *stackWalk) new(what string) bool {
	again := w.seen[what]
	w.seen[what] = true
	return !again
}

func (w *stackWalk) file(path string) {
	m, ok := mountOf(w.mounts, path)
	if !ok || !w.new("file "+path) {
		return
	}
	if !strings.HasPrefix(m.dev, "0:") {
		w.block(m.dev)
	}
	w.node(m.source)
	for _, o := range strings.Split(m.options, ",") {
		if name, value, _ := strings.Cut(o, "="); name == "rtdev" || name == "logdev" {
			w.node(value)
		}
	}
	if m.fs == "btrfs" {
		w.btrfs(filepath.Base(m.source))
	}
}

func (w *stackWalk) node(node string) {
	if dev, ok := w.rdev(node); ok {
		w.block(dev)
	}
}

// btrfs goes on with all disks of the file system that one belongs to
// (Documentation/admin-guide/btrfs: /sys/fs/btrfs/UUID/devices).
func (w *stackWalk) btrfs(disk string) {
	with, _ := filepath.Glob(filepath.Join(w.sys, "fs/btrfs/*/devices", disk))
	for _, link := range with {
		disks, _ := os.ReadDir(filepath.Dir(link))
		for _, d := range disks {
			w.named(d.Name())
		}
	}
}

// named goes on with the block device that sysfs calls so.
func (w *stackWalk) named(name string) {
	if b, err := os.ReadFile(filepath.Join(w.sys, "class/block", name, "dev")); err == nil {
		w.block(strings.TrimSpace(string(b)))
	}
}

func (w *stackWalk) block(dev string) {
	dir, err := filepath.EvalSymlinks(filepath.Join(w.sys, "dev/block", dev))
	if err != nil || !w.new("block "+dev) {
		return
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		w.named(filepath.Base(filepath.Dir(dir)))
	}
	slaves, _ := os.ReadDir(filepath.Join(dir, "slaves"))
	for _, e := range slaves {
		w.named(e.Name())
	}
	if file, err := os.ReadFile(filepath.Join(dir, "loop/backing_file")); err == nil {
		w.file(strings.TrimSuffix(string(file), "\n"))
	}
	if num, ok := strings.CutPrefix(filepath.Base(dir), "ublkb"); ok {
		if id, err := strconv.Atoi(num); err == nil {
			w.found = append(w.found, id)
			if image := w.image(id); image != "" {
				w.file(image)
			}
		}
	}
}

// refuseStacked keeps a server from an image that it could not get at: one on
// the very device id that it is to serve, or on a device that has no server. On
// other devices of ours images may lie.
func refuseStacked(path string, id int) error {
	s, err := thisStacking()
	if err != nil {
		return err
	}
	for _, below := range s.below(path) {
		node := ublk.NodePath(below)
		if below == id {
			return fmt.Errorf("%s lies on %s itself, which can only be served from elsewhere: put the image back where it was, or give up what is on the device with `qzbd detach --force %s`", path, node, node)
		}
		if r, err := readState(below); err == nil && !r.alive() {
			return fmt.Errorf("%s lies on %s, whose server is gone: `qzbd recover %s` first", path, node, node)
		}
	}
	return nil
}

// refuseStackedPath is refuseStacked before the file is opened, which might wait
// for ever: symlinks in the path are not seen.
func refuseStackedPath(path string, id int) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	return refuseStacked(abs, id)
}

// refuseStackedFile is refuseStacked of a file that is open.
func refuseStackedFile(f *os.File, id int) error {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return err
	}
	return refuseStacked(path, id)
}
