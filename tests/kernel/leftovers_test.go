//go:build kernel

package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// machine is the set of facts that a test must not add to.
type machine map[string]bool

func look(t *testing.T) machine {
	t.Helper()
	m := machine{}
	for _, pattern := range []string{
		"/dev/ublkb*", "/dev/ublkc*", "/run/qzbd/*", "/sys/block/*", "/sys/block/loop*/loop/backing_file", filepath.Join(os.TempDir(), "*qzbd*"),
	} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if ok, _ := filepath.Match("/sys/block/loop*", n); ok {
				continue // that they exist is the loop module's business
			}
			m["file "+n] = true
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		// Fields 4 and 5 of proc_pid_mountinfo(5): the ids in front may be reused.
		if f := strings.Fields(line); len(f) > 4 {
			m["mount of "+f[3]+" on "+f[4]] = true
		}
	}
	for _, pid := range processes() {
		m["process "+pid] = true
	}
	return m
}

// processes lists the processes that run the program under test.
func processes() (pids []string) {
	self, err := os.Stat(qzbd)
	if err != nil {
		return nil
	}
	exes, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, exe := range exes {
		if st, err := os.Stat(exe); err == nil && os.SameFile(st, self) {
			pids = append(pids, strings.Split(exe, "/")[2])
		}
	}
	return pids
}

func (m machine) compare(t *testing.T, after machine) {
	t.Helper()
	for fact := range after {
		if !m[fact] {
			t.Errorf("left behind: %s", fact)
		}
	}
}

// kernelLog is a reader of the kernel's log from some moment on.
type kernelLog struct{ fd int }

func followKernel(t *testing.T) kernelLog {
	t.Helper()
	fd, err := syscall.Open("/dev/kmsg", syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("/dev/kmsg: %v", err)
	}
	if _, err := syscall.Seek(fd, 0, 2); err != nil {
		t.Fatalf("/dev/kmsg: %v", err)
	}
	return kernelLog{fd}
}

// lines returns the messages since the last call.
func (k kernelLog) lines() (lines []string, err error) {
	record := make([]byte, 8192)
	for {
		n, err := syscall.Read(k.fd, record)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			return lines, nil
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EPIPE):
			lines = append(lines, "(some messages were overwritten before they could be read)")
		case err != nil:
			return lines, err
		default:
			// "priority,sequence,time,flags;message" and lines of properties.
			_, message, _ := strings.Cut(string(record[:n]), ";")
			message, _, _ = strings.Cut(message, "\n")
			lines = append(lines, message)
		}
	}
}

// trouble is how a kernel says that something is broken. One message is known
// to be its own doing: Linux 7.2 complains once per boot about an array in its
// registration of buffers.
var (
	trouble   = regexp.MustCompile(`WARNING:|BUG:|\bOops\b|hung_task|blocked for more than|UBSAN|general protection fault`)
	notOurOwn = regexp.MustCompile(`UBSAN: .* in .*io_uring/rsrc\.c`)
)

// complain ends the following; a broken kernel fails the test, and a failed
// test shows what the kernel had to say.
func (k kernelLog) complain(t *testing.T) {
	t.Helper()
	defer syscall.Close(k.fd)
	lines, err := k.lines()
	if err != nil {
		t.Errorf("/dev/kmsg: %v", err)
	}
	bad := 0
	for _, l := range lines {
		if trouble.MatchString(l) && !notOurOwn.MatchString(l) {
			bad++
		}
	}
	if bad > 0 {
		t.Errorf("the kernel reports trouble in %d lines", bad)
	}
	if t.Failed() && len(lines) > 0 {
		const most = 200
		note := ""
		if drop := len(lines) - most; drop > 0 {
			lines, note = lines[drop:], fmt.Sprintf(" (the last %d lines)", most)
		}
		t.Logf("kernel log%s:\n  %s", note, strings.Join(lines, "\n  "))
	}
}
