package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Kernel is an unpacked kernel in the cache.
type Kernel struct {
	Release string // as uname -r says it
	Version string // of the Debian package
	Dir     string
}

func (k Kernel) image() string   { return filepath.Join(k.Dir, "vmlinuz") }
func (k Kernel) modules() string { return filepath.Join(k.Dir, "lib/modules", k.Release) }

// suites lists where a series is looked for, best place first.
var suites = map[Series][]string{
	Series612: {"bookworm-backports", "trixie"},
	Series7:   {"sid", "forky", "trixie-backports"},
}

// freshFor is how long we trust a resolved version before asking the index
// again. Versions roll every few days; boots happen every few seconds.
const freshFor = 24 * time.Hour

// retryAfter is how long we leave an archive alone that did not answer.
const retryAfter = time.Hour

// state is the file SERIES.json in the cache: what the index said last.
type state struct {
	Release, Version string
	Checked          time.Time
}

// CacheDir is where kernels and RAM disks live, shared by all checkouts of a
// user.
func CacheDir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(base, "qzbd"), nil
}

// Ensure returns the newest kernel of a series, and fetches it when the cache
// has none or an older one. Without a network the cached one will do.
func Ensure(ctx context.Context, series Series, log io.Writer) (Kernel, error) {
	return ensure(ctx, series, log, freshFor)
}

// Refresh is [Ensure] that asks the index in any case.
func Refresh(ctx context.Context, series Series, log io.Writer) (Kernel, error) {
	return ensure(ctx, series, log, 0)
}

func ensure(ctx context.Context, series Series, log io.Writer, fresh time.Duration) (Kernel, error) {
	if suites[series] == nil {
		return Kernel{}, fmt.Errorf("kernel %q: unknown series, have %v", series, AllSeries)
	}
	cache, err := CacheDir()
	if err != nil {
		return Kernel{}, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return Kernel{}, err
	}
	if k, age := cached(cache, series); k.Release != "" && age < fresh {
		return k, nil
	}
	unlock, err := lockFile(filepath.Join(cache, "lock"))
	if err != nil {
		return Kernel{}, err
	}
	defer unlock()
	old, age := cached(cache, series) // somebody may have been faster
	if old.Release != "" && age < fresh {
		return old, nil
	}
	k, err := fetch(ctx, cache, series, log)
	if err != nil && old.Release != "" && ctx.Err() == nil {
		fmt.Fprintf(log, "vm: using linux %s from the cache: %v\n", old.Release, err)
		// Not at every boot from now on, but soon.
		return old, old.remember(cache, series, time.Now().Add(retryAfter-freshFor))
	}
	return k, err
}

// cached looks a series up in the cache.
func cached(cache string, series Series) (k Kernel, age time.Duration) {
	b, err := os.ReadFile(filepath.Join(cache, string(series)+".json"))
	if err != nil {
		return Kernel{}, 0
	}
	var s state
	if json.Unmarshal(b, &s) != nil || s.Release == "" {
		return Kernel{}, 0
	}
	k = kernelIn(cache, s.Release, s.Version)
	if _, err := os.Stat(k.image()); err != nil {
		return Kernel{}, 0
	}
	return k, time.Since(s.Checked)
}

func kernelIn(cache, release, version string) Kernel {
	return Kernel{Release: release, Version: version, Dir: filepath.Join(cache, "linux-"+version)}
}

// remember notes that k is what the index of the series has.
func (k Kernel) remember(cache string, series Series, checked time.Time) error {
	b, err := json.Marshal(state{k.Release, k.Version, checked})
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(cache, string(series)+".json"), b)
}

// lockFile takes an exclusive lock that dies with us.
func lockFile(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}

// fetch resolves the series and unpacks its kernel. The lock is held.
func fetch(ctx context.Context, cache string, series Series, log io.Writer) (Kernel, error) {
	mirror, err := mirror(ctx)
	if err != nil {
		return Kernel{}, err
	}
	var errs []error
	for _, suite := range suites[series] {
		k, err := fetchFrom(ctx, cache, series, mirror, suite, log)
		if err == nil {
			return k, k.remember(cache, series, time.Now())
		}
		errs = append(errs, err)
	}
	return Kernel{}, fmt.Errorf("linux %s: %w", series, errors.Join(errs...))
}

