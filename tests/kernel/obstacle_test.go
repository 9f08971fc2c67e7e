//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// refusedTo is refused for a user who is not root.
func (h *host) refusedTo(uid int, args ...string) string {
	h.t.Helper()
	id := strconv.Itoa(uid)
	return h.refused("setpriv", append([]string{"--reuid", id, "--regid", id, "--clear-groups"}, args...)...)
}

func TestWhoIsNotRootIsToldSo(t *testing.T) {
	h := begin(t)
	// Below directories that nobody else may enter the test has no room.
	dir, err := os.MkdirTemp("", "public")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "qzbd")
	h.run("cp", qzbd, program)
	h.dir = dir
	im := h.create("a.qcow2", mixed)
	says(t, h.refusedTo(nobody, program, "features"), "run as root (sudo)")
	says(t, h.refusedTo(nobody, program, "attach", im.path), im.path, "permission denied", "run as root (sudo)")
	if err := os.Chown(im.path, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	im.untouched()
	says(t, h.refusedTo(nobody, program, "attach", im.path), "run as root (sudo)")
	if err := os.Chmod(im.path, 0); err != nil {
		t.Fatal(err)
	}
	says(t, h.refusedTo(nobody, program, "info", im.path), im.path, "permission denied", "chmod")
}

func TestIOURingThatIsSwitchedOffIsNamedWithItsSwitch(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", mixed)
	im.untouched()
	const sysctl = "/proc/sys/kernel/io_uring_disabled"
	before, err := os.ReadFile(sysctl)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(sysctl, before, 0); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(sysctl, []byte("2"), 0); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"attach", im.path}, {"attach", "--foreground", im.path}, {"features"}} {
		says(t, h.refused(qzbd, args...), "kernel.io_uring_disabled is 2", "sysctl kernel.io_uring_disabled=0")
	}
}

func TestWhatIsNoImageFileIsNamedForWhatItIs(t *testing.T) {
	h := begin(t)
	fifo, blank := filepath.Join(h.dir, "fifo"), filepath.Join(h.dir, "blank")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(blank, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(h.dir, "missing")
	for _, command := range []string{"attach", "info", "check", "zones"} {
		says(t, h.refused(qzbd, command, missing), missing, "no such file", "qzbd create")
		says(t, h.refused(qzbd, command, h.dir), h.dir, "is a directory")
		says(t, h.refused(qzbd, command, fifo), fifo, "is a FIFO")
		says(t, h.refused(qzbd, command, blank), blank, "is empty", "qzbd create")
	}
	plain := filepath.Join(h.dir, "plain.qcow2")
	h.run("qemu-img", "create", "-q", "-f", "qcow2", plain, "64M")
	says(t, h.refused(qzbd, "attach", plain), plain, "not a zoned image")
	says(t, h.refused(qzbd, "attach", "/etc/passwd"), "not a qcow2 image", "0x")
}

func TestAnImageThatQEMUHasOpenIsRefusedByName(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", mixed)
	pidFile := filepath.Join(h.dir, "pid")
	hold := func(args ...string) (pid int, release func()) {
		t.Helper()
		h.run("qemu-nbd", append([]string{"--fork", "--persistent", "--pid-file", pidFile, "-f", "raw", "-k", filepath.Join(h.dir, "socket"), im.path}, args...)...)
		b, err := os.ReadFile(pidFile)
		if err != nil {
			t.Fatal(err)
		}
		if pid, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
			t.Fatal(err)
		}
		return pid, func() {
			if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			h.wait("qemu-nbd ends", func() bool { return !alive(pid) || zombie(pid) })
		}
	}
	pid, release := hold()
	for _, args := range [][]string{{"attach", im.path}, {"attach", "--read-only", im.path}, {"check", im.path}, {"create", "-o", "zone.size=8M", im.path, "64M"}} {
		says(t, h.refused(qzbd, args...), im.path, "in use", fmt.Sprintf("process %d (qemu-nbd)", pid))
	}
	release()
	_, release = hold("--read-only")
	says(t, h.refused(qzbd, "attach", im.path), im.path, "in use")
	d := im.attach("--read-only") // readers get along
	k := d.openReadOnly()
	k.zeros(2*zlen, 4096)
	k.close()
	d.detach()
	release()

	// And the other way round.
	d = im.attach()
	for _, name := range []string{"qemu-nbd", "qemu-io"} {
		out, err := exec.Command(name, "-f", "raw", im.path).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "lock") {
			t.Errorf("%s on an attached image: %v: %s", name, err, out)
		}
	}
	d.detach()
}

// zombie reports whether a process has ended and nobody has taken notice.
func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(b), ") Z ")
}
