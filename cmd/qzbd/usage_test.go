package main

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// execute runs a command line in this process.
func execute(args ...string) (out string, err error) {
	var b bytes.Buffer
	cmd := rootCommand()
	cmd.SetArgs(args)
	cmd.SetOut(&b)
	cmd.SetErr(&b)
	err = cmd.Execute()
	return b.String(), err
}

func TestEveryMistakeInACommandLineIsOneLineWithAHint(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"atach z.qcow2", "(meant attach or detach?): see `qzbd --help`"},
		{"nonsense", "there is no command \"nonsense\": see `qzbd --help`"},
		{"help atach", "there is no command \"atach\" (meant attach or detach?): see `qzbd --help`"},
		{"help check it", "there is no command \"it\": see `qzbd check --help`"},
		{"attach", "attach needs IMAGE: see `qzbd attach --help`"},
		{"attach a b", "does not take the argument \"b\": see `qzbd attach --help`"},
		{"attach --colour a", "unknown flag: --colour: see `qzbd attach --help`"},
		{"attach --queues many a", "--queues many: this is no whole number: see `qzbd attach --help`"},
		{"attach --queues 99999999999999999999 a", "--queues 99999999999999999999: this is too much or too little: write a whole number: see"},
		{"attach --queues= a", "--queues \"\": this is no whole number: see"},
		{"attach --sync-interval 5 a", "--sync-interval 5: this is no duration: write it like 500ms, 5s or 1m: see"},
		{"attach --direct=perhaps a", "--direct=perhaps: this is neither true nor false: see"},
		{"bench -c -3 a", "--count -3: this is no whole number of 0 and more: see"},
		{"bench --pattern 300 a", "--pattern 300: this is too much or too little: write a whole number from 0 to 255: see"},
		{"bench -s many a", "--buffer-size many: it must be a size such as"},
		{"attach --id", "flag needs an argument: --id: see `qzbd attach --help`"},
		{"attach --trace everything a", "--trace everything: there is no such trace: choose zones"},
		{"info", "info needs IMAGE"},
		{"check a b", "does not take the argument \"b\""},
		{"zones", "zones needs IMAGE or a device"},
		{"bench", "bench needs IMAGE: see `qzbd bench --help`"},
		{"list x", "does not take the argument \"x\""},
		{"features x", "does not take the argument \"x\""},
		{"detach", "detach takes one device or image, or --all: see `qzbd detach --help`"},
		{"detach --all x", "see `qzbd detach --help`"},
		{"create", "create needs the name of the image: see `qzbd create --help`"},
		{"create a 1G b", "not \"b\" as well: see `qzbd create --help`"},
	} {
		_, err := execute(strings.Fields(c.line)...)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("qzbd %s: %v, want %q in one line", c.line, err, c.want)
		}
		if code := run(strings.Fields(c.line)); code != 1 { // check's 2 and 3 mean something
			t.Errorf("qzbd %s: exit status %d, want 1", c.line, code)
		}
	}
}

func TestWhatCannotBePrintedIsQuoted(t *testing.T) {
	for value, want := range map[string]string{"a\nb": `"a\nb"`, "\x1b[31m": `"\x1b[31m"`, "\xff": `"\xff"`} {
		_, err := execute("attach", "--queues", value, "z.qcow2")
		if err == nil || !strings.HasPrefix(err.Error(), "--queues "+want+": this is no whole number: ") {
			t.Errorf("%q: %v", value, err)
		}
	}
}

func TestWithoutArgumentsThereIsHelp(t *testing.T) {
	out, err := execute()
	if err != nil || !strings.Contains(out, "Usage:") || !strings.Contains(out, "attach") {
		t.Errorf("%v: %q", err, out)
	}
}

func TestCompletionsAreMadeForEveryShell(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		out, err := execute("completion", shell)
		if err != nil || !strings.Contains(out, "__complete") {
			t.Errorf("%s: %v, %d bytes", shell, err, len(out))
		}
		if shell == "bash" {
			check := exec.Command("bash", "-n")
			check.Stdin = strings.NewReader(out)
			if said, err := check.CombinedOutput(); err != nil {
				t.Errorf("bash does not understand it: %v: %s", err, said)
			}
		}
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"attach", "--trace", ""}, "zones\n:4"},
		{[]string{"attach", "--block-size", ""}, "512\n4096\n:4"},
		{[]string{"attach", "--log-level", ""}, "debug\ninfo\nwarn\nerror\n:4"},
		{[]string{"attach", ""}, ":0"}, // files
		{[]string{"bench", "-t", ""}, "writeback\nnone\n:4"},
		{[]string{"attach", "z.qcow2", ""}, ":4"},
		{[]string{"check", "--repair", ""}, "leaks\nall\n:4"},
		{[]string{"create", "-o", "zone.size=64M,"}, "\nzone.size=64M,zone.capacity=\n"},
	} {
		out, err := execute(append([]string{"__complete"}, c.args...)...)
		if err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%q completes to %q (%v), want %q", c.args, out, err, c.want)
		}
	}
}
