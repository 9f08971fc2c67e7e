package qcow2

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func lockFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOneWriterPerImage(t *testing.T) {
	path := lockFile(t)
	for _, c := range []struct {
		first, second bool // write
		busy          bool
	}{{true, true, true}, {true, false, true}, {false, true, true}, {false, false, false}} {
		a, b := openOS(t, path), openOS(t, path)
		if err := Lock(a.File, c.first); err != nil {
			t.Fatal(err)
		}
		err := Lock(b.File, c.second)
		if errors.Is(err, ErrInUse) != c.busy || (err != nil) != c.busy {
			t.Errorf("write %v, then write %v: %v", c.first, c.second, err)
		}
		// What failed must not be in the way afterwards.
		a.Close()
		third := openOS(t, path)
		if c.busy {
			if err := Lock(third.File, true); err != nil {
				t.Errorf("after a failed lock: %v", err)
			}
		}
		b.Close()
		third.Close()
	}
}

// qemu returns a QEMU tool.
func qemu(t *testing.T, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Fatalf("%s is not installed: bin/all -only deps installs it", tool)
	}
	return path
}

// What QEMU's tools say of an image that we have locked: the same as of one that
// QEMU has open, in the same way.
func TestQEMUTreatsALockedImageAsOneOfItsOwn(t *testing.T) {
	const write, shared, ok = `Failed to get "write" lock`, `Failed to get shared "write" lock`, ""
	dir := t.TempDir()
	path, other := filepath.Join(dir, "plain.qcow2"), filepath.Join(dir, "other")
	runQEMU(t, "qemu-img", "create", "-f", "qcow2", path, "1M")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	hard, soft := filepath.Join(dir, "hard"), filepath.Join(dir, "soft")
	if err := errors.Join(os.Link(path, hard), os.Symlink(path, soft)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		command         string
		besideW, beside string // what it says beside our writer, beside our reader
	}{
		{"qemu-img info " + path, shared, ok},
		{"qemu-img info -U " + path, ok, ok},
		{"qemu-img info " + hard, shared, ok},
		{"qemu-img info " + soft, shared, ok},
		{"qemu-img check " + path, shared, ok},
		{"qemu-img check -U " + path, ok, ok},
		{"qemu-img check -r all " + path, write, write},
		{"qemu-img convert -O raw " + path + " " + other, shared, ok},
		{"qemu-img convert -U -O raw " + path + " " + other, ok, ok},
		{"qemu-img convert -f raw -O raw " + path + " " + other, shared, ok},
		{"qemu-img convert -n -f raw -O raw " + other + " " + path, write, write},
		{"qemu-img create -f qcow2 " + path + " 2M", write, write},
		{"qemu-img resize -f raw " + path + " +1M", write, write},
		{"qemu-img amend -o compat=v3 " + path, write, write},
		{"qemu-io -c quit " + path, write, write},
		{"qemu-io -c quit " + hard, write, write},
		{"qemu-io -f raw -c quit " + path, write, write},
		{"qemu-io -r -c quit " + path, shared, ok},
		// It reads bytes and does not care who writes them.
		{"qemu-io -r -f raw -c quit " + path, ok, ok},
		{"qemu-nbd -f raw -k " + dir + "/nbd " + path, write, write},
		{"qemu-nbd -k " + dir + "/nbd " + path, write, write},
	} {
		words := strings.Fields(c.command)
		tool := qemu(t, words[0])
		for writer, want := range map[bool]string{true: c.besideW, false: c.beside} {
			f := openOS(t, path)
			if err := Lock(f.File, writer); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(tool, words[1:]...).CombinedOutput()
			if (err != nil) != (want != ok) || !strings.Contains(string(out), want) {
				t.Errorf("%s, beside a lock with write %v: %v, want %q\n%s", c.command, writer, err, want, out)
			}
			f.Close()
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the locked image has changed (%v)", err)
	}
	for _, command := range []string{"qemu-img info " + path, "qemu-io -c quit " + path, "qemu-img check -r all " + path} {
		runQEMU(t, strings.Fields(command)...) // once it is free again
	}
}

func runQEMU(t *testing.T, words ...string) {
	t.Helper()
	if out, err := exec.Command(qemu(t, words[0]), words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(words, " "), err, out)
	}
}

// A lock belongs to an inode, whatever its name.
func TestAnotherNameDoesNotGetAroundALock(t *testing.T) {
	path := lockFile(t)
	for _, link := range []func(string, string) error{os.Link, os.Symlink} {
		name := filepath.Join(t.TempDir(), "name")
		if err := link(path, name); err != nil {
			t.Fatal(err)
		}
		a, b := openOS(t, path), openOS(t, name)
		if err := Lock(a.File, true); err != nil {
			t.Fatal(err)
		}
		if err := Lock(b.File, false); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), name) {
			t.Errorf("another name of a locked image: %v", err)
		}
		a.Close()
		b.Close()
	}
}

// openByQEMU has QEMU open an image until release.
func openByQEMU(t *testing.T, args ...string) (release func()) {
	t.Helper()
	cmd := exec.Command(qemu(t, "qemu-io"), args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// An answer to a command says that the file is open and locked.
	if _, err := in.Write([]byte("read 0 512\n")); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("qemu-io did not answer: %v", err)
		}
		if strings.Contains(line, "512/512") {
			break
		}
	}
	return func() {
		t.Helper()
		in.Close()
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestAnImageThatQEMUHasOpenIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plain.qcow2")
	runQEMU(t, "qemu-img", "create", "-f", "qcow2", path, "1M")
	for _, c := range []struct {
		args          []string
		write, shared bool // we may write, we may read beside it
	}{
		{nil, false, false},
		{[]string{"-f", "raw"}, false, false},
		{[]string{"-r"}, false, true},
		{[]string{"-r", "-U"}, true, true}, // it shares with everybody
		{[]string{"-r", "-f", "raw"}, true, true},
	} {
		release := openByQEMU(t, append(c.args, path)...)
		for write, may := range map[bool]bool{true: c.write, false: c.shared} {
			f := openOS(t, path)
			err := Lock(f.File, write)
			if may != (err == nil) || err != nil && (!errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), path)) {
				t.Errorf("lock with write %v while qemu-io %v has the image: %v", write, c.args, err)
			}
			f.Close()
		}
		release()
		f := openOS(t, path)
		if err := Lock(f.File, true); err != nil {
			t.Errorf("after qemu-io %v has gone: %v", c.args, err)
		}
		f.Close()
	}
}
