package main

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
)

// clockRate is what the guest executes in its second, of instructions.
const clockRate = 1_000_000_000

// results are the medians of all boots, as results.json has them.
type results struct {
	Linux string       `json:"linux"`
	Fio   string       `json:"fio"`
	QEMU  string       `json:"qemu"`
	Qzbd  string       `json:"qzbd"`
	Boots int          `json:"boots"`
	Cells []cellResult `json:"cells,omitempty"`

	Scaling *scaling `json:"scaling,omitempty"`
}

type cellResult struct {
	Cell    string         `json:"cell"`
	Must    float64        `json:"must"`          // of ours, × null_blk
	Goal    float64        `json:"goal"`          // of ours, × null_blk
	MustNBD float64        `json:"must-qemu-nbd"` // of ours, × qemu-nbd
	Devices []deviceResult `json:"devices"`
}

type deviceResult struct {
	Device       string    `json:"device"`
	IOPS         float64   `json:"iops"`         // the median
	Instructions float64   `json:"instructions"` // per I/O
	Runs         []float64 `json:"runs"`         // IOPS of each boot
	Spread       float64   `json:"spread"`       // from the least of them to the most, % of the median
	OfNullBlk    float64   `json:"of-null_blk"`  // × null_blk: the median of the boots' ratios
	OfNBD        float64   `json:"of-qemu-nbd"`  // × qemu-nbd, likewise
	Ours         bool      `json:"ours"`
	Verdict      string    `json:"verdict,omitempty"` // how it falls short
}

// newResults sums boots up. All have the same kinds, with the cells that are for
// them.
func newResults(selected []cell, boots []boot) *results {
	if len(boots) == 0 {
		return new(results)
	}
	r := &results{Linux: boots[0].Linux, Fio: boots[0].Fio, QEMU: boots[0].QEMU, Qzbd: boots[0].Qzbd, Boots: len(boots)}
	for _, c := range selected {
		cr := cellResult{Cell: c.name(), Must: c.must, Goal: c.goal, MustNBD: c.mustNBD}
		for _, k := range kinds {
			if _, ok := boots[0].IOPS[k.name][c.name()]; !ok {
				continue
			}
			d := deviceResult{Device: k.name, Ours: k.ours}
			var ofNullBlk, ofNBD []float64
			for _, b := range boots {
				n := b.IOPS[k.name][c.name()]
				d.Runs = append(d.Runs, n)
				ofNullBlk = append(ofNullBlk, n/b.IOPS[nullBlkName][c.name()])
				ofNBD = append(ofNBD, n/b.IOPS[qemuNBDName][c.name()])
			}
			d.IOPS, d.OfNullBlk, d.OfNBD = median(d.Runs), median(ofNullBlk), median(ofNBD)
			d.Instructions = float64(clockRate) / d.IOPS
			d.Spread = 100 * (slices.Max(d.Runs) - slices.Min(d.Runs)) / d.IOPS
			if k.ours {
				d.Verdict = c.verdict(d.OfNullBlk, d.OfNBD)
			}
			cr.Devices = append(cr.Devices, d)
		}
		r.Cells = append(r.Cells, cr)
	}
	return r
}

// median is the middle value, or the mean of the two in the middle.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// widest returns the cell and the device whose runs lie farthest apart.
func (r *results) widest() (cellResult, deviceResult) {
	var cell cellResult
	var device deviceResult
	far := -1.0
	for _, c := range r.Cells {
		d := slices.MaxFunc(c.Devices, func(a, b deviceResult) int { return cmp.Compare(a.Spread, b.Spread) })
		if d.Spread > far {
			cell, device, far = c, d, d.Spread
		}
	}
	return cell, device
}

// count says how many of our lines have the verdict.
func (r *results) count(verdict string) (n int) {
	for _, c := range r.Cells {
		for _, d := range c.Devices {
			if d.Ours && d.Verdict == verdict {
				n++
			}
		}
	}
	return n
}

// save writes results.json, and chart.svg if it has cells.
func (r *results) save(dir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	if len(r.Cells) == 0 {
		return nil
	}
	return os.WriteFile(filepath.Join(dir, "chart.svg"), r.chart(), 0o644)
}
