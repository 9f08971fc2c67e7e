package main

import (
	"context"

	"github.com/qzbd/qzbd/tests/vm"
)

// copiesTests are the kernel tests about data, requests in flight and deaths of
// the server, in which it matters how data moves. Linux 6.12 has no zero copy:
// there all tests copy.
const copiesTests = "^(TestFioFillsTheDeviceAndWrapsWithResets|TestFioPastThePageCache|TestFioNoticesNoDeathOfTheServer|TestAppendsInFlightAreDoneOnce|TestF2fs|TestFioNoticesNoUpgrade)$"

// copies runs them on 7.x without zero copy; if it is to be thorough, all kernel
// tests of tests/kernel.
func copies(ctx context.Context, r *report, run kernelRun) error {
	binaries, err := kernelTestBinaries()
	if err != nil {
		return err
	}
	if run.tests == "" && !run.thorough {
		run.tests = copiesTests
	}
	run.noZeroCopy = true
	for i, pkg := range kernelPackages {
		if pkg.path != "tests/kernel" {
			continue
		}
		err = kernelTest(ctx, r, vm.Series7, run, pkg.path, pkg.cpus, binaries[i])
	}
	return err
}
