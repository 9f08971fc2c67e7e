//go:build kernel

package systemd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// run runs a program that has to succeed and returns what it prints.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// try runs a program and returns what it prints.
func try(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

// fails runs a program that has to fail and to say why.
func fails(t *testing.T, want, name string, args ...string) {
	t.Helper()
	if out, err := try(name, args...); err == nil || !strings.Contains(out, want) {
		t.Errorf("%s %s: %v\n%s\nwant a failure, and %q", name, strings.Join(args, " "), err, out, want)
	}
}

// patience is how long anything may take on a busy emulated machine.
const patience = 3 * time.Minute

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			out, _ := try("systemctl", "list-jobs")
			log, _ := try("journalctl", "-b", "-n", "60", "--no-pager")
			t.Fatalf("not within %v: %s\n%s\n%s", patience, what, out, log)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// add appends a line to a file.
func add(t *testing.T, path, line string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	write(t, path, string(b)+line+"\n")
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// property asks systemd about a unit.
func property(t *testing.T, unit, name string) string {
	t.Helper()
	return strings.TrimSpace(run(t, "systemctl", "show", "--value", "--property", name, unit))
}

func active(unit string) bool {
	_, err := try("systemctl", "--quiet", "is-active", unit)
	return err == nil
}

// mountOf identifies the mount on dir: one that was unmounted and mounted again
// is another one.
func mountOf(t *testing.T, dir string) string {
	t.Helper()
	id := strings.TrimSpace(run(t, "findmnt", "--noheadings", "--output", "ID,SOURCE", dir))
	if id == "" {
		t.Fatalf("nothing is mounted on %s", dir)
	}
	return id
}

// load is fio that writes to a directory, reads everything back and compares.
type load struct {
	cmd  *exec.Cmd
	out  bytes.Buffer
	file string
}

// startLoad returns when there is something to see of it.
func startLoad(t *testing.T, dir string) *load {
	t.Helper()
	l := &load{file: filepath.Join(dir, "load")}
	l.cmd = exec.Command("fio", "--name=load", "--filename="+l.file, "--rw=randwrite", "--bs=16k", "--size=12M",
		"--direct=1", "--fsync=32", "--ioengine=psync", "--rate_iops=60", "--verify=crc32c", "--verify_fatal=1", "--loops=1")
	l.cmd.Stdout, l.cmd.Stderr = &l.out, &l.out
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "fio writes to "+dir, func() bool {
		fi, err := os.Stat(l.file)
		return err == nil && fi.Size() > 0
	})
	return l
}

// finish waits for its end and wants no error.
func (l *load) finish(t *testing.T) {
	t.Helper()
	if err := l.cmd.Wait(); err != nil {
		t.Errorf("fio: %v\n%s", err, l.out.Bytes())
	}
	if err := os.Remove(l.file); err != nil {
		t.Error(err)
	}
}

// clean wants an image that was closed in order and has no damage.
func clean(t *testing.T, image string) {
	t.Helper()
	out := run(t, "qzbd", "check", "--json", image)
	var report struct {
		Dirty bool `json:"dirty-flag"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		t.Fatal(err)
	}
	if report.Dirty {
		t.Errorf("%s was not closed in order:\n%s", image, out)
	}
}

// device is what qzbd list says of an image.
type device struct {
	Device, Image, State, Name string
	PID                        int
}

func devices(t *testing.T) map[string]device {
	t.Helper()
	var list []device
	if err := json.Unmarshal([]byte(run(t, "qzbd", "list", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	byName := map[string]device{}
	for _, d := range list {
		byName[d.Name] = d
	}
	return byName
}

// service is the unit of a device.
func service(name string) string { return "qzbd@" + name + ".service" }

// imageOf is where its image is.
func imageOf(name string) string { return "/srv/" + name + ".qcow2" }

// configure makes an image for a device and its configuration.
func configure(t *testing.T, name, shape string) {
	t.Helper()
	run(t, "qzbd", "create", "-o", shape, imageOf(name))
	write(t, fmt.Sprintf("/etc/qzbd/%s.conf", name), fmt.Sprintf("# of the test\nimage = %s\n", imageOf(name)))
	run(t, "qzbd", "config-check", fmt.Sprintf("/etc/qzbd/%s.conf", name))
}
