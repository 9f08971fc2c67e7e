package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
)

// leaky makes an image with one leaked cluster and, if asked, one that is in use
// and called free.
func leaky(t *testing.T, corrupt bool) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "z.qcow2")
	if err := qcow2.Create(path, qcow2.CreateOptions{Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const block = 2 << 16 // behind the header and the refcount table; counts of 16 bits
	_, err = f.WriteAt([]byte{0, 1}, block+2*50)
	if corrupt && err == nil {
		_, err = f.WriteAt([]byte{0, 0}, block+2*3)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheckAndRepairExitAsQEMUDoes(t *testing.T) {
	for _, c := range []struct {
		corrupt bool
		args    string
		want    []int // of one run after the other
	}{
		{false, "check", []int{3, 3}},
		{true, "check", []int{2, 2}},
		{false, "check -r leaks", []int{0, 0}},
		{true, "check -r leaks", []int{2, 2}},
		{true, "check --repair=all", []int{0, 0}},
		{true, "check -r all --json", []int{0, 0}},
		{true, "check -r everything", []int{1}},
	} {
		path := leaky(t, c.corrupt)
		for i, want := range c.want {
			if got := run(append(strings.Fields(c.args), path)); got != want {
				t.Errorf("%s, corrupt %v, run %d: exit code %d, want %d", c.args, c.corrupt, i, got, want)
			}
		}
	}
}

func TestARepairCountsWhatItFixed(t *testing.T) {
	rep, _, err := repairImage(leaky(t, true), "all")
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(rep)
	if err != nil || !strings.Contains(string(b), `"corruptions":0,"leaks":0,"corruptions-fixed":1,"leaks-fixed":1`) {
		t.Errorf("%s, %v", b, err)
	}
}

func TestAnImageInUseIsNotRepaired(t *testing.T) {
	path := leaky(t, true)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := qcow2.Lock(f, false); err != nil {
		t.Fatal(err)
	}
	if _, _, err := repairImage(path, "all"); !errors.Is(err, qcow2.ErrInUse) {
		t.Errorf("got %v", err)
	}
	if now, err := os.ReadFile(path); err != nil || string(now) != string(before) {
		t.Errorf("the image was changed, %v", err)
	}
}

// Who does not get the report must not take the image for clean.
func TestAReportThatCannotBePrintedIsAnError(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	defer func(f *os.File) { os.Stdout = f }(os.Stdout)
	os.Stdout = full
	for line, want := range map[string]int{"check -r leaks": 1, "check -r leaks --json": 1, "check": 3, "check --json": 3} {
		_, err := execute(append(strings.Fields(line), leaky(t, false))...)
		code := 1
		if exit := (*exitError)(nil); errors.As(err, &exit) {
			code = exit.code
		}
		if !errors.Is(err, syscall.ENOSPC) || code != want {
			t.Errorf("%s: %v, exit code %d, want %d", line, err, code, want)
		}
	}
}
