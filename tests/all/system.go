package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/qzbd/qzbd/tests/vm"
)

// systemBoots are the tests of tests/systemd: each a boot, from what the one
// before has left on the disks.
var systemBoots = []string{"TestFirstBoot", "TestSecondBoot"}

const (
	systemTimeout = 25 * time.Minute // of a boot's tests
	dataSize      = 8 << 30          // of the disk for images, a sparse file
)

// newerVersion is that of a second package, for an upgrade to another version.
const newerVersion = "9~test"

// systemFiles builds the tests and two packages, once for all machines.
var systemFiles = sync.OnceValues(func() (files struct{ deb, newer, tests string }, err error) {
	if files.tests, err = filepath.Abs("bin/tests-systemd.test"); err != nil {
		return files, err
	}
	for _, args := range [][]string{
		{"go", "test", "-tags=kernel", "-c", "-o", files.tests, "./tests/systemd"},
		{"make", "--no-print-directory", "deb"},
		{"make", "--no-print-directory", "deb", "DEB=bin/newer", "DEBVERSION=" + newerVersion},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return files, fmt.Errorf("%v: %w\n%s", args, err, out)
		}
	}
	if files.deb, err = packageIn("bin/deb"); err != nil {
		return files, err
	}
	files.newer, err = packageIn("bin/newer")
	return files, err
})

func packageIn(dir string) (string, error) {
	debs, err := filepath.Glob(dir + "/*.deb")
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("make deb has built %v, want one package (%v)", debs, err)
	}
	return filepath.Abs(debs[0])
}

// systemTests runs the tests of a whole system on one kernel.
func systemTests(ctx context.Context, r *report, series vm.Series) error {
	files, err := systemFiles()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "qzbd-system-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	data := filepath.Join(dir, "data")
	if err := os.WriteFile(data, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(data, dataSize); err != nil {
		return err
	}
	for _, boot := range systemBoots {
		err := testBinary(ctx, r, vm.Options{
			Series:  series,
			Dir:     "tests/systemd",
			Timeout: systemTimeout,
			System:  filepath.Join(dir, "system"),
			Disks:   []string{data},
			Env:     []string{"QZBD_DEB=" + files.deb, "QZBD_NEWER_DEB=" + files.newer},
		}, files.tests, "-test.run=^"+boot+"$")
		if err != nil || !r.ok() { // the next boot needs this one
			return err
		}
	}
	return nil
}
