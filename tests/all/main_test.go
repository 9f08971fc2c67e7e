package main

import (
	"slices"
	"strings"
	"testing"
)

// Whether in lanes or one after the other: everything that is part of the default
// runs, and runs once.
func TestThePlanHasEveryStageOfTheDefaultOnce(t *testing.T) {
	var want []string
	for _, s := range stages("", 0, kernelRun{}, simulated{}, disturbed{}, disturbed{}) {
		if !strings.HasSuffix(s.what, "(not part of the default)") {
			want = append(want, s.name)
		}
	}
	slices.Sort(want)
	for _, serial := range []bool{false, true} {
		d := &driver{stages: stages("", 0, kernelRun{}, simulated{}, disturbed{}, disturbed{})}
		if err := d.plan("", serial); err != nil {
			t.Fatal(err)
		}
		var planned []string
		for _, o := range slices.Concat(d.first, slices.Concat(d.lanes...), d.rest) {
			planned = append(planned, o.name)
		}
		slices.Sort(planned)
		if !slices.Equal(planned, want) {
			t.Errorf("serial %v: %v, want %v", serial, planned, want)
		}
	}
}
