package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qzbd/qzbd/tests/vm"
)

// Each test exists, and is left to one kernel only.
func TestWhatOneKernelLeavesToTheOther(t *testing.T) {
	files, err := filepath.Glob("../kernel/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(b)
	}
	left := map[string]vm.Series{}
	for series, names := range leftToTheOther {
		for _, name := range names {
			if other, twice := left[name]; twice {
				t.Errorf("%s runs neither on %s nor on %s", name, series, other)
			}
			left[name] = series
			if !strings.Contains(source.String(), "\nfunc "+name+"(") {
				t.Errorf("there is no %s", name)
			}
		}
	}
}
