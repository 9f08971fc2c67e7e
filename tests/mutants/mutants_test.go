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
	seed   = regexp.MustCompile(`FAIL: \S+/seed=(\d+)`)
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

// kill runs the simulation on the patched code.
func kill(t *testing.T, patch string) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	overlay := mutate(t, root, patch)
	cmd := exec.Command("go", "test", "-count=1", "-overlay="+overlay, "-run=PowerCuts|ActiveSet", "-timeout=15m", "./tests/engine", "-cuts="+strconv.Itoa(*cutsFlag))
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		t.Errorf("not found in %d power cuts", *cutsFlag)
	case strings.Contains(string(out), "[build failed]") || !strings.Contains(string(out), "--- FAIL: "):
		t.Fatalf("the simulation did not run: %v\n%s", err, out)
	default:
		by := "TestZonesLeaveTheActiveSetBeforeOthersEnter"
		if m := seed.FindSubmatch(out); m != nil {
			by = "seed " + string(m[1])
		}
		t.Logf("found by %s", by)
	}
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
