package main

import (
	"context"
	"fmt"
	"slices"
)

// kind is what a cell does.
type kind string

const (
	read      kind = "read"
	overwrite kind = "overwrite" // in place
	allocate  kind = "allocate"  // in a fresh image: ours in sequential zones
)

// cell is a row of the table.
type cell struct {
	kind  kind
	size  int // of a request
	depth int
	count int
	must  float64 // the largest ratio that will do; 0: none
	goal  float64
}

const (
	kib = 1 << 10
	mib = 1 << 20
)

// Large requests go one at a time: qemu-img bench (7.2) moves the data of all
// requests in flight by one buffer, which then stays in the CPU's cache. We have
// one for each, as whoever serves requests must.
var cells = func() (all []cell) {
	for _, k := range []kind{read, overwrite, allocate} {
		all = append(all,
			cell{k, 4 * kib, 1, 100_000, 0, 0},
			cell{k, 4 * kib, 16, 200_000, 1.0, 0.7},
			cell{k, 4 * kib, 64, 200_000, 1.0, 0.7},
			cell{k, 64 * kib, 1, 15_000, 0, 0},
			cell{k, mib, 1, 900, 0, 0},
		)
	}
	return all
}()

// result is what a cell has cost, in µs of CPU per request, round by round.
type result struct {
	cell
	ours, theirs []float64
}

// measure lets the two take turns, ours first.
func (c cell) measure(ctx context.Context, ours, theirs tool, rounds int) (result, error) {
	r := result{cell: c}
	for range rounds {
		for _, t := range []struct {
			tool
			costs *[]float64
		}{{ours, &r.ours}, {theirs, &r.theirs}} {
			start, err := t.cost(ctx, c, 1)
			if err != nil {
				return r, err
			}
			all, err := t.cost(ctx, c, c.count)
			if err != nil {
				return r, err
			}
			*t.costs = append(*t.costs, float64((all-start).Nanoseconds())/1e3/float64(c.count-1))
		}
	}
	return r, nil
}

// ratios are those of the rounds, in order of size.
func (r result) ratios() []float64 {
	var all []float64
	for i := range r.ours {
		all = append(all, r.ours[i]/r.theirs[i])
	}
	slices.Sort(all)
	return all
}

// median is the middle value, or the mean of the two in the middle.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func (r result) missed() bool { return r.must > 0 && median(r.ratios()) > r.must }

const header = "request               qzbd  qemu-img  ratio  (least to most)   must  goal"

func (r result) String() string {
	size := fmt.Sprintf("%dk", r.size/kib)
	if r.size >= mib {
		size = fmt.Sprintf("%dM", r.size/mib)
	}
	all := r.ratios()
	s := fmt.Sprintf("%-9s %3s QD%-2d %8.2f  %8.2f  %5.2f  (%.2f to %.2f)", r.kind, size, r.depth,
		median(r.ours), median(r.theirs), median(all), all[0], all[len(all)-1])
	if r.must == 0 {
		return s
	}
	word := ""
	switch {
	case r.missed():
		word = "  MISSED"
	case median(all) <= r.goal:
		word = "  goal reached"
	}
	return fmt.Sprintf("%s     %.1f   %.1f%s", s, r.must, r.goal, word)
}
