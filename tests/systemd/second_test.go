//go:build kernel

package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// The second boot: everything is there again, and survives what happens to
// servers; then it is put out of service, and nothing remains.
func TestSecondBoot(t *testing.T) {
	for _, s := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"file systems are mounted at boot", mountedAtBoot},
		{"the last boot ended in order", endedInOrder},
		{"a killed server goes unnoticed", killed},
		{"a stopped one is found by the watchdog", stuck},
		{"a reload upgrades under load", reloaded},
		{"so does another version of the package", reinstalled},
		{"a service with users leaves them waiting", stoppedInUse},
		{"an unused one stops in order", stopped},
		{"the package stays while a device is in use", removedInUse},
		{"and leaves nothing behind", purged},
	} {
		if !t.Run(s.name, s.run) {
			out, _ := try("journalctl", "-b", "--no-pager", "-n", "80")
			t.Fatalf("the rest needs this\n%s", out)
		}
	}
}

func mountedAtBoot(t *testing.T) {
	await(t, "the file systems are mounted", func() bool { return active("data-a.mount") && active("data-b.mount") })
	if !active(service("a")) || !active(service("b")) {
		t.Error("a service is not active")
	}
	if active(service("c")) {
		t.Error("c was not enabled")
	}
	run(t, "sh", "-c", "grep -v data/c /srv/sums | sha256sum --check")
}

func endedInOrder(t *testing.T) {
	clean(t, imageOf("c")) // which was mounted by hand
	if log := run(t, "journalctl", "--boot=-1", "--no-pager", "--output=cat", "--unit=srv.mount", "--unit=data-*.mount"); strings.Contains(log, "Failed") {
		t.Errorf("unmounting:\n%s", log)
	}
	for _, name := range []string{"a", "b", "c"} {
		if log := logOf(t, name, "--boot=-1"); !strings.Contains(log, "stopped") {
			t.Errorf("the service of %s ended with\n%s", name, log)
		}
		for _, boot := range []string{"--boot=-1", "--boot=0"} {
			if log := logOf(t, name, boot, "--priority=warning"); log != "" {
				t.Errorf("the service of %s warns, %s:\n%s", name, boot, log)
			}
		}
	}
}

// logOf is what the journal has of a service.
func logOf(t *testing.T, name string, args ...string) string {
	t.Helper()
	return run(t, "journalctl", append([]string{"--quiet", "--no-pager", "--output=cat", "--unit=" + service(name)}, args...)...)
}

// undisturbed does something to a service while its file system is in use, which
// must not notice. It returns the main process before and after.
func undisturbed(t *testing.T, name string, do func(pid int)) (before, after string) {
	t.Helper()
	dir := "/data/" + name
	mount := mountOf(t, dir)
	before = property(t, service(name), "MainPID")
	pid, err := strconv.Atoi(before)
	if err != nil || pid == 0 {
		t.Fatalf("main process %q", before)
	}
	l := startLoad(t, dir)
	do(pid)
	l.finish(t)
	if now := mountOf(t, dir); now != mount {
		t.Errorf("%s is mounted as %s, it was %s", dir, now, mount)
	}
	return before, property(t, service(name), "MainPID")
}

func awaitRestart(t *testing.T, name string, before string) {
	t.Helper()
	await(t, "a new server of "+name, func() bool {
		return property(t, service(name), "NRestarts") != before && property(t, service(name), "ActiveState") == "active"
	})
}

func killed(t *testing.T) {
	n := property(t, service("a"), "NRestarts")
	before, after := undisturbed(t, "a", func(pid int) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		awaitRestart(t, "a", n)
	})
	if before == after || devices(t)["a"].State != "live" {
		t.Errorf("main process %s, then %s; %+v", before, after, devices(t)["a"])
	}
}

func stuck(t *testing.T) {
	n := property(t, service("b"), "NRestarts")
	undisturbed(t, "b", func(pid int) {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		awaitRestart(t, "b", n)
	})
	if log := logOf(t, "b", "--boot"); !strings.Contains(log, "Watchdog timeout") {
		t.Errorf("no word of the watchdog:\n%s", log)
	}
}

func reloaded(t *testing.T) {
	before, after := undisturbed(t, "a", func(int) { run(t, "systemctl", "reload", service("a")) })
	if before != after {
		t.Errorf("main process %s, then %s", before, after)
	}
	if log := logOf(t, "a", "--boot"); !strings.Contains(log, "upgraded") {
		t.Errorf("no word of an upgrade:\n%s", log)
	}
}

func reinstalled(t *testing.T) {
	old := strings.TrimSpace(strings.TrimPrefix(run(t, "qzbd", "--version"), "qzbd "))
	before, after := undisturbed(t, "b", func(int) {
		out := run(t, "dpkg", "--install", os.Getenv("QZBD_NEWER_DEB"))
		if now := strings.TrimSpace(run(t, "dpkg-query", "--show", "--showformat=${Version}", "qzbd")); strings.Count(out, old+" → "+now+", paused for") != 2 {
			t.Errorf("two devices should have been upgraded from %s to %s:\n%s", old, now, out)
		}
	})
	if before != after {
		t.Errorf("main process %s, then %s", before, after)
	}
}

func stoppedInUse(t *testing.T) {
	mount := mountOf(t, "/data/b")
	run(t, "systemctl", "stop", service("b"))
	if d := devices(t)["b"]; d.State != "waiting" {
		t.Errorf("%+v, want it to wait", d)
	}
	waits := exec.Command("dd", "if=/dev/zero", "of=/data/b/late", "bs=64k", "count=1", "conv=fsync")
	if err := waits.Start(); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "start", service("b"))
	if err := waits.Wait(); err != nil {
		t.Errorf("what waited: %v", err)
	}
	if now := mountOf(t, "/data/b"); now != mount {
		t.Errorf("/data/b is mounted as %s, it was %s", now, mount)
	}
}

func stopped(t *testing.T) {
	run(t, "umount", "/data/a")
	run(t, "systemctl", "disable", "--now", service("a"))
	await(t, "the link is gone", func() bool { return !exists("/dev/qzbd/a") })
	clean(t, imageOf("a"))
	run(t, "systemctl", "start", service("a"))
	run(t, "fsck.f2fs", "/dev/qzbd/a")
}

func removedInUse(t *testing.T) {
	fails(t, "mounted on /data/b", "dpkg", "--remove", "qzbd")
	if devices(t)["b"].State != "live" {
		t.Errorf("%+v", devices(t)["b"])
	}
	run(t, "umount", "/data/b")
}

func purged(t *testing.T) {
	files := strings.Split(strings.TrimSpace(run(t, "dpkg", "--listfiles", "qzbd")), "\n")
	run(t, "dpkg", "--purge", "qzbd")
	for _, f := range files {
		if fi, err := os.Lstat(f); err == nil && (!fi.IsDir() || strings.Contains(f, "qzbd")) {
			t.Errorf("%s is still there", f)
		}
	}
	for _, pattern := range []string{"/dev/ublkb*", "/dev/ublkc*", "/dev/qzbd", "/run/qzbd", "/etc/qzbd", "/etc/systemd/system/*.wants/qzbd@*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	if out, err := try("pgrep", "-a", "qzbd$"); err == nil {
		t.Errorf("still running: %s", out)
	}
}
