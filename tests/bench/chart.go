package main

import (
	"bytes"
	"fmt"
	"html"
)

// Lengths of the chart, in SVG's user units (pixels).
const (
	chartWidth  = 720
	chartLeft   = 160 // of the axis
	chartRight  = 640 // of the longest bar; its figure comes after it
	barHeight   = 14
	legendLine  = 16
	legendEntry = 176 // wide; as many to a line as there is room for
	groupMargin = 14
)

// colors of the bars, by kind: gray of the peers, brown of what ours cannot do without, blue
// of ours, green of ours on a disk.
var colors = map[string]string{
	nullBlkName: "#8a8a8a", qemuNBDName: "#c4c4c4",
	plainFreshName: "#e3cf95", plainAllocatedName: "#c9a227", ublkNullName: "#8a6914",
	freshName: "#7fb2e5", allocatedName: "#2f6db5",
	ext4Name: "#5c9a5c", ext4CopyName: "#bcd9bc", ext4DirectName: "#2f6b4f", ext4DirectCopyName: "#9cc4b0",
}

// chart draws the IOPS of all devices as bars, × null_blk, and across those of
// ours what they must reach and what is the goal.
func (r *results) chart() []byte {
	longest := 0.0
	for _, c := range r.Cells {
		longest = max(longest, c.Goal)
		for _, d := range c.Devices {
			longest = max(longest, d.OfNullBlk)
		}
	}
	x := func(ratio float64) float64 { return chartLeft + ratio/longest*(chartRight-chartLeft) }

	const perLine = chartWidth / legendEntry
	top := 28 + (len(kinds)+perLine-1)/perLine*legendLine
	var bars bytes.Buffer
	y := top
	for _, c := range r.Cells {
		fmt.Fprintf(&bars, "<text x='8' y='%d'>%s</text>\n", y+barHeight-3, html.EscapeString(c.Cell))
		for _, d := range c.Devices {
			fmt.Fprintf(&bars, "<rect x='%d' y='%d' width='%.1f' height='%d' fill='%s'/>\n",
				chartLeft, y, x(d.OfNullBlk)-chartLeft, barHeight-2, colors[d.Device])
			end := d.OfNullBlk
			if d.Ours {
				end = max(end, c.Goal)
				for _, mark := range []struct {
					at   float64
					dash string
				}{{c.Must, "none"}, {c.Goal, "2 2"}} {
					fmt.Fprintf(&bars, "<line x1='%.1f' x2='%.1f' y1='%d' y2='%d' stroke='black' stroke-dasharray='%s'/>\n",
						x(mark.at), x(mark.at), y-1, y+barHeight-1, mark.dash)
				}
			}
			fmt.Fprintf(&bars, "<text x='%.1f' y='%d'>%.0f</text>\n", x(end)+4, y+barHeight-4, d.IOPS)
			y += barHeight
		}
		y += groupMargin
	}

	var svg bytes.Buffer
	fmt.Fprintf(&svg, "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' font-family='sans-serif' font-size='11'>\n", chartWidth, y)
	fmt.Fprintln(&svg, "<rect width='100%' height='100%' fill='white'/>")
	fmt.Fprintln(&svg, "<text x='8' y='16'>IOPS × null_blk (the figures: IOPS); line: must, dashed: goal</text>")
	for i, k := range kinds {
		left, line := 8+i%perLine*legendEntry, 24+i/perLine*legendLine
		fmt.Fprintf(&svg, "<rect x='%d' y='%d' width='10' height='10' fill='%s'/>\n", left, line, colors[k.name])
		fmt.Fprintf(&svg, "<text x='%d' y='%d'>%s</text>\n", left+14, line+9, html.EscapeString(k.name))
	}
	svg.Write(bars.Bytes())
	fmt.Fprintln(&svg, "</svg>")
	return svg.Bytes()
}
