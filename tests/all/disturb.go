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

// disturbed says how often the tests that kill servers, or upgrade them, do so,
// and with which seed.
type disturbed struct {
	tests string // of tests/kernel
	flag  string // of those, how often
	times int
	seed  uint64
}

func killed(times int, seed uint64) disturbed {
	return disturbed{"NoDeath|DeathOf|InFlightAreDoneOnce|Killed", "kills", times, seed}
}

func upgraded(times int, seed uint64) disturbed {
	return disturbed{"NoUpgrade", "upgrades", times, seed}
}

// Emulated, a kill and the recovery after it take some seconds, with the load in
// between, and so does an upgrade; there are about so many tests.
const (
	disturbTime   = 10 * time.Second
	disturbMargin = 30 * time.Minute
	disturbTests  = 8
)

// disturb runs the tests that kill or upgrade servers, and notes how that went.
func disturb(ctx context.Context, r *report, series vm.Series, k disturbed) error {
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
			Timeout: disturbMargin + disturbTests*time.Duration(k.times)*disturbTime,
			Tools:   true,
			Scratch: "4G",
		}, binaries[i], "-test.run="+k.tests, fmt.Sprintf("-%s=%d", k.flag, k.times), fmt.Sprint("-seed=", k.seed), "-thorough")
	}
	r.note("seed %d", k.seed)
	for _, name := range slices.Sorted(maps.Keys(r.tests)) {
		for _, m := range survivedLine.FindAllStringSubmatch(r.tests[name].output.String(), -1) {
			r.note("%s: %s", name, m[1])
		}
	}
	return err
}

var survivedLine = regexp.MustCompile(`(?m)(\d+ (?:kills survived|upgrades unnoticed).*)$`)
