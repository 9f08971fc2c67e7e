package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// profiled says that a kind is to be looked into: ours, and what it is compared to.
func profiled(k kind) bool {
	return slices.Contains([]string{nullBlkName, ublkNullName, allocatedName}, k.name)
}

// sampleEvery is after how many instructions perf looks where the CPU is: a
// prime, so that no loop keeps step. An interrupt has to be possible: what a
// function does without it counts for the one that allows it again.
const sampleEvery = 49_999

// profile prints where the instructions of the cells go.
func (b *bench) profile(selected []cell) error {
	if err := b.bring("perf", "perf"); err != nil {
		return err
	}
	for _, c := range selected {
		for _, k := range kinds {
			if !profiled(k) {
				continue
			}
			// As measureKind: warmed up on a device that is thrown away.
			warm := func(d *device) error {
				_, err := b.fio(k, d, c.fioArgs(warmUp)...)
				return err
			}
			err := b.with(k, warm)
			if err == nil {
				err = b.with(k, func(d *device) error { return b.profileCell(k, d, c) })
			}
			if err != nil {
				return fmt.Errorf("%s, %s: %w", c.name(), k.name, err)
			}
		}
	}
	return nil
}

// profileCell runs a cell under perf.
func (b *bench) profileCell(k kind, d *device, c cell) error {
	if c.reads() {
		if err := b.fill(k, d, measured); err != nil {
			return err
		}
	}
	perf, data := b.path("perf"), b.path("perf.data")
	record := []string{"record", "--quiet", "--all-cpus", "--event=cpu-clock", fmt.Sprintf("--count=%d", sampleEvery), "--output=" + data, "--"}
	if err := b.run(perf, append(record, b.fioCommand(k, d, c.fioArgs(measured)...)...)...); err != nil {
		return err
	}
	iops, err := b.fioIOPS()
	if err != nil {
		return err
	}
	instructions := clockRate / iops
	fmt.Printf("== %s, %s: %.0f instructions per I/O, perf's own among them\n", c.name(), k.name, instructions)
	fmt.Println("By program and by function, of 0.8% and more. What runs with interrupts off counts for the function that allows them again;")
	fmt.Println("swapper is when nobody ran, as at the start and the end of fio.")
	for _, by := range []string{"comm,dso", "comm,symbol"} {
		report, err := b.output(perf, "report", "--stdio", "--quiet", "--input="+data, "--sort="+by, "--percent-limit=0.8", "--field-separator=|")
		if err != nil {
			return err
		}
		fmt.Println(shares(report, instructions))
	}
	return nil
}

// shares turns lines of perf, "12.34%|process|function" and more, into
// instructions of an I/O.
func shares(report string, instructions float64) string {
	var s strings.Builder
	for line := range strings.Lines(report) {
		fields := strings.Split(strings.TrimSpace(line), "|")
		percent, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(fields[0]), "%"), 64)
		if err != nil || len(fields) < 3 {
			continue // empty lines
		}
		fmt.Fprintf(&s, "%8.0f  %-16s %s\n", percent/100*instructions, strings.TrimSpace(fields[1]), strings.TrimSpace(fields[2]))
	}
	return s.String()
}
