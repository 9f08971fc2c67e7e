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

var cutsFlag = flag.Int("cuts", 20000, "crash states within which a mutant has to be found")

// fewest is the number of patches below which some must have been lost.
const fewest = 10

// together is how many mutants run at a time: each is busy with one seed per
// processor, but waits for the last of them.
const together = 2

// ofTheJournal is how the names of patches begin that break what a server leaves
// to the next: only its death shows that.
const ofTheJournal = "journal-"

// harmless are patches that nothing can notice; doc.go says why. They are run
// like the others, and must not be found.
var harmless = map[string]bool{"old-table-freed-early": true}

var (
	target = regexp.MustCompile(`(?m)^\+\+\+ b/(.*)$`)
	failed = regexp.MustCompile(`(?m)^ *--- FAIL: (Test\w+)(/\S+)* `)
	states = regexp.MustCompile(`(?m) (\d+) crash states$`)
)

func TestTheSimulationFindsEveryMutant(t *testing.T) {
	patches, err := filepath.Glob("*.patch")
	if err != nil {
		t.Fatal(err)
	}
	if len(patches) < fewest {
		t.Fatalf("%d patches, want at least %d", len(patches), fewest)
	}
	slots := make(chan struct{}, together)
	for _, p := range patches {
		t.Run(strings.TrimSuffix(p, ".patch"), func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			kill(t, p)
		})
	}
}

// kill runs the simulation on the patched code until it fails.
func kill(t *testing.T, patch string) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	overlay := mutate(t, root, patch)
	binary := filepath.Join(t.TempDir(), "sim.test")
	compile := exec.Command("go", "test", "-c", "-o", binary, "-overlay="+overlay, "./tests/sim")
	compile.Dir = root
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("compile: %v\n%s", err, out)
	}
	cuts := *cutsFlag
	if harmless[strings.TrimSuffix(patch, ".patch")] {
		cuts /= 10 // nothing ends it early
	}
	run := "^TestPowerCuts|ActiveSet"
	if strings.HasPrefix(patch, ofTheJournal) {
		run = "DeathOfTheServer"
	}
	sim := exec.Command(binary, "-test.run="+run, "-test.failfast", "-test.timeout=30m", "-cuts="+strconv.Itoa(cuts))
	sim.Dir = filepath.Join(root, "tests", "sim")
	out, err := sim.CombinedOutput()
	m := failed.FindSubmatch(out)
	switch name := strings.TrimSuffix(patch, ".patch"); {
	case err == nil && harmless[name]:
		t.Logf("harmless: not found in %d crash states", cuts)
	case err == nil:
		t.Errorf("not found in %d crash states", cuts)
	case m == nil:
		t.Fatalf("the simulation did not run: %v\n%s", err, out)
	case harmless[name]:
		t.Errorf("found, but was called harmless\n%s", out)
	default:
		n := 0
		for _, s := range states.FindAllSubmatch(out, -1) {
			k, _ := strconv.Atoi(string(s[1]))
			n += k
		}
		t.Logf("found after %d crash states by %s", n, m[1])
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
