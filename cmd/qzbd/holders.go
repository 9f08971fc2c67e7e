package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// holders says who uses a block device: mounts, stacked devices, processes
// that have it open. It is what detach tells the user, empty if nobody does.
// passing means that they are all processes, which may be gone in a moment.
func holders(node string) (who []string, passing bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(node, &st); gone(err) {
		return nil, false, nil
	} else if err != nil {
		return nil, false, fmt.Errorf("stat %s: %w", node, err)
	}
	major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
	who = mountsOf(node, fmt.Sprintf("%d:%d", major, minor))

	stacked, _ := os.ReadDir(fmt.Sprintf("/sys/dev/block/%d:%d/holders", major, minor))
	for _, e := range stacked {
		who = append(who, "used by "+stackedName(e.Name()))
	}
	passing = len(who) == 0
	who = append(who, openersOf(func(o *unix.Stat_t) bool {
		return o.Mode&unix.S_IFMT == unix.S_IFBLK && o.Rdev == st.Rdev
	})...)
	if len(who) > 0 {
		return who, passing, nil
	}
	// A claim that shows nowhere else: another mount namespace, swap.
	fd, err := unix.Open(node, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	switch {
	case gone(err):
		return nil, false, nil
	case errors.Is(err, unix.EBUSY):
		return []string{"claimed by the kernel (" + err.Error() + ")"}, false, nil
	case err != nil:
		return nil, false, explainOpen(&os.PathError{Op: "open", Path: node, Err: err})
	}
	return nil, false, unix.Close(fd)
}

// patience is how long is waited for those who only have the node open: after
// every write access udev opens it for a moment to look at it.
const patience = 3 * time.Second

// usersOf names those who use a block device and go on doing so, "" for nobody.
// Where that cannot be found out, somebody may.
func usersOf(node string) string {
	for deadline := time.Now().Add(patience); ; time.Sleep(patience / 30) {
		who, passing, err := holders(node)
		switch {
		case err != nil:
			return "perhaps somebody: " + err.Error()
		case len(who) == 0:
			return ""
		case !passing || time.Now().After(deadline):
			return strings.Join(who, ", ")
		}
	}
}

// stackedName is what the user calls a device that is stacked on another: the
// device mapper's have a name of their own, which dmsetup(8) wants.
func stackedName(kernel string) string {
	name, err := os.ReadFile("/sys/block/" + kernel + "/dm/name")
	if err != nil {
		return "/dev/" + kernel
	}
	return "/dev/mapper/" + strings.TrimSpace(string(name))
}

// gone says that the device has ended meanwhile: nobody uses it.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
}

// mountsOf says where a block device is mounted. btrfs shows an anonymous device
// number, so the source counts too, and for XFS ours is the realtime device among
// the options.
func mountsOf(node, devno string) []string {
	all, err := mounts()
	if err != nil {
		return nil
	}
	var who []string
	for _, m := range all {
		second := slices.ContainsFunc(strings.Split(m.options, ","), func(option string) bool {
			name, is := strings.CutPrefix(option, "rtdev=")
			return is && isNode(name, node)
		})
		if m.dev == devno || isNode(m.source, node) || second {
			who = append(who, "mounted on "+m.point)
		}
	}
	return who
}

// isNode says that name, from a mount, is node or a link to it.
func isNode(name, node string) bool {
	if name == node {
		return true
	}
	target, err := filepath.EvalSymlinks(name)
	return err == nil && strings.HasPrefix(name, "/dev/") && target == node
}

// openersOf names the processes that have a file open, but this one.
func openersOf(is func(*unix.Stat_t) bool) []string {
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	var who []string
	seen := map[string]bool{}
	for _, fd := range fds {
		var st unix.Stat_t
		if unix.Stat(fd, &st) != nil || !is(&st) {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		if seen[pid] || pid == strconv.Itoa(os.Getpid()) {
			continue
		}
		seen[pid] = true
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		who = append(who, fmt.Sprintf("open by process %s (%s)", pid, strings.TrimSpace(string(comm))))
	}
	return who
}
