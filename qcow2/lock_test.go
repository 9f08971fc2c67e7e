package qcow2

import (
	"bufio"
	"errors"
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

func TestQEMUIsKeptOutOfALockedImage(t *testing.T) {
	qemuIO := qemu(t, "qemu-io")
	path := lockFile(t)
	f := openOS(t, path)
	if err := Lock(f.File, true); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(qemuIO, "-f", "raw", "-c", "read 0 512", path).CombinedOutput()
	if err == nil || !strings.Contains(string(out), `Failed to get "write" lock`) {
		t.Errorf("qemu-io on a locked image: %v\n%s", err, out)
	}
	f.Close()
	out, err = exec.Command(qemuIO, "-f", "raw", "-c", "read 0 512", path).CombinedOutput()
	if err != nil {
		t.Errorf("qemu-io on an image that is free again: %v\n%s", err, out)
	}
}

func TestQEMUImgIsKeptOutOfALockedImage(t *testing.T) {
	qemuImg := qemu(t, "qemu-img")
	path := filepath.Join(t.TempDir(), "plain.qcow2")
	if out, err := exec.Command(qemuImg, "create", "-f", "qcow2", path, "1M").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f := openOS(t, path)
	if err := Lock(f.File, true); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(qemuImg, "info", path).CombinedOutput()
	if err == nil || !strings.Contains(string(out), `Failed to get shared "write" lock`) {
		t.Errorf("qemu-img info on a locked image: %v\n%s", err, out)
	}
}

func TestAnImageThatQEMUHasOpenIsRefused(t *testing.T) {
	qemuIO := qemu(t, "qemu-io")
	path := lockFile(t)
	cmd := exec.Command(qemuIO, "-f", "raw", path)
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
	line := ""
	for r := bufio.NewScanner(out); r.Scan(); {
		if line = r.Text(); strings.Contains(line, "512/512") {
			break
		}
	}
	if line == "" {
		t.Fatal("qemu-io did not answer")
	}
	if err := Lock(openOS(t, path).File, true); !errors.Is(err, ErrInUse) {
		t.Errorf("lock for writing while qemu-io has the image: %v", err)
	}
	if err := Lock(openOS(t, path).File, false); !errors.Is(err, ErrInUse) {
		t.Errorf("lock for reading while qemu-io has the image: %v", err)
	}
	in.Close()
	if _, err := out.Read(make([]byte, 1)); err == nil {
		for r := bufio.NewScanner(out); r.Scan(); {
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := Lock(openOS(t, path).File, true); err != nil {
		t.Errorf("after qemu-io has gone: %v", err)
	}
}
