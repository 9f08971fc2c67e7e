package main

import (
	"fmt"
	"slices"
	"strings"
)

// How devices with several queues are measured: on several CPUs, and so by
// the wall clock. Rounds take turns, so that a disturbance of the host meets all
// of them. All the same it is an indication, no figure to rely on.
const (
	cpus   = 4
	rounds = 3

	wallRuntime = "2s" // of a job
)

// queueCounts are the numbers of queues. The first is what others are compared to.
var queueCounts = []int{1, 2, 4}

// scaledKinds are those that are measured with several queues.
func scaledKinds() []kind {
	return slices.DeleteFunc(slices.Clone(kinds), func(k kind) bool { return k.name != nullBlkName && k.name != freshName })
}

// queueRound has IOPS by number of queues, kind and cell.
type queueRound map[int]map[string]map[string]float64

// measureQueues runs the parallel cells on devices with ever more queues, and
// leaves the rounds.
func (b *bench) measureQueues() error {
	var all []queueRound
	for range rounds {
		round := make(queueRound)
		for _, b.queues = range queueCounts {
			round[b.queues] = make(map[string]map[string]float64)
			for _, k := range scaledKinds() {
				iops := make(map[string]float64)
				err := b.with(k, func(d *device) error {
					for _, c := range parallel { // what is read is what was written
						if err := b.measureCell(k, d, c, wallRuntime, iops); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					return fmt.Errorf("%s, %d queues: %w", k.name, b.queues, err)
				}
				round[b.queues][k.name] = iops
			}
		}
		all = append(all, round)
	}
	return leave(all)
}

// scaling are the medians of the rounds, as results.json has them.
type scaling struct {
	CPUs   int          `json:"cpus"`
	Rounds int          `json:"rounds"`
	Queues []int        `json:"queues"`
	Rows   []scalingRow `json:"rows"`
}

// scalingRow is one kind of device under one load. The lists go with the
// numbers of queues.
type scalingRow struct {
	Cell   string      `json:"cell"`
	Device string      `json:"device"`
	IOPS   []float64   `json:"iops"`
	OfOne  []float64   `json:"of-one"` // × the first of them: the median of the rounds' ratios
	Runs   [][]float64 `json:"runs"`   // IOPS of each round
}

// newScaling sums rounds up.
func newScaling(all []queueRound) *scaling {
	s := &scaling{CPUs: cpus, Rounds: len(all), Queues: queueCounts}
	for _, c := range parallel {
		for _, k := range scaledKinds() {
			row := scalingRow{Cell: c.name(), Device: k.name}
			for _, n := range queueCounts {
				var runs, ofOne []float64
				for _, r := range all {
					iops := r[n][k.name][c.name()]
					runs = append(runs, iops)
					ofOne = append(ofOne, iops/r[queueCounts[0]][k.name][c.name()])
				}
				row.Runs = append(row.Runs, runs)
				row.IOPS = append(row.IOPS, median(runs))
				row.OfOne = append(row.OfOne, median(ofOne))
			}
			s.Rows = append(s.Rows, row)
		}
	}
	return s
}

// table has one line per load and device.
func (s *scaling) table() string {
	var out strings.Builder
	fmt.Fprintf(&out, "Indication only: IOPS by the wall clock with %d emulated CPUs, medians of %d rounds. (In parentheses: median of the rounds' factors to one queue.)\n\n", s.CPUs, s.Rounds)
	fmt.Fprintf(&out, "%-25s %-22s", "load", "device")
	for _, n := range s.Queues {
		fmt.Fprintf(&out, " %16s", fmt.Sprintf("queues: %d", n))
	}
	fmt.Fprintln(&out)
	for _, row := range s.Rows {
		fmt.Fprintf(&out, "%-25s %-22s", row.Cell, row.Device)
		for i := range s.Queues {
			fmt.Fprintf(&out, " %8.0f (%5.2f)", row.IOPS[i], row.OfOne[i])
		}
		fmt.Fprintln(&out)
	}
	return out.String()
}
