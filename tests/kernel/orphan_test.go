//go:build kernel

package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// number is the N of /dev/ublkbN.
func (d *device) number() int {
	n, err := strconv.Atoi(strings.TrimPrefix(d.node, "/dev/ublkb"))
	if err != nil {
		d.im.h.t.Fatal(err)
	}
	return n
}

func (d *device) record() string { return filepath.Join("/run/qzbd", fmt.Sprint(d.number())) }

// forget deletes the record of the device.
func (d *device) forget() {
	d.im.h.t.Helper()
	if err := os.RemoveAll(d.record()); err != nil {
		d.im.h.t.Fatal(err)
	}
	if s := d.state(); s != "orphan" {
		d.im.h.t.Errorf("list says %q of a device without a record", s)
	}
}

// removed checks that nothing is left.
func (d *device) removed() {
	h := d.im.h
	h.t.Helper()
	for _, name := range []string{d.node, fmt.Sprintf("/dev/ublkc%d", d.number()), d.record()} {
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			h.t.Errorf("%s is still there: %v", name, err)
		}
	}
	d.gone = true
}

func TestAnOrphanThatIsServedIsStoppedInOrder(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	d := im.attach()
	k := d.open()
	k.write(1, 0, 69632)
	d.forget()
	says(t, h.refused(qzbd, "recover", d.node), "has a server", "detach")
	says(t, h.refused(qzbd, "detach", d.node), "in use")
	k.close()
	if r := h.try(qzbd, "detach", d.node); r.code != 0 || r.stderr != "" {
		t.Error(r)
	}
	d.removed()
	im.check() // closed in order: not dirty
	im.attach().open().holds(1, 0, 69632)
}

func TestAnOrphanWithoutAServerIsRemoved(t *testing.T) {
	for _, way := range []struct {
		name  string
		flags []string
		by    func(d *device) []string
	}{
		{"waiting", nil, func(d *device) []string { return []string{d.node} }},
		{"gone with its server", []string{"--no-recovery"}, func(d *device) []string { return []string{fmt.Sprintf("/dev/ublkc%d", d.number())} }},
		{"all", nil, func(*device) []string { return []string{"--all"} }},
		{"record damaged", nil, func(d *device) []string { return []string{d.node} }},
	} {
		t.Run(way.name, func(t *testing.T) {
			h := begin(t)
			im := h.create("a.qcow2", small)
			d := im.attach(way.flags...)
			k := d.open()
			k.write(1, 0, 65536)
			k.sync()
			k.close()
			if way.flags == nil {
				d.killed()
			} else {
				d.kill()
			}
			if way.name == "record damaged" {
				if err := os.WriteFile(filepath.Join(d.record(), "state.json"), []byte("{"), 0o600); err != nil {
					t.Fatal(err)
				}
				if s := d.state(); s != "orphan" {
					t.Errorf("list says %q", s)
				}
			} else {
				d.forget()
			}
			r := h.try(qzbd, "recover", "--all")
			if r.code != 0 || r.stdout != "" {
				t.Error(r)
			}
			says(t, r.stderr, d.node, "no record", "qzbd detach")
			r = h.try(qzbd, append([]string{"detach"}, way.by(d)...)...)
			if r.code != 0 {
				t.Error(r)
			}
			says(t, r.stderr, d.node, "not flushed is lost")
			d.removed()
			d = im.attach() // mends
			d.open().holds(1, 0, 65536)
		})
	}
}

// What lies in /run/qzbd and is nobody's stands in nobody's way.
func TestForeignThingsAmongTheRecordsAreNoObstacle(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	d := im.attach()
	things := []string{"77", "78", "notes", "79"}
	for _, name := range things {
		path := filepath.Join("/run/qzbd", name)
		t.Cleanup(func() { os.RemoveAll(path) })
		var err error
		switch name {
		case "notes":
			err = os.WriteFile(path, nil, 0o600)
		case "78": // an empty directory
			err = os.Mkdir(path, 0o700)
		case "79": // a record of another number
			if err = os.Mkdir(path, 0o700); err == nil {
				err = os.WriteFile(filepath.Join(path, "state.json"), []byte(`{"id":3,"device":"/dev/ublkb3"}`), 0o600)
			}
		default: // a file where a directory should be
			err = os.WriteFile(path, []byte("?"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if l := h.list(); len(l) != 1 || l[0].State != "live" {
		t.Errorf("list says %+v", l)
	}
	d.killed()
	if out := h.run(qzbd, "recover", "--all"); out != d.node+"\n" {
		t.Errorf("recover --all said %q", out)
	}
	other := h.create("b.qcow2", small).attach("--id", "79")
	other.detach()
	h.run(qzbd, "detach", "--all")
	d.removed()
}

// With --force a device goes although it is mounted: live, waiting, orphaned.
func TestDetachByForceTakesADeviceFromItsUsers(t *testing.T) {
	for _, state := range []string{"live", "waiting", "orphan"} {
		t.Run(state, func(t *testing.T) {
			h := begin(t)
			im := h.create("a.qcow2", "size=768M,zone.size=8M,zone.conventional_zones=16")
			d := im.attach()
			h.run("mkfs.f2fs", "-f", "-m", d.node)
			dir, unmount := h.mount("f2fs", d.node)
			file := filepath.Join(dir, "file")
			h.run("dd", "if=/dev/urandom", "of="+file, "bs=64k", "count=16", "conv=fsync")
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if state != "live" {
				d.killed()
			}
			if state == "orphan" {
				d.forget()
			}
			says(t, h.refused(qzbd, "detach", d.node), "in use", dir, "--force")
			r := h.try(qzbd, "detach", "--force", d.node)
			if r.code != 0 {
				t.Error(r)
			}
			says(t, r.stderr, d.node, dir, "I/O errors")
			f, err := os.OpenFile(filepath.Join(dir, "new"), os.O_CREATE|os.O_WRONLY, 0o600)
			if err == nil {
				if _, err = f.Write(pattern(1, 0, 65536)); err == nil {
					err = f.Sync()
				}
				f.Close()
			}
			if err == nil {
				t.Error("the file system works without its device")
			}
			unmount()
			h.wait("the rest goes with its last user", func() bool {
				_, err := os.Stat(fmt.Sprintf("/dev/ublkc%d", d.number()))
				return errors.Is(err, os.ErrNotExist)
			})
			d.removed()
			if state == "orphan" { // the image is mended, what was flushed is there
				im.attach().detach()
			}
			im.check()
			d = im.attach()
			dir, unmount = h.mount("f2fs", d.node)
			if have, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(have) != string(want) {
				t.Errorf("what was synced is not there: %v", err)
			}
			unmount()
			d.detach()
		})
	}
}
