package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// fuzzMemory is the data segment that each process of a fuzz target may
	// have. What makes it exceed that is a mistake found.
	fuzzMemory = 3 << 30
	// fuzzMinimize bounds the time that goes into making one input shorter: the
	// default is a minute, for each that reaches something new.
	fuzzMinimize = "2s"
)

// fuzz runs each target of each package in turn.
func fuzz(ctx context.Context, r *report, d string) error {
	out, err := exec.CommandContext(ctx, "go", "test", "-list=^Fuzz", "./...").Output()
	if err != nil {
		return fmt.Errorf("list the fuzz targets: %w\n%s", err, out)
	}
	total := int64(0)
	for _, t := range parseFuzzList(string(out)) {
		n, err := fuzzOne(ctx, r, t, d)
		if total += n; err != nil {
			r.failCheck(t.pkg+"."+t.name, err.Error())
		} else {
			r.passCheck()
		}
		r.note("%10d executions of %s", n, t.name)
	}
	r.note("%10d executions of all targets", total)
	return nil
}

// fuzzOne runs a target and returns how often. A failing input is left in
// testdata/fuzz of its package.
func fuzzOne(ctx context.Context, r *report, t fuzzTarget, d string) (int64, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", "test", "-run=^$", "-fuzz=^"+t.name+"$",
		"-fuzztime="+d, "-fuzzminimizetime="+fuzzMinimize, "-parallel=2", t.pkg)
	cmd.Env = append(os.Environ(), "GOMEMLIMIT="+strconv.Itoa(fuzzMemory/2))
	cmd.Stdout = io.MultiWriter(r.log, &out)
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	// Whatever it starts inherits the limit; that is long after this.
	limit := unix.Rlimit{Cur: fuzzMemory, Max: fuzzMemory}
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_DATA, &limit, nil); err != nil {
		_, _ = cmd.Process.Kill(), cmd.Wait()
		return 0, fmt.Errorf("limit the memory of %s: %w", t.name, err)
	}
	err := cmd.Wait()
	n := executions(out.String())
	switch {
	case err != nil:
		return n, fmt.Errorf("%w\n%s", err, out.Bytes())
	case n == 0:
		return 0, fmt.Errorf("it was never executed\n%s", out.Bytes())
	}
	return n, nil
}

var execsLine = regexp.MustCompile(`(?m)^fuzz: elapsed: .* execs: (\d+) `)

// executions reads how often a target was executed from what go test says.
func executions(out string) (n int64) {
	for _, m := range execsLine.FindAllStringSubmatch(out, -1) {
		n, _ = strconv.ParseInt(m[1], 10, 64) // the last one counts
	}
	return n
}

type fuzzTarget struct{ pkg, name string }

// parseFuzzList reads go test -list: names, then the package they were in.
func parseFuzzList(out string) []fuzzTarget {
	var targets []fuzzTarget
	var names []string
	for _, line := range strings.Split(out, "\n") {
		words := strings.Fields(line)
		switch {
		case len(words) == 1 && strings.HasPrefix(words[0], "Fuzz"):
			names = append(names, words[0])
		case len(words) > 1 && words[0] == "ok":
			for _, n := range names {
				targets = append(targets, fuzzTarget{words[1], n})
			}
			names = nil
		}
	}
	return targets
}
