package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// simulated says how many power cuts to simulate, and from which seed on.
type simulated struct {
	cuts int
	seed uint64
}

// sim runs the crash simulation and says how far it came.
func sim(ctx context.Context, r *report, s simulated) error {
	limit := 15*time.Minute + time.Duration(s.cuts)*100*time.Millisecond
	err := goTest(ctx, r, "-timeout="+limit.String(), "-run=^TestPowerCuts|ActiveSet|DeathOfTheServer", "./tests/sim", fmt.Sprint("-cuts=", s.cuts), fmt.Sprint("-first=", s.seed))
	states := 0
	for _, t := range r.tests {
		states += crashStates(t.output.String())
	}
	r.note("%10d crash states explored, seeds from %d on", states, s.seed)
	if states < s.cuts && err == nil {
		err = fmt.Errorf("%d crash states explored, want at least %d", states, s.cuts)
	}
	return err
}

var statesLine = regexp.MustCompile(`(?m) (\d+) crash states$`)

// crashStates reads how many states a test of the simulation says it has
// explored.
func crashStates(out string) (n int) {
	for _, m := range statesLine.FindAllStringSubmatch(out, -1) {
		k, _ := strconv.Atoi(m[1])
		n += k
	}
	return n
}
