package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func TestEveryCommandHasAManualPage(t *testing.T) {
	dir := t.TempDir()
	if _, err := execute("man", dir); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range rootCommand().Commands() {
		if cmd.Hidden || cmd.Name() == "help" {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, "man1", "qzbd-"+cmd.Name()+".1"))
		if err != nil || !strings.Contains(string(b), cmd.Short) {
			t.Errorf("%s: %v, %d bytes", cmd.Name(), err, len(b))
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "man5/qzbd.conf.5"))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keysOfAttach() {
		if !strings.Contains(string(b), "\\fB"+key+"\\fP = ") {
			t.Errorf("qzbd.conf(5) has no key %s", key)
		}
	}
}

func keysOfAttach() []string {
	f := pflag.NewFlagSet("attach", pflag.ContinueOnError)
	new(attachOptions).flags(f)
	return confKeys(f)
}

func TestTheExampleHasEveryKeyOfAConfiguration(t *testing.T) {
	b, err := os.ReadFile("../../systemd/example.conf")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	var have []string
	for line := range strings.SplitSeq(text, "\n") {
		if key, _, ok := strings.Cut(strings.TrimPrefix(line, "# "), " = "); ok {
			have = append(have, key)
			text = strings.Replace(text, line, strings.TrimPrefix(line, "# "), 1)
		}
	}
	slices.Sort(have)
	if want := keysOfAttach(); !slices.Equal(have, want) {
		t.Errorf("the example has %v, want %v", have, want)
	}
	if err := new(attachOptions).readConf(writeConf(t, "a.conf", text)); err != nil {
		t.Error(err)
	}
}

func TestTheReadmeNamesEveryKeyOfAConfiguration(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "\n### As a service\n")
	section, _, _ = strings.Cut(section, "\n### ")
	for _, key := range keysOfAttach() {
		if !strings.Contains(section, "`"+key+"`") {
			t.Errorf("no %s", key)
		}
	}
}
