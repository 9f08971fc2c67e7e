package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// apt is a private apt configuration for one suite: its own sources, lists
// and package cache in one directory, so that neither the system's sources
// nor its installed packages have a say, nor notice.
type apt struct {
	dir string
}

// newApt makes the configuration and fetches the index of the suite.
func newApt(ctx context.Context, dir, mirror, suite string) (*apt, error) {
	for _, d := range []string{"lists/partial", "cache/archives/partial", "parts"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	options := ""
	const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	if _, err := os.Stat(keyring); err == nil {
		options = "[signed-by=" + keyring + "] "
	}
	source := fmt.Sprintf("deb %s%s %s main\n", options, mirror, suite)
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(source), 0o644); err != nil {
		return nil, err
	}
	a := &apt{dir: dir}
	if out, err := a.command(ctx, "apt-get", "update").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("index of %s: %w: %s", suite, err, lastLine(out))
	}
	return a, nil
}

func (a *apt) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	options := []string{
		"-q",
		"-o", "Dir::Etc::sourcelist=" + filepath.Join(a.dir, "sources.list"),
		"-o", "Dir::Etc::sourceparts=" + filepath.Join(a.dir, "parts"),
		"-o", "Dir::Etc::preferences=/dev/null",
		"-o", "Dir::Etc::preferencesparts=" + filepath.Join(a.dir, "parts"),
		"-o", "Dir::State::lists=" + filepath.Join(a.dir, "lists"),
		"-o", "Dir::State::status=/dev/null",
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"),
		"-o", "APT::Default-Release=",
		"-o", "APT::Architecture=amd64",
		"-o", "APT::Update::Error-Mode=any", // a stale index is a failure here
		"-o", "APT::Sandbox::User=", // the directory may be closed to user _apt
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::Retries=3",
		"-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
	}
	cmd := exec.CommandContext(ctx, name, append(options, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "APT_CONFIG=/dev/null")
	return cmd
}

// index returns the packages of the suite whose name matches.
func (a *apt) index(ctx context.Context, name *regexp.Regexp) (map[string]debPackage, error) {
	cmd := a.command(ctx, "apt-cache", "dumpavail")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	packages, err := parseIndex(out, name)
	io.Copy(io.Discard, out)
	if werr := cmd.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return nil, fmt.Errorf("package index: %w", err)
	}
	return packages, nil
}

// download fetches packages into dir; apt checks them against the signed index.
func (a *apt) download(ctx context.Context, dir string, packages []debPackage) error {
	args := []string{"download"}
	for _, p := range packages {
		args = append(args, p.Name+"="+p.Version)
	}
	cmd := a.command(ctx, "apt-get", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("download %s: %w: %s", packages[0].Name, err, lastLine(out))
	}
	return nil
}

// downloadAll fetches the newest version of packages and of all that they
// depend on, as on a machine that has nothing yet, and returns where they are.
func (a *apt) downloadAll(ctx context.Context, names []string) (dir string, err error) {
	cmd := a.command(ctx, "apt-get", append([]string{
		"install", "--download-only", "-y", "--no-install-recommends",
		"-o", "Debug::NoLocking=true", // of the system's state, which is not used
	}, names...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("download %s and others: %w: %s", names[0], err, lastLine(out))
	}
	return filepath.Join(a.dir, "cache/archives"), nil
}

// debPackage is what we want to know of a stanza in a package index.
type debPackage struct {
	Name, Version string
	Depends       []string // first alternatives, without version
}

// parseIndex reads the stanzas of a package index (deb822).
func parseIndex(r io.Reader, name *regexp.Regexp) (map[string]debPackage, error) {
	packages := make(map[string]debPackage)
	var p debPackage
	flush := func() {
		if p.Name == "" || !name.MatchString(p.Name) {
			return
		}
		if old, ok := packages[p.Name]; !ok || compareVersions(old.Version, p.Version) < 0 {
			packages[p.Name] = p
		}
	}
	s := bufio.NewScanner(r)
	s.Buffer(nil, 4<<20) // Provides of some packages are enormous
	for s.Scan() {
		line := s.Text()
		if line == "" {
			flush()
			p = debPackage{}
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch field {
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "Depends", "Pre-Depends":
			for _, d := range strings.Split(value, ",") {
				if words := strings.Fields(d); len(words) > 0 {
					p.Depends = append(p.Depends, words[0])
				}
			}
		}
	}
	flush()
	return packages, s.Err()
}

// compareVersions orders two Debian versions: numbers as numbers, "~" before
// everything, even before the end.
func compareVersions(a, b string) int {
	for a != "" || b != "" {
		an, bn := digits(a), digits(b)
		x, y := strings.TrimLeft(a[:an], "0"), strings.TrimLeft(b[:bn], "0")
		if an > 0 || bn > 0 {
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if c := strings.Compare(x, y); c != 0 {
				return c
			}
			a, b = a[an:], b[bn:]
			continue
		}
		if c := versionRank(a) - versionRank(b); c != 0 {
			return c
		}
		a, b = a[1:], b[1:]
	}
	return 0
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

func versionRank(s string) int {
	switch {
	case s == "":
		return 0
	case s[0] == '~':
		return -1
	case s[0] >= 'A' && s[0] <= 'Z', s[0] >= 'a' && s[0] <= 'z':
		return int(s[0])
	}
	return int(s[0]) + 256
}

// errNoMirror asks for a hint where the packages come from.
var errNoMirror = errors.New("no Debian archive among this machine's apt sources; set QZBD_VM_MIRROR to the address of one")

// mirror finds the address of the Debian archive that this machine uses.
func mirror(ctx context.Context) (string, error) {
	if m := os.Getenv("QZBD_VM_MIRROR"); m != "" {
		return m, nil
	}
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets",
		"--format", "$(ORIGIN) $(REPO_URI) $(RELEASE)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("apt sources: %w", err)
	}
	return parseTargets(string(out))
}

// parseTargets picks the main archive from lines of origin, address, suite.
// Without an index apt knows no origin: any archive whose path says Debian.
func parseTargets(targets string) (string, error) {
	guess := ""
	for _, line := range strings.Split(targets, "\n") {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		suite, uri := words[len(words)-1], words[len(words)-2]
		if strings.Contains(suite, "-") { // -updates, -backports, -security
			continue
		}
		if len(words) == 3 && words[0] == "Debian" {
			return uri, nil
		}
		if len(words) == 2 && strings.HasSuffix(strings.TrimSuffix(uri, "/"), "/debian") {
			guess = uri
		}
	}
	if guess == "" {
		return "", errNoMirror
	}
	return guess, nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}
