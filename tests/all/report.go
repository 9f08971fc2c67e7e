package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"
)

// allowedSkips lists tests that may skip, by "package.Test", with the reason.
// Every other skip is a failure: the machines are made to have what the tests
// need, so a skip means that something went missing.
var allowedSkips = map[string]string{}

// failure is a test that failed and what it printed.
type failure struct {
	name, output string
}

// messageStart is how the testing package begins what a test says.
var messageStart = regexp.MustCompile(`^\s*\w+\.go:\d+: `)

// gist returns the beginnings of the last few things that the test said, for where
// there is no room for all of it.
func (f failure) gist() []string {
	const messages, lines, width = 4, 3, 160
	said := [][]string{nil}
	for line := range strings.Lines(f.output) {
		start := messageStart.MatchString(line)
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ") || strings.HasPrefix(line, "testing.go:") {
			continue
		}
		if start {
			said = append(said, nil)
			said = said[max(0, len(said)-messages):]
		}
		last := &said[len(said)-1]
		if len(*last) < lines {
			*last = append(*last, printable(line, width))
		}
	}
	return slices.Concat(said...)
}

// printable returns at most width characters of a line, without control characters.
func printable(line string, width int) string {
	line = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '·'
		}
		return r
	}, strings.ToValidUTF8(line[:min(len(line), 4*width)], "·"))
	if r := []rune(line); len(r) > width {
		return string(r[:width])
	}
	return line
}

// report collects the results of one stage. Only leaves count: a test with
// subtests is no test of its own unless it fails where they pass.
type report struct {
	mu       sync.Mutex
	log      io.Writer
	passed   int
	failures []failure
	notes    []string // lines for whoever ran the stage

	tests map[string]*test // by package and name
}

type test struct {
	result string // pass, fail, skip, or empty while it runs
	output strings.Builder
	parent bool // has subtests
	pkg    bool // is a package, not a test
}

// event is a line of go tool test2json.
type event struct {
	Action, Package, ImportPath, Test, Output, FailedBuild string
}

func newReport() *report {
	return &report{tests: make(map[string]*test), log: io.Discard}
}

// passCheck counts something that is no Go test.
func (r *report) passCheck() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.passed++
}

// failCheck counts a failure outside of a Go test.
func (r *report) failCheck(name, output string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, failure{name, output})
	fmt.Fprintf(r.log, "FAIL %s\n%s\n", name, output)
}

// note leaves a line that is shown when the stage has ended.
func (r *report) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

func (r *report) ok() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failures) == 0
}

func (r *report) verdict() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case len(r.failures) > 0:
		return fmt.Sprintf("FAILED, %d passed, %d failed", r.passed, len(r.failures))
	case r.passed > 0:
		return fmt.Sprintf("ok, %d passed", r.passed)
	}
	return "ok"
}

// read takes the events of a test run, to the end of the stream.
func (r *report) read(events io.Reader) error {
	br := bufio.NewReader(events)
	for {
		line, err := br.ReadBytes('\n')
		if len(line) > 0 {
			r.event(line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) event(line []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var e event
	if json.Unmarshal(line, &e) != nil {
		// The go command itself has something to say.
		r.log.Write(line)
		r.test("go").output.Write(line)
		return
	}
	io.WriteString(r.log, e.Output)
	name := e.Package
	if name == "" {
		name, _, _ = strings.Cut(e.ImportPath, " ") // "pkg [pkg.test]"
	}
	if e.Test != "" {
		for parent := e.Test; ; {
			i := strings.LastIndexByte(parent, '/')
			if i < 0 {
				break
			}
			parent = parent[:i]
			r.test(name + "." + parent).parent = true
		}
		name += "." + e.Test
	} else {
		r.test(name).pkg = true
	}
	t := r.test(name)
	switch e.Action {
	case "output", "build-output":
		t.output.WriteString(e.Output)
	case "pass", "fail", "skip":
		t.result = e.Action
	case "build-fail":
		t.result = "fail"
	}
}

func (r *report) test(name string) *test {
	t := r.tests[name]
	if t == nil {
		t = new(test)
		r.tests[name] = t
	}
	return t
}

// close turns the events into passes and failures.
func (r *report) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	failedBelow := func(name string, t *test) bool {
		if name += "/"; t.pkg {
			name = strings.TrimSuffix(name, "/") + "."
		}
		for n, t := range r.tests {
			if strings.HasPrefix(n, name) && t.result != "pass" && t.result != "skip" {
				return true
			}
		}
		return false
	}
	for _, name := range slices.Sorted(maps.Keys(r.tests)) {
		t := r.tests[name]
		fail := func(why string) {
			r.failures = append(r.failures, failure{name, t.output.String() + why})
		}
		switch {
		case name == "go":
			if strings.TrimSpace(t.output.String()) != "" && !r.anyResult() {
				fail("")
			}
		case (t.parent || t.pkg) && t.result == "fail":
			if !failedBelow(name, t) {
				fail("") // its own words: a panic, a failed build, a check after the subtests
			}
		case t.parent || t.pkg:
		case t.result == "pass":
			r.passed++
		case t.result == "fail":
			fail("")
		case t.result == "skip" && allowedSkips[name] == "":
			fail("skipped, but the environment is made to have what it needs\n")
		case t.result == "":
			fail("did not finish\n")
		}
	}
}

// anyResult reports whether a test ran at all.
func (r *report) anyResult() bool {
	for name, t := range r.tests {
		if name != "go" && t.result != "" {
			return true
		}
	}
	return false
}
