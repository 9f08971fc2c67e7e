// Package style holds what a reviewer should not have to look for: the shape
// of the repository, and which package may know which.
package style

import (
	"bytes"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/qzbd/qzbd"

	// A file is one concern; beyond this it is two.
	maxLines = 700
)

// topLevel is everything that may lie in the root directory.
var topLevel = []string{
	"cmd", "ublk", "qcow2", "zns", "uring", "systemd", "tests",
	"go.mod", "go.sum", "Makefile", "README.md", "ARCHITECTURE.md", "LICENSE",
	".ci", "staticcheck.conf", ".gitignore",
}

// arrows says for each room which of our rooms it may import. cmd and tests
// may import everything except that nothing but tests imports tests.
var arrows = map[string][]string{
	"zns":     {},
	"qcow2":   {},
	"uring":   {},
	"systemd": {},
	"ublk":    {"zns", "uring"},
	"cmd":     {"zns", "qcow2", "uring", "ublk", "systemd", "cmd"},
	"tests":   {"zns", "qcow2", "uring", "ublk", "systemd", "cmd", "tests"},
}

// owners are outside packages that one room keeps behind its own words.
var owners = map[string]string{
	"github.com/pawelgaczynski/giouring": "uring",
}

// root is the repository, seen from the directory of this test.
const root = "../.."

// goFiles calls f with each Go file, named relative to the root.
func goFiles(t *testing.T, f func(name string, src []byte)) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name == "bin" || d.Name() == "testdata" || name != "." && strings.HasPrefix(d.Name(), ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		n++
		f(filepath.ToSlash(name), src)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		t.Fatal("no Go files found: wrong directory?")
	}
}

func TestGoFilesAreFormatted(t *testing.T) {
	goFiles(t, func(name string, src []byte) {
		out, err := format.Source(src)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(out, src) {
			t.Errorf("%s is not gofmt clean", name)
		}
	})
}

func TestGoFilesStayShort(t *testing.T) {
	goFiles(t, func(name string, src []byte) {
		if n := bytes.Count(src, []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, the limit is %d", name, n, maxLines)
		}
	})
}

func TestArrowsPointOneWay(t *testing.T) {
	goFiles(t, func(name string, src []byte) {
		// External tests of a room live by the same rules: what needs two
		// rooms belongs into tests.
		room, _, nested := strings.Cut(name, "/")
		if !nested {
			t.Errorf("%s: there is no package in the root directory", name)
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Errorf("%s: import %s: %v", name, spec.Path.Value, err)
				continue
			}
			if why := refuse(room, path.Dir(name), imported); why != "" {
				t.Errorf("%s imports %s: %s", name, imported, why)
			}
		}
	})
}

// refuse says why a file in a room may not import a package, or nothing.
func refuse(room, dir, imported string) string {
	for pkg, owner := range owners {
		if (imported == pkg || strings.HasPrefix(imported, pkg+"/")) && room != owner {
			return "only " + owner + " may"
		}
	}
	rest, ours := strings.CutPrefix(imported, module+"/")
	if !ours {
		return ""
	}
	allowed, known := arrows[room]
	if !known {
		return room + " is no room of the architecture"
	}
	target, _, _ := strings.Cut(rest, "/")
	if rest == dir || target == room && room != "cmd" && room != "tests" {
		return "" // an external test, or a package below the room
	}
	if !slices.Contains(allowed, target) {
		return "no arrow from " + room + " to " + target
	}
	return ""
}

func TestArrowsAreEnforced(t *testing.T) {
	for _, c := range []struct {
		room, imported string
		allowed        bool
	}{
		{"zns", module + "/qcow2", false},
		{"qcow2", module + "/zns", false},
		{"ublk", module + "/zns", true},
		{"ublk", module + "/qcow2", false},
		{"ublk", "github.com/pawelgaczynski/giouring", false},
		{"uring", "github.com/pawelgaczynski/giouring", true},
		{"uring", module + "/zns", false},
		{"systemd", module + "/uring", false},
		{"cmd", module + "/qcow2", true},
		{"cmd", module + "/tests/vm", false},
		{"tests", module + "/tests/vm", true},
		{"zns", module + "/zns", true}, // its external test
		{"zns", "fmt", true},
		{"extra", module + "/zns", false},
	} {
		if why := refuse(c.room, c.room, c.imported); (why == "") != c.allowed {
			t.Errorf("%s importing %s: got %q, want allowed = %v", c.room, c.imported, why, c.allowed)
		}
	}
}

func TestRootHoldsNothingElse(t *testing.T) {
	// What git does not track is nobody's business.
	cmd := exec.Command("git", "-c", "safe.directory=*", "ls-files", "-z")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	found := make(map[string]bool)
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		top, _, _ := strings.Cut(name, "/")
		found[top] = true
	}
	for top := range found {
		if !slices.Contains(topLevel, top) {
			t.Errorf("%s does not belong into the root directory", top)
		}
	}
	for _, top := range topLevel {
		if !found[top] {
			t.Errorf("%s is missing in the root directory", top)
		}
	}
}
