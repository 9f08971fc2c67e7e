package main

import (
	"slices"
	"strings"
	"testing"
)

func TestReportCountsLeavesAndRefusesSkips(t *testing.T) {
	for _, c := range []struct {
		name, events string
		passed       int
		failed       []string
	}{
		{"a pass", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"pass","Package":"p"}`, 1, nil},
		{"subtests count, their parent does not", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"pass","Package":"p","Test":"A/y"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"pass","Package":"p"}`, 2, nil},
		{"a failed subtest is one failure", `{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"fail","Package":"p","Test":"A/y"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}`, 1, []string{"p.A/y"}},
		{"a parent can fail alone", `{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}`, 1, []string{"p.A"}},
		{"a skip fails", `{"Action":"skip","Package":"p","Test":"A"}
{"Action":"pass","Package":"p"}`, 0, []string{"p.A"}},
		{"a package without tests is nothing", `{"Action":"skip","Package":"p"}`, 0, nil},
		{"a test without an end fails", `{"Action":"run","Package":"p","Test":"A"}
{"Action":"fail","Package":"p"}`, 0, []string{"p.A"}},
		{"a build failure fails", `{"ImportPath":"p [p.test]","Action":"build-output","Output":"p/x.go:1: no\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}
{"Action":"fail","Package":"p","FailedBuild":"p [p.test]"}`, 0, []string{"p"}},
		{"words of the go command alone fail", "no required module provides package\n", 0, []string{"go"}},
	} {
		r := newReport()
		if err := r.read(strings.NewReader(c.events)); err != nil {
			t.Fatal(err)
		}
		r.close()
		var failed []string
		for _, f := range r.failures {
			failed = append(failed, f.name)
		}
		if r.passed != c.passed || !slices.Equal(failed, c.failed) {
			t.Errorf("%s: got %d passed and %v failed, want %d and %v", c.name, r.passed, failed, c.passed, c.failed)
		}
	}
}

func TestFuzzListNamesPackages(t *testing.T) {
	got := parseFuzzList("FuzzA\nFuzzB\nok  \tm/x\t0.01s\n?   \tm/y\t[no test files]\nFuzzC\nok  \tm/z\t0.01s\n")
	want := []fuzzTarget{{"m/x", "FuzzA"}, {"m/x", "FuzzB"}, {"m/z", "FuzzC"}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestExecutionsAreReadFromTheLastLine(t *testing.T) {
	out := "fuzz: elapsed: 0s, gathering baseline coverage: 0/14 completed\n" +
		"fuzz: elapsed: 3s, execs: 325 (108/sec), new interesting: 0 (total: 202)\n" +
		"fuzz: elapsed: 6s, execs: 1061 (245/sec), new interesting: 1 (total: 203)\nPASS\n"
	if n := executions(out); n != 1061 {
		t.Errorf("%d, want 1061", n)
	}
	if n := executions("no fuzz targets\n"); n != 0 {
		t.Errorf("%d, want 0", n)
	}
}

func TestCrashStatesAreReadFromTheCensus(t *testing.T) {
	out := "    cuts_test.go:5:      1424 clusters\n    cuts_test.go:5:     20123 crash states\n    cuts_test.go:5:  3 cuts\n"
	if n := crashStates(out); n != 20123 {
		t.Errorf("%d, want 20123", n)
	}
}

func TestGistIsTheLastThingsSaid(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for _, c := range []struct {
		name, output string
		want         []string
	}{
		{"nothing", "", nil},
		{"no message of a test", "=== RUN   TestA\nno such file\n\n--- FAIL: TestA (0.00s)\n", []string{"no such file"}},
		{"the last messages", "=== RUN   TestA\n    a_test.go:1: -seed=4\n    a_test.go:5: boot\n    a_test.go:6: qzbd attach\n    a_test.go:7: status 1, <nil>\n        worker: sync: no\n    a_test.go:8: over\n--- FAIL: TestA (0.00s)\n",
			[]string{"a_test.go:5: boot", "a_test.go:6: qzbd attach", "a_test.go:7: status 1, <nil>", "worker: sync: no", "a_test.go:8: over"}},
		{"much", "    a_test.go:7: a\n" + long + "\nb\nc\nd\n", []string{"a_test.go:7: a", long[:160], "b"}},
		{"what is no text", "a_test.go:7: é\x1b[31m\xff\n", []string{"a_test.go:7: é·[31m·"}},
		{"a race", "WARNING: DATA RACE\nRead at\n    testing.go:1617: race detected during execution of test\n", []string{"WARNING: DATA RACE", "Read at"}},
	} {
		if got := (failure{"p.A", c.output}).gist(); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}
