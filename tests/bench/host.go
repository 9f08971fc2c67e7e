package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/qzbd/qzbd/tests/vm"
)

// host boots the machines that run this program.
type host struct {
	out  string   // directory for what they leave
	args []string // of the program, after its mode
}

// measure has the cells measured in so many boots, and those with several jobs, if
// wanted, in one more.
func (h host) measure(ctx context.Context, one []cell, several bool, boots int) (*results, error) {
	var all []boot
	for i := range boots {
		if len(one) == 0 {
			break
		}
		fmt.Fprintf(os.Stderr, "boot %d of %d\n", i+1, boots)
		var b boot
		if err := h.result(ctx, vm.Options{VirtualClock: true}, modeCells, &b); err != nil {
			return nil, fmt.Errorf("boot %d: %w", i+1, err)
		}
		all = append(all, b)
	}
	r := newResults(one, all)
	if !several {
		return r, nil
	}
	fmt.Fprintln(os.Stderr, "boot with several CPUs")
	var runs []queueRound
	if err := h.result(ctx, vm.Options{CPUs: cpus}, modeQueues, &runs); err != nil {
		return nil, fmt.Errorf("boot with several CPUs: %w", err)
	}
	r.Scaling = newScaling(runs)
	return r, nil
}

// profile has where instructions go printed, with perf.
func (h host) profile(ctx context.Context) error {
	if err := vm.InstallDeps(ctx, os.Stderr, vm.Dependency{Program: "perf", Package: "linux-perf"}); err != nil {
		return err
	}
	return h.run(ctx, vm.Options{VirtualClock: true}, modeProfile)
}

// result has one machine run this program, and reads what it leaves.
func (h host) result(ctx context.Context, o vm.Options, mode string, result any) error {
	file := filepath.Join(h.out, resultFile)
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := h.run(ctx, o, mode); err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, result); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.Remove(file)
}

// run has one machine run this program in a mode.
func (h host) run(ctx context.Context, o vm.Options, mode string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	o.Series, o.Timeout, o.Out = vm.Series7, timeLimit, h.out
	status, err := vm.Run(ctx, o, append([]string{self, mode}, h.args...))
	if err != nil {
		return err
	}
	if status != 0 {
		return fmt.Errorf("exit status %d in the machine", status)
	}
	return nil
}
