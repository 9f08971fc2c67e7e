//go:build kernel

package kernel

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// says checks an error message for the words that a user needs.
func says(t *testing.T, message string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(message, w) {
			t.Errorf("the message lacks %q: %s", w, message)
		}
	}
}

func TestAnImageIsAttachedOnlyOnce(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	d := im.attach()
	says(t, h.refused(qzbd, "attach", im.path), im.path, d.node)
	link := filepath.Join(h.dir, "link")
	if err := os.Symlink(im.path, link); err != nil {
		t.Fatal(err)
	}
	says(t, h.refused(qzbd, "attach", link), d.node)
	if r := h.try(qzbd, "check", im.path); r.code != 1 {
		t.Errorf("check of an attached image: %v", r)
	}
	k := d.open()
	k.write(1, 0, 4096) // undisturbed
	k.holds(1, 0, 4096)
}

func TestWhatIsNoZonedImageIsRefused(t *testing.T) {
	h := begin(t)
	good, err := os.ReadFile(h.create("good.qcow2", small).path)
	if err != nil {
		t.Fatal(err)
	}
	noBit := append([]byte(nil), good...)
	noBit[79] &^= 1 << 5 // incompatible features, the zoned format
	for _, c := range []struct {
		name    string
		content []byte
	}{
		{"empty", nil},
		{"garbage", pattern(1, 0, 1<<20)},
		{"zeros", make([]byte, 1<<20)},
		{"head", good[:80]},
		{"no-bit", noBit},
	} {
		path := filepath.Join(h.dir, c.name)
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		says(t, h.refused(qzbd, "attach", path), path)
		if after, err := os.ReadFile(path); err != nil || string(after) != string(c.content) {
			t.Errorf("%s: changed by a refusal (%v)", c.name, err)
		}
	}
	says(t, h.refused(qzbd, "attach", filepath.Join(h.dir, "nothing")), "no such file")
	says(t, h.refused(qzbd, "attach", h.dir), h.dir)
	says(t, h.refused(qzbd, "attach", "/dev/null"), "/dev/null")
}

// The kernel would find out, and not survive it: START_DEV must never see it.
func TestAnImageThatTheKernelCannotServeIsRefused(t *testing.T) {
	h := begin(t)
	for _, c := range []struct {
		name, options string
		zones         int
		words         []string
	}{
		{"short-last-zone", "size=65M,zone.size=8M", 9, []string{"short", "--drop-short-zone"}},
		{"too-many-zones", "size=16385M,zone.size=1M", 16385, []string{"16385 zones", "16384"}},
	} {
		im := h.create(c.name, c.options)
		before := im.bytes(0, 256<<10)
		says(t, h.refused(qzbd, "attach", im.path), c.words...)
		if !bytes.Equal(im.bytes(0, len(before)), before) {
			t.Errorf("%s: changed by a refusal", c.name)
		}
		// Offline everything works; check does at the end of every test.
		if n := len(im.zones()); n != c.zones {
			t.Errorf("%s: %d zones", c.name, n)
		}
		im.info()
	}
	// What is left without the short zone must be a zoned device.
	im := h.create("conventional-but-for-a-short-one", "size=65M,zone.size=8M,zone.conventional_zones=8")
	says(t, h.refused(qzbd, "attach", "--drop-short-zone", im.path), "no sequential zone is left")
}

func TestADeviceInUseIsNotDetached(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=768M,zone.size=8M,zone.conventional_zones=16")
	d := im.attach()
	h.run("mkfs.f2fs", "-f", "-m", d.node)
	dir, unmount := h.mount("f2fs", d.node)
	for _, name := range []string{d.node, im.path, "--all"} {
		says(t, h.refused(qzbd, "detach", name), d.node, dir)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("still writable"), 0o600); err != nil {
		t.Error(err)
	}
	unmount()
	k := d.open()
	says(t, h.refused(qzbd, "detach", d.node), d.node, fmt.Sprint(os.Getpid()))
	k.close()
	d.detach()
}

