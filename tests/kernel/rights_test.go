//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const nobody = 65534

// as runs a command as a user who is not root.
func (h *host) as(uid int, args ...string) result {
	h.t.Helper()
	id := fmt.Sprint(uid)
	return h.try("setpriv", append([]string{"--reuid", id, "--regid", id, "--clear-groups"}, args...)...)
}

// public copies the program to where everybody can run it, and has images made
// there.
func (h *host) public() (program string) {
	h.t.Helper()
	dir, err := os.MkdirTemp("", "public")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		h.t.Fatal(err)
	}
	program = filepath.Join(dir, "qzbd")
	h.run("cp", qzbd, program)
	h.dir = dir
	return program
}

// The table in the README, Operating qzbd, Who may do what: whatever the umask.
func TestFilesAndNodesHaveTheLeastRights(t *testing.T) {
	h := begin(t)
	program := h.public()
	im := h.create("a.qcow2", small)
	for _, umask := range []int{0, 0o077} {
		old := syscall.Umask(umask)
		d := im.attach()
		syscall.Umask(old)
		for name, want := range map[string]os.FileMode{
			"/run/qzbd":                os.ModeDir | 0o755,
			d.record():                 os.ModeDir | 0o755,
			d.record() + "/journal":    0o600,
			d.record() + "/log":        0o600,
			d.record() + "/control":    os.ModeSocket | 0o600,
			d.record() + "/spare":      0o600,
			d.record() + "/state.json": 0o644,
		} {
			st, err := os.Lstat(name)
			if err != nil {
				t.Error(err)
			} else if st.Mode() != want || st.Sys().(*syscall.Stat_t).Uid != 0 {
				t.Errorf("umask %03o: %s has mode %v, want %v", umask, name, st.Mode(), want)
			}
		}
		for _, node := range []string{d.node, fmt.Sprintf("/dev/ublkc%d", d.number())} {
			if st, err := os.Stat(node); err != nil || st.Mode().Perm()&0o007 != 0 {
				t.Errorf("%s has mode %v, %v", node, st.Mode(), err)
			}
		}
		left, err := os.ReadDir(d.record())
		if err != nil || len(left) != 5 {
			t.Errorf("the directory of the device has %v, %v", left, err)
		}

		// Who is not root sees what is recorded, and changes nothing.
		r := h.as(nobody, program, "list")
		if r.code != 0 || !strings.Contains(r.stdout, im.path) || !strings.Contains(r.stdout, "live") {
			t.Error(r)
		}
		if r := h.as(nobody, program, "detach", d.node); r.code != 1 {
			t.Error(r)
		}
		d.killed()
		if r := h.as(nobody, program, "list", "--json"); r.code != 0 || !strings.Contains(r.stdout, "waiting") {
			t.Error(r)
		}
		if err := os.Chown(im.path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"check", "-r", "all", im.path}, {"create", im.path, "64M"}, {"recover", d.node}, {"detach", d.node}} {
			if r := h.as(nobody, append([]string{program}, args...)...); r.code != 1 {
				t.Error(r)
			}
		}
		d.recovered()
		d.detach()
	}
	s := h.addStranger(43, 0)
	r := h.as(nobody, program, "list")
	if r.code != 0 || !strings.Contains(r.stdout, "unknown") {
		t.Error(r)
	}
	says(t, r.stderr, "run as root")
	says(t, h.as(nobody, program, "detach", s.node()).stderr, "run as root")
}

// Links that somebody has planted are not followed, wherever they are.
func TestNothingFollowsASymlinkInRun(t *testing.T) {
	h := begin(t)
	victim := filepath.Join(h.dir, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	trap := filepath.Join(h.dir, "trap")
	if err := os.Mkdir(trap, 0o755); err != nil {
		t.Fatal(err)
	}
	plant := func(target, path string) {
		t.Helper()
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
		if err := os.Lchown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(path) })
	}
	intact := func(when string) {
		t.Helper()
		if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
			t.Errorf("%s: the victim holds %q, %v", when, b, err)
		}
		if in, err := os.ReadDir(trap); err != nil || len(in) != 0 {
			t.Errorf("%s: in the trap are %v, %v", when, in, err)
		}
	}
	im := h.create("a.qcow2", small)
	im.attach().detach() // there is a /run/qzbd

	// Where the directory of the device is to be.
	plant(trap, "/run/qzbd/44")
	d := im.attach("--id", "44")
	intact("attach over a link")
	d.detach()

	// In it, beforehand.
	if err := os.Mkdir("/run/qzbd/44", 0o755); err != nil {
		t.Fatal(err)
	}
	names := []string{"state.json", "state.json.new", "journal", "log", "control", "control.new"}
	for _, name := range names {
		plant(victim, "/run/qzbd/44/"+name)
	}
	if l := h.list(); len(l) != 0 {
		t.Errorf("list says %+v", l)
	}
	d = im.attach("--id", "44")
	intact("attach over links")

	// In it, while the server is dead.
	d.killed()
	for _, name := range names {
		if name != "journal" && name != "state.json" {
			plant(victim, "/run/qzbd/44/"+name)
		}
	}
	r := h.try(qzbd, "recover", d.node)
	if r.code != 0 || d.state() != "live" {
		t.Error(r)
	}
	says(t, r.stderr, "log", "symlink")
	intact("recover over links")
	d.killed()
	plant(victim, "/run/qzbd/44/journal")
	if r := h.try(qzbd, "recover", d.node); r.code != 1 {
		t.Error(r)
	} else {
		says(t, r.stderr, "symlink")
	}
	h.run(qzbd, "detach", d.node)
	d.removed()
	intact("detach with a link for a journal")

	// The directory of all.
	if err := os.Rename("/run/qzbd", "/run/qzbd.moved"); err != nil {
		t.Fatal(err)
	}
	plant(trap, "/run/qzbd")
	says(t, h.refused(qzbd, "attach", im.path), "/run/qzbd", "remove it")
	says(t, h.refused(qzbd, "list"), "/run/qzbd", "remove it")
	intact("attach with a link for a directory")
	if err := os.Remove("/run/qzbd"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename("/run/qzbd.moved", "/run/qzbd"); err != nil {
		t.Fatal(err)
	}
	im.attach().detach() // clears the dirty bit
}

// After attach the server has no need of the image's name any more: what it has
// open is all that it uses.
func TestTheImageIsHeldOpen(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	d := im.attach("--queues", queues())
	away := im.path + ".away"
	if err := os.Rename(im.path, away); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(im.path, []byte("another file"), 0o600); err != nil {
		t.Fatal(err)
	}
	k := d.open()
	k.write(1, 0, 65536)
	k.sync()
	k.must(blkResetZone, k.zone(0))
	k.write(2, 0, 65536)
	k.close()
	d.detach()
	if b, err := os.ReadFile(im.path); err != nil || string(b) != "another file" {
		t.Errorf("the file that took the name holds %q, %v", b, err)
	}
	if err := os.Rename(away, im.path); err != nil {
		t.Fatal(err)
	}
	im.attach().open().holds(2, 0, 65536)
}
