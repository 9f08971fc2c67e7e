//go:build kernel

package kernel

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The main thread, which no goroutine can end, is nobody else's: see startIn.
func init() { runtime.LockOSThread() }

// startIn starts a program in the root directory of newer tools, with the
// machine's devices and files for temporary use. The mounts are in a namespace
// that ends with the program.
func startIn(root string, cmd *exec.Cmd) error {
	cmd.SysProcAttr, cmd.Dir = &syscall.SysProcAttr{Chroot: root}, "/"
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread's namespace ends with it
		err := mountTools(root)
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}

// mountTools gives the calling thread a namespace of its own, in which the
// machine's devices and files are below root, too.
func mountTools(root string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run", "/tmp", "/mnt", "/var/tmp", os.TempDir()} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(dir, root+dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", dir, root+dir, err)
		}
	}
	return nil
}

// tools is the root directory of newer tools.
func (h *host) tools() string {
	h.t.Helper()
	dir := os.Getenv("QZBD_TOOLS")
	if dir == "" {
		h.t.Fatal("QZBD_TOOLS is not set: let it name the directory that bin/vm tools prints (bin/vm run -tools does)")
	}
	return dir
}

// tryTool is try for one of the newer tools.
func (h *host) tryTool(name string, args ...string) result {
	h.t.Helper()
	root := h.tools()
	start := func(cmd *exec.Cmd) error { return startIn(root, cmd) }
	return h.execute(start, "/usr/bin/env", append([]string{name}, args...)...) // env looks for it there
}

// tool is run for one of the newer tools.
func (h *host) tool(name string, args ...string) string {
	h.t.Helper()
	r := h.tryTool(name, args...)
	if r.code != 0 {
		h.t.Fatal(r)
	}
	return r.stdout
}

// kernelHas reports whether the running kernel is at least of that version,
// for what only the version tells.
func kernelHas(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		t.Fatalf("release %q: %v", release, err)
	}
	return a > major || a == major && b >= minor
}

var thoroughFlag = flag.Bool("thorough", false, "do everything in every way on this kernel, which takes a while")

// thoroughly is how much or how often to do something that costs a while: all when
// the test is to be thorough, otherwise few.
func thoroughly[T any](all, few T) T {
	if *thoroughFlag {
		return all
	}
	return few
}

// ways are those in which this kernel does something that costs a while: all when
// the test is to be thorough, otherwise one, and the next one on the other kernel
// of make test. The turn tells apart what does so.
func ways[T any](t *testing.T, turn int, all []T) []T {
	t.Helper()
	if *thoroughFlag {
		return all
	}
	if kernelHas(t, 7, 0) {
		turn++
	}
	i := turn % len(all)
	return all[i : i+1]
}

// loop makes an ordinary block device of a sparse file.
func (h *host) loop(name, size string) (node string) {
	h.t.Helper()
	h.run("modprobe", "loop") // no loop device, nobody who would load it
	h.run("truncate", "-s", size, name)
	node = strings.TrimSpace(h.run("losetup", "--find", "--show", name))
	h.t.Cleanup(func() {
		if r := h.try("losetup", "--detach", node); r.code != 0 {
			h.t.Error(r)
		}
		// The kernel may do it a little later.
		h.wait(node+" to go", func() bool {
			_, err := os.Stat("/sys/block/" + strings.TrimPrefix(node, "/dev/") + "/loop/backing_file")
			return err != nil
		})
	})
	return node
}
