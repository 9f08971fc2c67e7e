package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// refuses checks that err says one of the words.
func refuses(t *testing.T, what string, err error, word string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), word) {
		t.Errorf("%s: %v, want %q", what, err, word)
	}
}

func TestOnlyADirectoryOfOursIsBelieved(t *testing.T) {
	old := unix.Umask(0o277)
	defer unix.Umask(old)
	root := t.TempDir()
	dir := filepath.Join(root, "dir")
	if err := makeDir(dir); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("made with mode %v, %v", st.Mode(), err)
	}
	if err := makeDir(dir); err != nil {
		t.Errorf("again: %v", err)
	}
	link := filepath.Join(root, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	refuses(t, "symlink", makeDir(link), "no directory")
	refuses(t, "symlink", checkDir(link), "no directory")
	dangling := filepath.Join(root, "dangling")
	if err := os.Symlink(filepath.Join(root, "nowhere"), dangling); err != nil {
		t.Fatal(err)
	}
	refuses(t, "dangling symlink", makeDir(dangling), "no directory")
	if err := os.Chmod(dir, 0o775); err != nil {
		t.Fatal(err)
	}
	refuses(t, "writable by a group", checkDir(dir), "by others")
	if os.Geteuid() == 0 {
		theirs := filepath.Join(root, "theirs")
		if err := os.Mkdir(theirs, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(theirs, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		refuses(t, "of another user", makeDir(theirs), "user 65534")
	}
}

func TestAFileOfOursIsOpenedWithoutFollowingLinks(t *testing.T) {
	old := unix.Umask(0o377)
	defer unix.Umask(old)
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	f, err := openOwn(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	f.Close()
	for name, plant := range map[string]func(path string) error{
		"symlink":          func(p string) error { return os.Symlink(path, p) },
		"dangling symlink": func(p string) error { return os.Symlink(filepath.Join(dir, "target"), p) },
		"FIFO":             func(p string) error { return unix.Mkfifo(p, 0o600) },
		"directory":        func(p string) error { return os.Mkdir(p, 0o755) },
	} {
		p := filepath.Join(dir, name)
		if err := plant(p); err != nil {
			t.Fatal(err)
		}
		for _, flag := range []int{os.O_RDONLY, os.O_CREATE | os.O_APPEND | os.O_RDWR} {
			if f, err := openOwn(p, flag, 0o600); err == nil {
				t.Errorf("a %s was opened with flags %#x", name, flag)
				f.Close()
			}
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "target")); err == nil {
		t.Error("the target of a dangling symlink was made")
	}
}
