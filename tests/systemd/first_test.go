//go:build kernel

package systemd

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// Shapes that f2fs and btrfs accept.
const (
	f2fsShape  = "size=320M,zone.size=4M,zone.conventional_zones=16"
	btrfsShape = "size=512M,zone.size=16M"
)

// maxExposure is what systemd-analyze security may find at most, of 10: more is a
// protection lost.
const maxExposure = 4.0

// The first boot: the package is installed, and three devices are put into
// service: a with an f2fs of /etc/fstab, b with a btrfs of a mount unit, c whose
// file system is mounted by hand. All of them are in use when the machine shuts
// down.
func TestFirstBoot(t *testing.T) {
	deb := os.Getenv("QZBD_DEB")
	if deb == "" {
		t.Fatal("QZBD_DEB names no package")
	}
	run(t, "mkfs.ext4", "-q", "/dev/vda")
	add(t, "/etc/fstab", "/dev/vda /srv ext4 defaults 0 0")
	run(t, "systemctl", "daemon-reload")
	run(t, "mount", "/srv")
	// What the end of this boot says is read in the next one.
	run(t, "mkdir", "-p", "/var/log/journal")
	run(t, "systemctl", "restart", "systemd-journald")
	run(t, "journalctl", "--flush")

	steps := []struct {
		name string
		run  func(*testing.T)
	}{
		{"the package is installed", func(t *testing.T) {
			run(t, "dpkg", "--install", deb)
			if !exists("/dev/ublk-control") {
				t.Error("the driver is not loaded")
			}
		}},
		{"systemd finds nothing wrong with the unit", func(t *testing.T) {
			configure(t, "a", f2fsShape)
			if out := run(t, "systemd-analyze", "verify", "--man=no", service("a")); strings.Contains(out, "qzbd") {
				t.Error(out)
			}
			if out, err := try("udevadm", "verify", "--no-style", "/usr/lib/udev/rules.d/90-qzbd.rules"); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		}},
		{"a bad configuration shows in the status", func(t *testing.T) {
			write(t, "/etc/qzbd/bad.conf", "image = /srv/a.qcow2\ndepth = many\nqueue = 1\n")
			fails(t, "", "systemctl", "start", service("bad"))
			out, _ := try("systemctl", "--no-pager", "--full", "status", service("bad"))
			for _, want := range []string{"bad.conf:2: depth = many: this is no whole number", "bad.conf:3: queue = 1: there is no such key"} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			if n := property(t, service("bad"), "NRestarts"); n != "0" {
				t.Errorf("started again %s times", n)
			}
			run(t, "rm", "/etc/qzbd/bad.conf")
			run(t, "systemctl", "reset-failed", service("bad"))
		}},
		{"a service is ready when its link is there", func(t *testing.T) {
			run(t, "systemctl", "enable", "--now", service("a"))
			if !exists("/dev/qzbd/a") {
				t.Fatal("no /dev/qzbd/a")
			}
			d := devices(t)["a"]
			if link := run(t, "readlink", "-f", "/dev/qzbd/a"); strings.TrimSpace(link) != d.Device || d.State != "live" {
				t.Errorf("%s, want %+v", link, d)
			}
			if status := property(t, service("a"), "StatusText"); !strings.Contains(status, "serving /srv/a.qcow2 as "+d.Device) {
				t.Errorf("status %q", status)
			}
			if s := run(t, "cat", "/sys/block/"+strings.TrimPrefix(d.Device, "/dev/")+"/queue/scheduler"); !strings.Contains(s, "[none]") {
				t.Errorf("scheduler %s", s)
			}
			if active("dev-qzbd-a.device") == false {
				t.Error("systemd has no device unit for the link")
			}
		}},
		{"it is well protected", func(t *testing.T) {
			out := run(t, "systemd-analyze", "--no-pager", "security", service("a"))
			_, line, ok := strings.Cut(out, "Overall exposure level for "+service("a")+": ")
			words := strings.Fields(line)
			if !ok || len(words) == 0 {
				t.Fatal(out)
			}
			if level, err := strconv.ParseFloat(words[0], 64); err != nil || level > maxExposure {
				t.Errorf("exposure %s, want at most %v\n%s", words[0], maxExposure, out)
			}
			t.Logf("exposure level %s", line)
		}},
		{"file systems are made and mounted by the links", func(t *testing.T) {
			run(t, "mkfs.f2fs", "-f", "-m", "/dev/qzbd/a")
			add(t, "/etc/fstab", "/dev/qzbd/a /data/a f2fs nofail 0 0")

			configure(t, "b", btrfsShape)
			run(t, "systemctl", "enable", "--now", service("b"))
			run(t, "mkfs.btrfs", "-q", "-f", "-d", "single", "-m", "single", "/dev/qzbd/b")
			write(t, "/etc/systemd/system/data-b.mount", `[Mount]
What=/dev/qzbd/b
Where=/data/b
Type=btrfs
[Install]
WantedBy=multi-user.target
`)
			configure(t, "c", f2fsShape)
			run(t, "systemctl", "start", service("c"))
			run(t, "mkfs.f2fs", "-f", "-m", "/dev/qzbd/c")
			run(t, "mkdir", "-p", "/data/a", "/data/c")
			run(t, "systemctl", "daemon-reload")
			run(t, "systemctl", "enable", "data-b.mount")
			run(t, "systemctl", "start", "data-a.mount", "data-b.mount")
			run(t, "mount", "/dev/qzbd/c", "/data/c")
			for _, name := range []string{"a", "b", "c"} {
				run(t, "dd", "if=/dev/urandom", "of=/data/"+name+"/file", "bs=1M", "count=8")
			}
			out := run(t, "sha256sum", "/data/a/file", "/data/b/file", "/data/c/file")
			write(t, "/srv/sums", out)
		}},
	}
	for _, s := range steps {
		if !t.Run(s.name, s.run) {
			t.Fatal("the rest needs this")
		}
	}
}
