// Command bench measures how fast devices are, in a way that repeats on any
// machine: fio runs on null_blk, on qemu-nbd and on qzbd in a virtual machine
// whose clock advances by 1 ns with each instruction (tests/vm,
// Options.VirtualClock). So fio's IOPS are 10⁹ / (instructions per I/O). That
// knows nothing of caches, of what a change between user space and kernel
// costs beyond its instructions, or of several CPUs.
//
// Every boot measures all cells on all devices, each write cell on a device of
// its own, after a short pass that is thrown away. Figures are the medians of
// the boots. The table goes to stdout, results.json and chart.svg to the
// directory of -out. The exit status is 1 if a figure is below what it must be.
//
// What is to be measured with several queues takes several CPUs, and so a machine
// with an ordinary clock, once; -profile shows the functions behind the figures.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/qzbd/qzbd/tests/vm"
)

// Modes of the program inside the machine, its first argument.
const (
	modeCells   = "guest-cells"
	modeQueues  = "guest-queues"
	modeProfile = "guest-profile"
)

// resultFile is what the program inside leaves in $QZBD_VM_OUT.
const resultFile = "boot.json"

// timeLimit of a boot says that something hangs, never that something is slow.
const timeLimit = 2 * time.Hour

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	mode := ""
	if len(args) > 0 && strings.HasPrefix(args[0], "guest-") {
		mode, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	boots := flags.Int("boots", 3, "`number` of boots to take the median of")
	out := flags.String("out", "bin/bench", "`directory` of results.json and chart.svg")
	program := flags.String("qzbd", "bin/qzbd", "the `program` to be measured")
	only := flags.String("cells", "", "only the cells that match the `regexp`")
	profile := flags.Bool("profile", false, "instead of measuring, print where the guest's instructions go")
	flags.Parse(args)
	if *boots < 1 || flags.NArg() > 0 {
		return fmt.Errorf("-boots=%d, arguments %q: want at least one boot, and no arguments", *boots, flags.Args())
	}
	re, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("cells: %w", err)
	}
	one, several := selectCells(cells, re), len(selectCells(parallel, re)) > 0
	if len(one) == 0 && !several {
		var names []string
		for _, c := range slices.Concat(cells, parallel) {
			names = append(names, c.name())
		}
		return fmt.Errorf("no cell matches %q: there are %q", *only, names)
	}
	if mode != "" {
		b, err := newBench(*program)
		if err != nil {
			return err
		}
		switch mode {
		case modeCells:
			return b.measure(one)
		case modeQueues:
			return b.measureQueues()
		case modeProfile:
			return b.profile(one)
		}
		return fmt.Errorf("unknown mode %q", mode)
	}
	// The machine's working directory may be another one.
	path, err := filepath.Abs(*program)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("program: %w: build it with make", err)
	}
	h := host{out: *out, args: []string{"-cells", *only, "-qzbd", path}}
	if *profile {
		if len(one) == 0 {
			return fmt.Errorf("only cells with one queue are profiled: %q names none, take one like %q", *only, cells[0].name())
		}
		return h.profile(ctx)
	}
	if err := vm.InstallDeps(ctx, os.Stderr); err != nil {
		return err
	}
	r, err := h.measure(ctx, one, several, *boots)
	if err != nil {
		return err
	}
	if err := r.save(*out); err != nil {
		return err
	}
	if err := r.print(os.Stdout); err != nil {
		return err
	}
	if belowMust := r.count(belowMustMark); belowMust > 0 {
		return fmt.Errorf("%d lines of qzbd are below what they must reach", belowMust)
	}
	return nil
}
