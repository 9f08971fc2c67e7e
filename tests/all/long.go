package main

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/qzbd/qzbd/tests/vm"
)

// longPackages have a test with the build tag long besides kernel. Its name
// begins with TestLong, and it goes on for as long as QZBD_LONGTIME says.
var longPackages = []string{"tests/kernel"}

// longMargin is what a long test may take beyond its time: it finishes what it
// has begun and checks its image.
const longMargin = 30 * time.Minute

// long runs the long tests of all packages on one kernel.
func long(ctx context.Context, r *report, series vm.Series, d time.Duration, run string) error {
	for _, pkg := range longPackages {
		binary, err := filepath.Abs(fmt.Sprintf("bin/%s-long-%s.test", filepath.Base(pkg), series))
		if err != nil {
			return err
		}
		if err := command(ctx, r, "go", "test", "-tags=kernel,long", "-c", "-o", binary, "./"+pkg); err != nil {
			return err
		}
		err = testBinary(ctx, r, vm.Options{
			Series:  series,
			Dir:     pkg,
			Timeout: d + longMargin,
			Tools:   true,
			Scratch: "4G",
			Env:     []string{"QZBD_LONGTIME=" + d.String()},
		}, binary, "-test.run="+cmp.Or(run, "^TestLong"))
		if err != nil {
			return err
		}
	}
	return nil
}
