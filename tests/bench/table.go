package main

import (
	"fmt"
	"io"
	"strings"
)

// print writes the tables of what was measured.
func (r *results) print(w io.Writer) error {
	var parts []string
	if len(r.Cells) > 0 {
		parts = append(parts, r.table())
	}
	if r.Scaling != nil {
		parts = append(parts, r.Scaling.table())
	}
	_, err := io.WriteString(w, strings.Join(parts, "\n"))
	return err
}

// table has one line per cell and device.
func (r *results) table() string {
	var s strings.Builder
	fmt.Fprintf(&s, "Linux %s, %s, %s, %s; boots: %d. IOPS = 10⁹ / instructions of the guest per I/O.\n\n", r.Linux, r.Fio, r.QEMU, r.Qzbd, r.Boots)
	fmt.Fprintf(&s, "%-17s %-27s %7s %8s %11s %5s %5s %11s %5s\n", "cell", "device", "IOPS", "instr.", "× null_blk", "must", "goal", "× qemu-nbd", "must")
	for _, c := range r.Cells {
		name := c.Cell
		for _, d := range c.Devices {
			line := fmt.Sprintf("%-17s %-27s %7.0f %8.0f %11.2f ", name, d.Device, d.IOPS, d.Instructions, d.OfNullBlk)
			if d.Ours {
				line += fmt.Sprintf("%5.2f %5.2f %11.2f %5.1f  %s", c.Must, c.Goal, d.OfNBD, c.MustNBD, d.Verdict)
			} else {
				line += fmt.Sprintf("%11s %11.2f", "", d.OfNBD)
			}
			fmt.Fprintln(&s, strings.TrimRight(line, " "))
			name = ""
		}
	}
	met, belowGoal, belowMust := r.count(""), r.count(belowGoalMark), r.count(belowMustMark)
	fmt.Fprintf(&s, "\nOf %d lines with a must %d meet it, and %d the goal.", met+belowGoal+belowMust, met+belowGoal, met)
	if r.Boots > 1 {
		c, d := r.widest()
		fmt.Fprintf(&s, " Farthest apart between boots: %.1f%% (%s, %s).", d.Spread, c.Cell, d.Device)
	}
	fmt.Fprintln(&s)
	return s.String()
}