func TestDetachTakesADeviceAnImageOrAll(t *testing.T) {
	h := begin(t)
	a, b, c := h.create("a.qcow2", small), h.create("b.qcow2", small), h.create("c.qcow2", small)
	da := a.attach("--id", "17")
	db, dc := b.attach(), c.attach("--queues", queues())
	if da.node != "/dev/ublkb17" {
		t.Errorf("--id 17 became %s", da.node)
	}
	want := map[string]string{da.node: a.path, db.node: b.path, dc.node: c.path}
	all := h.list()
	for _, l := range all {
		if l.Image != want[l.Device] || l.State != "live" || !alive(l.PID) || l.Device != fmt.Sprintf("/dev/ublkb%d", l.ID) {
			t.Errorf("listed as %+v", l)
		}
		if l.Device == dc.node && fmt.Sprint(l.Queues) != queues() {
			t.Errorf("%s has %d queues, want %s", l.Device, l.Queues, queues())
		}
	}
	if len(all) != 3 {
		t.Errorf("%d devices listed, want 3", len(all))
	}
	text := h.run(qzbd, "list")
	for node, path := range want {
		says(t, text, node, path)
	}
	says(t, h.refused(qzbd, "attach", "--id", "17", h.create("d.qcow2", small).path), "17")

	// A device in use stays, the others go.
	k := da.open()
	says(t, h.refused(qzbd, "detach", "--all"), da.node)
	k.close()
	db.gone, dc.gone = true, true
	if got := h.list(); len(got) != 1 || got[0].Device != da.node {
		t.Errorf("left after detach --all: %+v", got)
	}
	da.detachBy(a.path)
	says(t, h.refused(qzbd, "detach", a.path), a.path, "not attached")
	h.run(qzbd, "detach", "--all") // nothing to do is no error
	if out := h.run(qzbd, "list", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("list of nothing: %q", out)
	}
}

func TestFeaturesSaysThatThisKernelWillDo(t *testing.T) {
	h := begin(t)
	out := h.run(qzbd, "features")
	says(t, out, "ZONED", "USER_COPY")
	const lack = "Without PER_IO_DAEMON (Linux 6.16) no living process"
	if missed := strings.Contains(out, lack); missed == kernelHas(t, 6, 16) {
		t.Errorf("it says that something is missed: %v\n%s", missed, out)
	}
}

func TestInfoDescribesAnImageAttachedOrNot(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", founding)
	d := im.attach()
	for range 2 { // attached, and then not
		var v map[string]any
		out := h.run(qzbd, "info", "--json", im.path)
		if err := json.Unmarshal([]byte(out), &v); err != nil || len(v) == 0 {
			t.Errorf("info --json: %v in %q", err, out)
		}
		says(t, h.run(qzbd, "info", im.path), "768", "64", "12")
		if !d.gone {
			d.detach()
		}
	}
}

func count(t *testing.T, pattern string) int {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// TestHowDataGoesIsSaid where it is copied, and why.
func TestHowDataGoesIsSaid(t *testing.T) {
	h := begin(t)
	kernelHas := true // as far as the first says
	for _, c := range []struct {
		use   func()
		flags []string
		why   string
	}{
		{h.onExt4, nil, ""},
		{h.onExt4, []string{"--no-zero-copy"}, "asked for"},
		{func() { h.onFileSystem("tmpfs", "none", "size=24M") }, nil, "in memory"},
	} {
		c.use()
		d := h.create("how.qcow2", small).attach(c.flags...)
		b, err := os.ReadFile(d.logFile())
		if err != nil {
			t.Fatal(err)
		}
		listed := h.list()
		zeroCopy := listed[len(listed)-1].ZeroCopy
		kernelHas = kernelHas && (zeroCopy || c.why != "")
		switch {
		case *noZeroCopyFlag:
			c.why = "asked for"
		case !kernelHas && c.flags == nil:
			c.why = "Linux 6.16"
		}
		if zeroCopy != (c.why == "") {
			t.Errorf("in %s with %v: %s", h.dir, c.flags, b)
		}
		if zeroCopy {
			says(t, string(b), `"zero-copy": true`)
		} else {
			says(t, string(b), `"zero-copy": false`, `"copies": "`, c.why)
		}
		d.detach()
	}
}
