// Command all is what "make test" runs: every layer of tests, one stage each,
// and at the end a table and the line "N passed, M failed".
//
// Stages run in two lanes side by side, one of which is mostly busy with
// emulated machines. What a stage prints goes to bin/test/STAGE.log; the
// output of failed tests is shown in full.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stage is one row of the table.
type stage struct {
	name string
	what string
	run  func(context.Context, *report) error
}

// outcome is what became of a stage.
type outcome struct {
	stage
	ran  bool
	took time.Duration
	*report
}

// The plan: first what everything needs, then two lanes, and of the rest, the
// longest first, whichever lane is free takes the next, so that both end at about
// the same time. Kernels are fetched by whoever needs them first.
var (
	first = []string{"deps", "build"}
	lanes = [][]string{
		{"kernels", "kernel-7"},
		{"lint", "unit", "sim", "mutants", "race", "kernel-6.12"},
	}
	rest = []string{"powercut", "systemd-7", "copies-7", "systemd-6.12", "machine"}
)

func main() {
	only := flag.String("only", "", "comma-separated `stages` to run, in this order")
	fuzzTime := flag.String("fuzztime", "20s", "`duration` of each target of the fuzz stage")
	longTime := flag.Duration("longtime", 30*time.Minute, "`duration` of each test of the long stages")
	serial := flag.Bool("serial", false, "one stage at a time")
	thorough := flag.Bool("thorough", false, "the kernel tests do everything in every way on each kernel")
	run := flag.String("run", "", "only the kernel and long tests that match the `regexp`")
	cuts := flag.Int("cuts", 20000, "power `cuts` of the sim stage")
	seed := flag.Uint64("seed", 1, "first `seed` of the sim stage and seed of the kills and upgrades stages, which repeats what they found")
	upgrades := flag.Int("upgrades", 20, "how often each test of the upgrades stages upgrades a server")
	kills := flag.Int("kills", 50, "how often each test of the kills stages kills a server")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: all [flags]")
		flag.PrintDefaults()
		fmt.Fprintln(os.Stderr, "stages:")
		for _, s := range stages("", 0, kernelRun{}, simulated{}, disturbed{}, disturbed{}) {
			fmt.Fprintf(os.Stderr, "  %-12s %s\n", s.name, s.what)
		}
	}
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := enterRoot(); err != nil {
		fmt.Fprintln(os.Stderr, "all:", err)
		os.Exit(2)
	}
	d := &driver{stages: stages(*fuzzTime, *longTime, kernelRun{tests: *run, thorough: *thorough}, simulated{*cuts, *seed}, killed(*kills, *seed), upgraded(*upgrades, *seed)), out: os.Stdout}
	if err := d.plan(*only, *serial); err != nil {
		fmt.Fprintln(os.Stderr, "all:", err)
		os.Exit(2)
	}
	d.runAll(ctx)
	if !d.summary() {
		os.Exit(1)
	}
}

// enterRoot goes to the module's root and makes sure that the go commands of
// all stages can link: giouring needs the flag.
func enterRoot() error {
	out, err := exec.Command("go", "env", "GOMOD", "GOFLAGS").Output()
	if err != nil {
		return fmt.Errorf("go env: %w", err)
	}
	mod, flags, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if !strings.Contains(flags, "checklinkname") {
		os.Setenv("GOFLAGS", strings.TrimSpace(flags+" -ldflags=-checklinkname=0"))
	}
	return os.Chdir(filepath.Dir(mod))
}

type driver struct {
	stages   []stage
	first    []*outcome
	lanes    [][]*outcome
	rest     []*outcome
	outcomes []*outcome // in the order of the table

	mu  sync.Mutex // keeps the lanes' lines apart
	out *os.File
}