func fetchFrom(ctx context.Context, cache string, series Series, mirror, suite string, log io.Writer) (Kernel, error) {
	tmp, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return Kernel{}, err
	}
	defer os.RemoveAll(tmp)
	a, err := newApt(ctx, tmp, mirror, suite)
	if err != nil {
		return Kernel{}, err
	}
	index, err := a.index(ctx, regexp.MustCompile(`^linux-(image|binary|modules|base)-\d`))
	if err != nil {
		return Kernel{}, err
	}
	release, packages, err := resolve(index, series)
	if err != nil {
		return Kernel{}, fmt.Errorf("%s: %w", suite, err)
	}
	k := kernelIn(cache, release, packages[0].Version)
	if _, err := os.Stat(k.image()); err == nil {
		return k, nil
	}
	fmt.Fprintf(log, "vm: fetching linux %s from %s\n", release, suite)
	debs, tree := filepath.Join(tmp, "debs"), filepath.Join(tmp, "tree")
	for _, d := range []string{debs, tree} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return Kernel{}, err
		}
	}
	if err := a.download(ctx, debs, packages); err != nil {
		return Kernel{}, err
	}
	if err := unpack(ctx, debs, tree); err != nil {
		return Kernel{}, err
	}
	ready := filepath.Join(tmp, "ready")
	if err := arrange(ctx, tree, ready, release); err != nil {
		return Kernel{}, err
	}
	// A directory without an image is the rest of an accident.
	if err := os.RemoveAll(k.Dir); err != nil {
		return Kernel{}, err
	}
	return k, os.Rename(ready, k.Dir)
}

// resolve finds the newest kernel of a series in a package index, and the
// packages that it consists of. A mirror can be half through an update, so a
// kernel with a missing part does not count.
func resolve(index map[string]debPackage, series Series) (release string, packages []debPackage, err error) {
	// No cloud and no rt flavour: the former lacks f2fs and 9p.
	image := regexp.MustCompile(`^linux-image-(` + regexp.QuoteMeta(string(series)) + `\.[^-]*)-amd64$`)
	for name, p := range index {
		m := image.FindStringSubmatch(name)
		if m == nil || len(packages) > 0 && compareVersions(p.Version, packages[0].Version) <= 0 {
			continue
		}
		if parts, ok := closure(index, name, m[1]); ok {
			release, packages = m[1]+"-amd64", parts
		}
	}
	if packages == nil {
		return "", nil, fmt.Errorf("no linux-image-%s.*-amd64 in the index", series)
	}
	return release, packages, nil
}

// closure follows the dependencies among the packages of one kernel.
func closure(index map[string]debPackage, name, version string) ([]debPackage, bool) {
	p, ok := index[name]
	if !ok {
		return nil, false
	}
	parts := []debPackage{p}
	for _, d := range p.Depends {
		if !strings.Contains(d, "-"+version+"-") {
			continue // tools, not parts
		}
		seen := false
		for _, have := range parts {
			seen = seen || have.Name == d
		}
		if seen {
			continue
		}
		more, ok := closure(index, d, version)
		if !ok {
			return nil, false
		}
		for _, m := range more {
			dup := false
			for _, have := range parts {
				dup = dup || have.Name == m.Name
			}
			if !dup {
				parts = append(parts, m)
			}
		}
	}
	return parts, true
}

func unpack(ctx context.Context, debs, tree string) error {
	names, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range names {
		if err := unpackOne(ctx, deb, tree); err != nil {
			return err
		}
	}
	return nil
}

// unpackOne unpacks a package into a tree and removes it: they are large.
func unpackOne(ctx context.Context, deb, tree string) error {
	if out, err := exec.CommandContext(ctx, "dpkg", "-x", deb, tree).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w: %s", filepath.Base(deb), err, lastLine(out))
	}
	return os.Remove(deb)
}

// arrange brings the trees of old (one package, /boot and /lib) and new
// kernels (split, everything in /usr/lib) to one shape: vmlinuz and
// lib/modules/RELEASE.
func arrange(ctx context.Context, tree, ready, release string) error {
	if err := os.MkdirAll(filepath.Join(ready, "lib/modules"), 0o755); err != nil {
		return err
	}
	modules := filepath.Join(ready, "lib/modules", release)
	if err := renameFirst(modules,
		filepath.Join(tree, "usr/lib/modules", release),
		filepath.Join(tree, "lib/modules", release)); err != nil {
		return err
	}
	if err := renameFirst(filepath.Join(ready, "vmlinuz"),
		filepath.Join(modules, "vmlinuz"),
		filepath.Join(tree, "boot/vmlinuz-"+release)); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, sbin("depmod"), "-b", ready, release).CombinedOutput(); err != nil {
		return fmt.Errorf("depmod: %w: %s", err, lastLine(out))
	}
	return nil
}

func renameFirst(to string, candidates ...string) error {
	for _, from := range candidates {
		if _, err := os.Stat(from); err == nil {
			return os.Rename(from, to)
		}
	}
	return fmt.Errorf("the package has none of %s", strings.Join(candidates, ", "))
}

// sbin finds a tool that an ordinary user's PATH does not cover.
func sbin(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return filepath.Join("/usr/sbin", name)
}

// writeFile replaces a file in one step.
func writeFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
