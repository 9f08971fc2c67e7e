package main

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"github.com/qzbd/qzbd/tests/vm"
)

// killed says how often the tests that kill servers do so, and with which seed.
type killed struct {
	kills int
	seed  uint64
}

// killingTests are those of tests/kernel that take the flags kills and seed.
const killingTests = "NoDeath|DeathOf|InFlightAreDoneOnce|Killed"

// Emulated, a kill and the recovery after it take some seconds, with the load in
// between; there are about so many tests.
const (
	killTime   = 10 * time.Second
	killMargin = 30 * time.Minute
	killTests  = 8
)

// kill runs the tests that kill servers, and notes how the kills went.
func kill(ctx context.Context, r *report, series vm.Series, k killed) error {
	binaries, err := kernelTestBinaries()
	if err != nil {
		return err
	}
	for i, pkg := range kernelPackages {
		if pkg.path != "tests/kernel" {
			continue
		}
		err = testBinary(ctx, r, vm.Options{
			Series:  series,
			CPUs:    pkg.cpus,
			Dir:     pkg.path,
			Timeout: killMargin + killTests*time.Duration(k.kills)*killTime,
			Tools:   true,
			Scratch: "4G",
		}, binaries[i], "-test.run="+killingTests, fmt.Sprint("-kills=", k.kills), fmt.Sprint("-seed=", k.seed))
	}
	r.note("seed %d", k.seed)
	for _, name := range slices.Sorted(maps.Keys(r.tests)) {
		for _, m := range survivedLine.FindAllStringSubmatch(r.tests[name].output.String(), -1) {
			r.note("%s: %s", name, m[1])
		}
	}
	return err
}

var survivedLine = regexp.MustCompile(`(?m)(\d+ kills survived.*)$`)
