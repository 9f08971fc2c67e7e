//go:build kernel

package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Deadlines say that something hangs, never that something is slow: an
// emulated machine on a busy host needs a hundred times as long as a real one.
const (
	patience = 4 * time.Minute // for one command
	moment   = 3 * time.Minute // for what should happen at once
)

// qzbd is the program under test.
var qzbd string

func TestMain(m *testing.M) {
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "tests/kernel:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func prepare() error {
	if os.Geteuid() != 0 {
		return errors.New("these tests attach block devices: run them as root")
	}
	if _, err := os.Stat("/dev/ublk-control"); err != nil {
		if out, err := exec.Command("modprobe", "ublk_drv").CombinedOutput(); err != nil {
			return fmt.Errorf("this kernel has no ublk: modprobe ublk_drv: %w: %s", err, out)
		}
	}
	qzbd = os.Getenv("QZBD_BIN")
	if qzbd == "" {
		root, err := moduleRoot()
		if err != nil {
			return err
		}
		qzbd = filepath.Join(root, "bin", "qzbd")
	}
	out, err := exec.Command(qzbd, "list", "--json").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s list: %w: %s", qzbd, err, out)
	}
	if string(bytes.TrimSpace(out)) != "[]" {
		return fmt.Errorf("one of the tests detaches all devices: detach yours first\n%s", out)
	}
	return nil
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("no go.mod above the working directory: set QZBD_BIN")
}

// host is the machine that one test runs on.
type host struct {
	t   *testing.T
	dir string // for images, on whatever TMPDIR is
}

// begin records the state of the machine. Everything the test leaves behind,
// after its own cleanups, is an error.
func begin(t *testing.T) *host {
	t.Helper()
	before := look(t)
	log := followKernel(t)
	t.Cleanup(func() {
		before.compare(t, look(t))
		log.complain(t)
	})
	return &host{t: t, dir: t.TempDir()}
}

// result is how a command ended.
type result struct {
	line           string // the command itself
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("%s\nexit status %d\n%s%s", r.line, r.code, r.stdout, r.stderr)
}

// try runs a command to its end, whatever that is. A command that hangs ends
// the test.
func (h *host) try(name string, args ...string) result {
	h.t.Helper()
	return h.execute((*exec.Cmd).Start, name, args...)
}

// execute is try with a way of its own to start the command.
func (h *host) execute(start func(*exec.Cmd) error, name string, args ...string) result {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	// A program that hands our pipe on to something in the background would
	// keep Wait from returning.
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	line := strings.Join(cmd.Args, " ")
	if err := start(cmd); err != nil {
		h.t.Fatalf("%s: %v", line, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var err error
	select {
	case err = <-done:
	case <-time.After(patience + 30*time.Second):
		stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", cmd.Process.Pid))
		h.t.Fatalf("%s: hangs in the kernel and cannot be killed:\n%s", line, stack)
	}
	r := result{line, stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		h.t.Fatalf("not finished after %v: %v", patience, r)
	case err != nil && !errors.As(err, &exit):
		h.t.Fatalf("%v: %v", err, r)
	}
	return r
}

// run runs a command that must succeed and returns its standard output.
func (h *host) run(name string, args ...string) string {
	h.t.Helper()
	r := h.try(name, args...)
	if r.code != 0 {
		h.t.Fatal(r)
	}
	return r.stdout
}

var waits = regexp.MustCompile(`(?m)^qzbd: waiting for .*\n`)

// refused runs a command that must fail the way qzbd does: exit status 1 and
// one line on standard error, which it returns. What it waits for when the machine
// is slow it says on lines before.
func (h *host) refused(name string, args ...string) string {
	h.t.Helper()
	r := h.try(name, args...)
	said := waits.ReplaceAllString(r.stderr, "")
	if r.code != 1 || r.stdout != "" || strings.Count(said, "\n") != 1 {
		h.t.Errorf("want exit status 1 and one line on standard error only: %v", r)
	}
	return said
}

// wait polls until ok, for what nobody notifies us of.
func (h *host) wait(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(moment); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("waited %v in vain: %s", moment, what)
		}
	}
}

// mount mounts a device on a directory of its own, until the end of the test
// at the latest.
func (h *host) mount(fs, node string, options ...string) (dir string, unmount func()) {
	h.t.Helper()
	dir, err := os.MkdirTemp(h.dir, "mnt")
	if err != nil {
		h.t.Fatal(err)
	}
	args := []string{"-t", fs, node, dir}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	h.run("mount", args...)
	mounted := true
	unmount = func() {
		h.t.Helper()
		if !mounted {
			return
		}
		mounted = false
		if r := h.try("umount", dir); r.code != 0 {
			h.t.Error(r)
			// So that the device can go at least.
			if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
				h.t.Error(err)
			}
		}
	}
	h.t.Cleanup(unmount)
	return dir, unmount
}

// queues is the number of queues for a device with several.
func queues() string { return fmt.Sprint(min(2, runtime.NumCPU())) }
