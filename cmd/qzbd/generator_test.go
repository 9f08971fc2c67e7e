package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestServicesAreBetweenTheMountsBelowAndAbove(t *testing.T) {
	confs, out := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		"a-1.conf": "image = /srv/50% of it.qcow2\n",
		"b.conf":   "image = /srv/\"it\".qcow2\n",
		"bad.conf": "image = z.qcow2\n",
		"README":   "image = /z.qcow2\n",
	} {
		if err := os.WriteFile(filepath.Join(confs, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := generate(confs, out); err != nil {
		t.Fatal(err)
	}
	units, err := filepath.Glob(out + "/*")
	if err != nil || len(units) != 1 {
		t.Fatalf("%v, %v", units, err)
	}
	b, err := os.ReadFile(filepath.Join(out, "qzbd@a-1.service.d/50-order.conf"))
	want := "# From " + confs + "/a-1.conf.\n[Unit]\nRequiresMountsFor=\"/srv/50%% of it.qcow2\"\n" +
		"Wants=blockdev@dev-qzbd-a\\x2d1.target\nBefore=blockdev@dev-qzbd-a\\x2d1.target\n"
	if err != nil || string(b) != want {
		t.Errorf("%q, %v, want %q", b, err, want)
	}
}
