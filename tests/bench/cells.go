package main

import (
	"fmt"
	"regexp"
	"slices"
)

// cell is one load, and how fast our device is to be under it.
type cell struct {
	rw    string // as fio has it
	bs    string
	depth int
	jobs  int // at once, each with zones and a CPU of its own; 0: one

	// Factors of the IOPS of null_blk and of qemu-nbd in the same boot.
	must    float64 // about what a plain file through ublk reaches, in C++
	goal    float64 // what the kernel's own zoned devices on files reach, or that, whichever is more
	mustNBD float64
}

var cells = []cell{
	{rw: "write", bs: "4k", depth: 1, must: 0.25, goal: 0.42, mustNBD: 2},
	{rw: "write", bs: "4k", depth: 32, must: 0.65, goal: 0.89, mustNBD: 2},
	{rw: "write", bs: "64k", depth: 32, must: 1.0, goal: 1.32, mustNBD: 2},
	{rw: "write", bs: "1M", depth: 32, must: 1.5, goal: 2.1, mustNBD: 2},
	{rw: "randread", bs: "4k", depth: 1, must: 0.22, goal: 0.35, mustNBD: 1.4},
	{rw: "randread", bs: "4k", depth: 32, must: 0.45, goal: 0.60, mustNBD: 2},
}

// parallel are those to be measured with several queues, all of them or none.
var parallel = []cell{
	{rw: "write", bs: "4k", depth: 32, jobs: cpus},
	{rw: "randread", bs: "4k", depth: 32, jobs: cpus},
}

func (c cell) name() string {
	name := fmt.Sprintf("%s %s QD%d", c.bs, c.rw, c.depth)
	if c.jobs > 0 {
		name += fmt.Sprintf(", %d jobs", c.jobs)
	}
	return name
}

// reads says that the device has to be filled before.
func (c cell) reads() bool { return c.rw == "randread" }

func (c cell) writes() bool { return !c.reads() }

// fioArgs are those of the cell on a device, for so much of the guest's time.
// Writes end when the device is full: what comes after a zone's reset, of an
// allocated image, is allocated again.
func (c cell) fioArgs(runtime string) []string {
	args := []string{
		"--rw=" + c.rw, "--bs=" + c.bs, fmt.Sprintf("--iodepth=%d", c.depth),
		"--runtime=" + runtime, "--randrepeat=1", "--norandommap",
	}
	if c.jobs == 0 {
		args = append(args, "--size=100%")
		if c.reads() {
			args = append(args, "--time_based")
		}
		return args
	}
	args = append(args, "--time_based")
	share := fmt.Sprintf("%d%%", 100/c.jobs)
	return append(args, fmt.Sprintf("--numjobs=%d", c.jobs), "--group_reporting",
		"--size="+share, "--offset_increment="+share,
		fmt.Sprintf("--cpus_allowed=0-%d", c.jobs-1), "--cpus_allowed_policy=split")
}

// selectCells returns those whose names match.
func selectCells(of []cell, only *regexp.Regexp) []cell {
	return slices.DeleteFunc(slices.Clone(of), func(c cell) bool { return !only.MatchString(c.name()) })
}

// Marks of a device that falls short under a load.
const (
	belowMustMark = "below must"
	belowGoalMark = "below goal"
)

// verdict says how a device of ours falls short under the load, or nothing.
// The factors are those of its IOPS.
func (c cell) verdict(ofNullBlk, ofNBD float64) string {
	switch {
	case ofNullBlk < c.must || ofNBD < c.mustNBD:
		return belowMustMark
	case ofNullBlk < c.goal:
		return belowGoalMark
	}
	return ""
}