// plan decides what runs.
func (d *driver) plan(only string, serial bool) error {
	pick := func(names []string) ([]*outcome, error) {
		var list []*outcome
		for _, n := range names {
			i := slices.IndexFunc(d.stages, func(s stage) bool { return s.name == n })
			if i < 0 {
				return nil, fmt.Errorf("%s: no such stage, see -help", n)
			}
			o := &outcome{stage: d.stages[i], report: newReport()}
			list = append(list, o)
			d.outcomes = append(d.outcomes, o)
		}
		return list, nil
	}
	head, side, tail := first, lanes, rest
	switch {
	case only != "":
		head, side, tail = strings.Split(only, ","), nil, nil
	case serial:
		head, side, tail = slices.Concat(first, slices.Concat(lanes...), rest), nil, nil
	}
	var err error
	if d.first, err = pick(head); err != nil {
		return err
	}
	for _, names := range side {
		lane, err := pick(names)
		if err != nil {
			return err
		}
		d.lanes = append(d.lanes, lane)
	}
	d.rest, err = pick(tail)
	return err
}

func (d *driver) runAll(ctx context.Context) {
	for _, o := range d.first {
		d.runStage(ctx, o)
		// Without tools or a binary the rest would only repeat the reason.
		if slices.Contains(first, o.name) && !o.ok() {
			return
		}
	}
	rest := make(chan *outcome, len(d.rest))
	for _, o := range d.rest {
		rest <- o
	}
	close(rest)
	var wg sync.WaitGroup
	for _, lane := range d.lanes {
		wg.Go(func() {
			for _, o := range lane {
				d.runStage(ctx, o)
			}
			for o := range rest {
				d.runStage(ctx, o)
			}
		})
	}
	wg.Wait()
}

func (d *driver) runStage(ctx context.Context, o *outcome) {
	if ctx.Err() != nil {
		return
	}
	log, err := createLog(o.name)
	if err != nil {
		o.failCheck(o.name, err.Error())
		return
	}
	defer log.Close()
	o.log = log
	d.say("=== %s: %s", o.name, o.what)
	began := time.Now()
	err = o.run(ctx, o.report)
	o.ran, o.took = true, time.Since(began)
	o.close()
	if err != nil && o.ok() {
		// Something went wrong around the tests; with failed tests, that is
		// what they have already said.
		o.failCheck(o.name, err.Error())
	} else if err != nil {
		fmt.Fprintf(log, "%v\n", err)
	}
	for _, f := range o.failures {
		d.say("--- FAIL %s\n%s", f.name, indent(f.output))
	}
	if err != nil && strings.Contains(err.Error(), "\npanic: ") {
		// test2json has not seen it: panics go to stderr.
		d.say("%s", indent(err.Error()))
	}
	for _, line := range o.notes {
		d.say("    %s", line)
	}
	d.say("=== %s: %s in %s", o.name, o.verdict(), round(o.took))
}

func createLog(name string) (*os.File, error) {
	dir := filepath.Join("bin", "test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return os.Create(filepath.Join(dir, name+".log"))
}

func (d *driver) say(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fmt.Fprintf(d.out, format+"\n", args...)
}

// summary prints the table and the last line, and reports whether all is well.
func (d *driver) summary() bool {
	passed, failed := 0, 0
	fmt.Fprintf(d.out, "\n%-12s  %-6s  %7s  %6s  %8s\n", "stage", "result", "passed", "failed", "time")
	for _, o := range d.outcomes {
		result := "ok"
		switch {
		case !o.ok():
			result = "FAIL"
		case !o.ran:
			// Not run is not passed: something before it went wrong.
			result = "not run"
			o.failCheck(o.name, "not run")
		}
		fmt.Fprintf(d.out, "%-12s  %-6s  %7d  %6d  %8s\n", o.name, result, o.passed, len(o.failures), round(o.took))
		passed += o.passed
		failed += len(o.failures)
	}
	if failed > 0 {
		fmt.Fprintln(d.out, "\nfailed:")
		for _, o := range d.outcomes {
			for _, f := range o.failures {
				fmt.Fprintf(d.out, "  %s: %s\n", o.name, f.name)
				for _, line := range f.gist() {
					fmt.Fprintf(d.out, "      %s\n", line)
				}
			}
		}
		fmt.Fprintln(d.out, "logs are in bin/test")
	}
	fmt.Fprintf(d.out, "\n%d passed, %d failed\n", passed, failed)
	return failed == 0
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ")
}
