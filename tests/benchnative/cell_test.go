package main

import (
	"strings"
	"testing"
)

func TestTheRatioIsTheMedianOfTheRounds(t *testing.T) {
	c := cell{kind: read, size: 4 * kib, depth: 16, must: 1, goal: 0.7}
	for _, r := range []struct {
		ours, theirs []float64
		missed       bool
		want         string
	}{
		// The middle one of 2, 0.6 and 0.5, though ours cost more in sum.
		{[]float64{8, 3, 2}, []float64{4, 5, 4}, false, "read       4k QD16     3.00      4.00   0.60  (0.50 to 2.00)     1.0   0.7  goal reached"},
		{[]float64{4}, []float64{5}, false, "0.80  (0.80 to 0.80)     1.0   0.7"},
		{[]float64{6}, []float64{5}, true, "1.20  (1.20 to 1.20)     1.0   0.7  MISSED"},
	} {
		have := result{c, r.ours, r.theirs}
		if have.missed() != r.missed || !strings.HasSuffix(have.String(), r.want) {
			t.Errorf("%v, %q, want %v, %q", have.missed(), have, r.missed, r.want)
		}
	}
	c.must = 0
	if r := (result{c, []float64{6}, []float64{5}}); r.missed() || !strings.HasSuffix(r.String(), ")") {
		t.Errorf("%q, though nothing is demanded", r)
	}
}

func TestNoCellWritesBeyondTheConventionalZones(t *testing.T) {
	for _, c := range cells {
		if c.size*c.count > conventionalSize {
			t.Errorf("%+v writes %d bytes", c, c.size*c.count)
		}
	}
}
