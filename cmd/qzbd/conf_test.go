package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func writeConf(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAConfigurationSaysWhatTheFlagsSay(t *testing.T) {
	path := writeConf(t, "disk-1.conf", `# a comment

image = /srv/a = b.qcow2
depth=64
	queues = 1
direct = yes
sync-interval = 1s
trace = zones
no-recovery = off
`)
	var o, want attachOptions
	o = attachOptions{config: path, foreground: true}
	if err := o.complete(nil); err != nil {
		t.Fatal(err)
	}
	f := pflag.NewFlagSet("attach", pflag.ContinueOnError)
	want.flags(f)
	want.callFlags(f)
	if err := f.Parse([]string{"--name=disk-1", "--depth=64", "--direct", "--sync-interval=1s", "--trace=zones"}); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(o.args(o.image), " "), strings.Join(want.args("/srv/a = b.qcow2"), " "); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if !o.foreground || o.syncInterval != time.Second {
		t.Errorf("%+v", o)
	}
}

func TestEveryMistakeInAConfigurationIsReportedAtOnce(t *testing.T) {
	path := writeConf(t, "a.conf", `depht = 3
depth
depth = many
depth = 64
queues = 0
block-size = 1000
direct = perhaps
sync-interval = 5
id =
image = zoned.qcow2
log-level = loud
trace = zones,all
foreground = yes
name = b
queues = 1
`)
	err := new(attachOptions).readConf(path)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		":1: depht = 3: there is no such key: choose block-size, depth, direct",
		":2: depth: this is no line `key = value`",
		":3: depth = many: this is no whole number",
		":4: depth = 64: line 3 sets depth already",
		":5: queues = 0: choose 1 to",
		":6: block-size = 1000: choose 512 or 4096",
		":7: direct = perhaps: choose yes or no",
		":8: sync-interval = 5: this is no duration",
		":9: id = : the value is missing",
		":10: image = zoned.qcow2: give the path from the root directory on",
		":11: log-level = loud: choose debug",
		":12: trace = all: there is no such trace",
		":13: foreground = yes: there is no such key",
		":14: name = b: the file's name is the device's",
		":15: queues = 1: line 5 sets queues already",
	} {
		if !strings.Contains(err.Error(), path+want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 15 {
		t.Errorf("%d mistakes, want 15:\n%v", n, err)
	}
}

func TestAConfigurationNeedsAnImageAndAName(t *testing.T) {
	path := writeConf(t, "a.conf", "depth = 1\n")
	if err := new(attachOptions).readConf(path); err == nil || !strings.Contains(err.Error(), "there is no image: add a line") {
		t.Errorf("without an image: %v", err)
	}
	for _, name := range []string{"a", "a.cfg", ".conf", "-a.conf", "a b.conf", "ä.conf", strings.Repeat("a", 65) + ".conf"} {
		path := writeConf(t, name, "image = /a\n")
		if err := new(attachOptions).readConf(path); err == nil || !strings.Contains(err.Error(), "call it NAME.conf") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := new(attachOptions).readConf("/no/such.conf"); err == nil {
		t.Error("a file that is not there")
	}
}

func TestConfigCheckLooksAtTheImage(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "z.qcow2")
	conf := filepath.Join(dir, "z.conf")
	check := func(text, want string) {
		t.Helper()
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := execute("config-check", conf)
		switch {
		case want == "" && (err != nil || !strings.Contains(out, "can be attached as /dev/qzbd/z")):
			t.Errorf("%q: %q, %v", text, out, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	check("image = "+image+"\n", "`qzbd create` makes an image")
	if _, err := execute("create", "-o", "zone.size=1M", image, "16M"); err != nil {
		t.Fatal(err)
	}
	check("image = "+image+"\n", "")
	check("image = "+dir+"\n", "is a directory")
	check("image = "+conf+"\n", conf)
	// 4096-byte blocks need a capacity that is a multiple of them.
	if _, err := execute("create", "-o", "zone.size=1M,zone.capacity=523776,cluster_size=512", image, "16M"); err != nil {
		t.Fatal(err)
	}
	check("image = "+image+"\nblock-size = 4096\n", "4096")
}

func TestAConfigurationAloneSaysWhatTheDeviceIs(t *testing.T) {
	for _, args := range [][]string{
		{"attach", "--config", "/a.conf", "image"},
		{"attach", "--config", "/a.conf", "--depth", "1"},
		{"attach", "--config", "/a.conf", "--name", "b"},
	} {
		if _, err := execute(args...); err == nil || !strings.Contains(err.Error(), "the file says everything") {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := execute("attach", "--name", "a/b", "image"); err == nil || !strings.Contains(err.Error(), "no name for a device") {
		t.Errorf("a bad name: %v", err)
	}
}
