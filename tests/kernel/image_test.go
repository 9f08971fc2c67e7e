//go:build kernel

package kernel

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// image is an image file made for a test. Whatever happens to it, qzbd check
// must find it clean in the end.
type image struct {
	h    *host
	path string
}

// founding is the example with which the format was introduced.
const founding = "size=768M,zone.size=64M,zone.capacity=64M,zone.max_open_zones=6,zone.max_active_zones=8,zone.max_append_bytes=4096"

// create makes an image with the given options.
func (h *host) create(name, options string) *image {
	h.t.Helper()
	im := &image{h, filepath.Join(h.dir, name)}
	h.run(qzbd, "create", "-o", options, im.path)
	h.t.Cleanup(im.check)
	return im
}

// copy makes another image out of the file as it is now.
func (im *image) copy(name string) *image {
	im.h.t.Helper()
	c := &image{im.h, filepath.Join(im.h.dir, name)}
	im.h.run("cp", "--sparse=always", im.path, c.path)
	im.h.t.Cleanup(c.check)
	return c
}

func (im *image) check() {
	im.h.t.Helper()
	if r := im.h.try(qzbd, "check", im.path); r.code != 0 {
		im.h.t.Error(r)
	}
}

// device is an attached image.
type device struct {
	im   *image
	node string
	gone bool
}

var noZeroCopyFlag = flag.Bool("no-zero-copy", false, "attach every image with --no-zero-copy")

// attachArgs are those of qzbd that attach the image.
func attachArgs(im *image, flags []string) []string {
	args := []string{"attach", im.path}
	if *noZeroCopyFlag {
		args = append(args, "--no-zero-copy")
	}
	return append(args, flags...)
}

// attach serves the image, until the end of the test at the latest.
func (im *image) attach(flags ...string) *device {
	h := im.h
	h.t.Helper()
	out := h.run(qzbd, attachArgs(im, flags)...)
	node := strings.TrimSuffix(out, "\n")
	if st, err := os.Stat(node); err != nil || st.Mode().Type() != os.ModeDevice {
		h.t.Fatalf("qzbd attach printed %q, which is no block device: %v", out, err)
	}
	d := &device{im: im, node: node}
	h.t.Cleanup(d.cleanup)
	return d
}

// detach stops serving. When it returns, the node is gone.
func (d *device) detach() {
	d.im.h.t.Helper()
	d.detachBy(d.node)
}

// detachBy is detach by one of the names that qzbd takes.
func (d *device) detachBy(name string) {
	h := d.im.h
	h.t.Helper()
	d.log()
	h.run(qzbd, "detach", name)
	_, err := os.Lstat(d.node)
	if d.gone = errors.Is(err, os.ErrNotExist); !d.gone {
		h.t.Errorf("after qzbd detach %s, %s: %v", name, d.node, err)
	}
}

// cleanup detaches what the test has not, by force if need be.
func (d *device) cleanup() {
	h := d.im.h
	if d.gone {
		return
	}
	d.log()
	r := h.try(qzbd, "detach", d.node)
	if r.code == 0 {
		return
	}
	h.t.Errorf("clean up: %v", r)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		pid := d.server()
		if pid == 0 {
			return
		}
		h.t.Logf("server %d gets signal %v", pid, sig)
		_ = syscall.Kill(pid, sig) // it may have ended meanwhile
		for end := time.Now().Add(30 * time.Second); alive(pid) && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
		}
	}
	h.t.Log(h.try(qzbd, "detach", d.node)) // it waits for another server
}

// log shows the end of the server's log if the test has failed.
func (d *device) log() {
	t := d.im.h.t
	if !t.Failed() {
		return
	}
	b, err := os.ReadFile(d.logFile())
	if err != nil {
		return
	}
	const most = 16 << 10
	if len(b) > most {
		b = b[len(b)-most:]
	}
	t.Logf("end of the log of the server of %s:\n%s", d.node, b)
}

func (d *device) name() string { return strings.TrimPrefix(d.node, "/dev/") }

// logFile is where a server in the background logs.
func (d *device) logFile() string {
	return filepath.Join("/run/qzbd", strings.TrimPrefix(d.node, "/dev/ublkb"), "log")
}

// listed is one element of what qzbd list --json prints.
type listed struct {
	ID     int    `json:"id"`
	Device string `json:"device"`
	Image  string `json:"image"`
	State  string `json:"state"`
	PID    int    `json:"pid"`
	Queues int    `json:"queues"`

	ReadOnly bool   `json:"read-only"`
	Kernel   string `json:"kernel-state"`
	Left     string `json:"left"`
	ZeroCopy bool   `json:"zero-copy"`
}

func (h *host) list() []listed {
	h.t.Helper()
	var all []listed
	out := h.run(qzbd, "list", "--json")
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		h.t.Fatalf("qzbd list --json: %v in %q", err, out)
	}
	return all
}

// server is the process that serves the device, or 0.
func (d *device) server() int {
	for _, l := range d.im.h.list() {
		if l.Device == d.node && alive(l.PID) {
			return l.PID
		}
	}
	return 0
}

func alive(pid int) bool {
	return pid > 0 && !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

// sysfs reads an attribute of the device.
func (d *device) sysfs(attribute string) string {
	h := d.im.h
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/block", d.name(), attribute))
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// completed is the number of requests that the device has completed.
func (d *device) completed() (n int) {
	// Fields 1 and 5, reads and writes (Documentation/block/stat.rst).
	for i, f := range strings.Fields(d.sysfs("stat")) {
		if i == 0 || i == 4 {
			v, err := strconv.Atoi(f)
			if err != nil {
				d.im.h.t.Fatal(err)
			}
			n += v
		}
	}
	return n
}

// size parses the sizes that qzbd and fio understand.
func size(s string) int64 {
	n, err := strconv.ParseInt(strings.TrimRight(s, "KMG"), 10, 64)
	if err != nil {
		panic(err)
	}
	switch s[len(s)-1] {
	case 'K':
		n <<= 10
	case 'M':
		n <<= 20
	case 'G':
		n <<= 30
	}
	return n
}
