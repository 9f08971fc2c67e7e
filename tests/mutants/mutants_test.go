//go:build mutants

package mutants

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

var cutsFlag = flag.Int("cuts", 20000, "power cuts within which a mutant has to be found")

// fewest is the number of patches below which some must have been lost.
const fewest = 10

var (
	target = regexp.MustCompile(`(?m)^\+\+\+ b/(.*)$`)
	failed = regexp.MustCompile(`(?m)^ +--- FAIL: (\S+) `)
)

func TestTheSimulationFindsEveryMutant(t *testing.T) {
	patches, err := filepath.Glob("*.patch")
	if err != nil {
		t.Fatal(err)
	}
	if len(patches) < fewest {
		t.Fatalf("%d patches, want at least %d", len(patches), fewest)
	}
	for _, p := range patches {
		t.Run(strings.TrimSuffix(p, ".patch"), func(t *testing.T) { kill(t, p) })
	}
}

// simulations are the tests that drive the whole engine, and the image alone,
// through power cuts.
var simulations = [][]string{
	{"-run=Cuts", "./qcow2"},
	{"-run=PowerCuts|ActiveSet", "./tests/sim", "-cuts="},
}

// kill runs the simulations on the patched code until one fails.
func kill(t *testing.T, patch string) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	overlay := mutate(t, root, patch)
	for _, sim := range simulations {
		args := append([]string{"test", "-count=1", "-timeout=15m", "-overlay=" + overlay}, sim...)
		if last := &args[len(args)-1]; *last == "-cuts=" {
			*last += strconv.Itoa(*cutsFlag)
		}
		cmd := exec.Command("go", args...)
		cmd.Dir = root
		out, err := cmd.CombinedOutput()
		if err == nil {
			continue
		}
		m := failed.FindSubmatch(out)
		if m == nil {
			t.Fatalf("go %s did not run: %v\n%s", strings.Join(args, " "), err, out)
		}
		t.Logf("found by %s", m[1])
		return
	}
	t.Errorf("not found in %d power cuts", *cutsFlag)
}

// mutate writes patched copies of what a patch changes and returns the overlay
// for the go command.
func mutate(t *testing.T, root, patch string) string {
	t.Helper()
	text, err := os.ReadFile(patch)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for _, m := range target.FindAllStringSubmatch(string(text), -1) {
		src, dst := filepath.Join(root, m[1]), filepath.Join(dir, m[1])
		b, err := os.ReadFile(src)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dst, b, 0o644); err != nil {
			t.Fatal(err)
		}
		replace[src] = dst
	}
	abs, err := filepath.Abs(patch)
	if err != nil {
		t.Fatal(err)
	}
	apply := exec.Command("git", "apply", "--recount", "-C1", abs)
	apply.Dir = dir
	apply.Env = append(os.Environ(), "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir))
	if out, err := apply.CombinedOutput(); err != nil {
		t.Fatalf("the patch does not apply any more: %v\n%s", err, out)
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return overlay
}
