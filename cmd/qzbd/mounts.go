package main

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
)

// mount is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	dev     string // major:minor; of btrfs an anonymous one
	point   string
	fs      string
	source  string // of most file systems on block devices, the node
	options string // of the file system, separated by commas
}

// mounts returns what is mounted here, in the order of mounting.
func mounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readMounts(f)
}

func readMounts(r io.Reader) ([]mount, error) {
	var all []mount
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		fields, source := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 5 || len(source) < 3 {
			continue
		}
		all = append(all, mount{fields[2], unescape(fields[4]), source[0], unescape(source[1]), source[2]})
	}
	return all, sc.Err()
}

// unescape undoes what the kernel does to blanks, newlines and backslashes.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountOf returns the mount that a path without symlinks leads to.
func mountOf(all []mount, path string) (best mount, ok bool) {
	for _, m := range all {
		inside := m.point == "/" || path == m.point || strings.HasPrefix(path, m.point+"/")
		if inside && (!ok || len(m.point) >= len(best.point)) { // a later one hides an earlier one
			best, ok = m, true
		}
	}
	return best, ok
}
