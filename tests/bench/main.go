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
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/qzbd/qzbd/tests/vm"
)

// guestMode is the first argument of the program inside the machine.
const guestMode = "guest"

// bootFile is what the program inside leaves in $QZBD_VM_OUT.
const bootFile = "boot.json"

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
	inside := len(args) > 0 && args[0] == guestMode
	if inside {
		args = args[1:]
	}
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	boots := flags.Int("boots", 3, "`number` of boots to take the median of")
	out := flags.String("out", "bin/bench", "`directory` of results.json and chart.svg")
	program := flags.String("qzbd", "bin/qzbd", "the `program` to be measured")
	only := flags.String("cells", "", "only the cells that match the `regexp`")
	flags.Parse(args)
	if *boots < 1 || flags.NArg() > 0 {
		return errors.New("want at least one boot and no arguments, see -help")
	}
	selected, err := selectCells(*only)
	if err != nil {
		return err
	}
	if inside {
		return measure(selected, *program)
	}
	// The machine's working directory may be another one.
	path, err := filepath.Abs(*program)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("program: %w: build it with make", err)
	}
	if err := vm.InstallDeps(ctx, os.Stderr); err != nil {
		return err
	}
	var all []boot
	for i := range *boots {
		fmt.Fprintf(os.Stderr, "boot %d of %d\n", i+1, *boots)
		b, err := runBoot(ctx, *out, []string{guestMode, "-cells", *only, "-qzbd", path})
		if err != nil {
			return fmt.Errorf("boot %d: %w", i+1, err)
		}
		all = append(all, b)
	}
	r := newResults(selected, all)
	if err := r.save(*out); err != nil {
		return err
	}
	if err := r.print(os.Stdout); err != nil {
		return err
	}
	if _, belowMust, _ := r.short(); belowMust > 0 {
		return fmt.Errorf("%d lines of qzbd are below what they must reach", belowMust)
	}
	return nil
}

// selectCells returns the cells whose names match.
func selectCells(only string) ([]cell, error) {
	re, err := regexp.Compile(only)
	if err != nil {
		return nil, fmt.Errorf("cells: %w", err)
	}
	var list []cell
	for _, c := range cells {
		if re.MatchString(c.name()) {
			list = append(list, c)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no cell matches %q: the names are like %q", only, cells[0].name())
	}
	return list, nil
}

// runBoot has one machine run this program with args.
func runBoot(ctx context.Context, out string, args []string) (boot, error) {
	var b boot
	self, err := os.Executable()
	if err != nil {
		return b, err
	}
	file := filepath.Join(out, bootFile)
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return b, err
	}
	status, err := vm.Run(ctx, vm.Options{Series: vm.Series7, VirtualClock: true, Timeout: timeLimit, Out: out},
		append([]string{self}, args...))
	if err != nil {
		return b, err
	}
	if status != 0 {
		return b, fmt.Errorf("exit status %d in the machine", status)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return b, err
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return b, fmt.Errorf("%s: %w", file, err)
	}
	return b, os.Remove(file)
}
