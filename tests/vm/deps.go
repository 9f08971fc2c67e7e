package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Dependency is a program and the Debian package that has it.
type Dependency struct{ Program, Package string }

// dependencies are the programs that the tests run.
var dependencies = []Dependency{
	{"qemu-system-x86_64", "qemu-system-x86"},
	{"qemu-img", "qemu-utils"},
	{"qemu-io", "qemu-utils"},
	{"depmod", "kmod"},
	{"modprobe", "kmod"},
	{"xz", "xz-utils"},
	{"zstd", "zstd"},
	{"dpkg", "dpkg"},
	{"gcc", "gcc"}, // go test -race
	{"git", "git"},
	{"mke2fs", "e2fsprogs"},
	{"mount", "mount"},
	{"blkzone", "util-linux"},
	{"losetup", "mount"},
	{"fio", "fio"},
	{"mkfs.f2fs", "f2fs-tools"},
	{"mkfs.btrfs", "btrfs-progs"},
	{"strace", "strace"},
	{"udevadm", "udev"},
}

// headers the race detector's C compiler needs, which no program shows.
const libcHeader = "/usr/include/stdlib.h"

// missing lists the packages of the programs that this machine lacks, of the
// tests' and of more.
func missing(more []Dependency) []string {
	var packages []string
	seen := make(map[string]bool)
	need := func(pkg string) {
		if !seen[pkg] {
			seen[pkg] = true
			packages = append(packages, pkg)
		}
	}
	for _, d := range slices.Concat(dependencies, more) {
		if !installed(d.Program) {
			need(d.Package)
		}
	}
	if _, err := os.Stat(libcHeader); err != nil {
		need("libc6-dev")
	}
	return packages
}

func installed(program string) bool {
	if _, err := exec.LookPath(program); err == nil {
		return true
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		if _, err := os.Stat(filepath.Join(dir, program)); err == nil {
			return true
		}
	}
	return false
}

// InstallDeps installs the tools the tests need, and more, as far as they are
// missing. It needs root only then.
func InstallDeps(ctx context.Context, log io.Writer, more ...Dependency) error {
	packages := missing(more)
	if len(packages) == 0 {
		return nil
	}
	fmt.Fprintf(log, "vm: installing %s\n", strings.Join(packages, " "))
	if os.Geteuid() != 0 {
		return fmt.Errorf("these packages are missing, install them as root: apt-get install %s", strings.Join(packages, " "))
	}
	install := func() error {
		return aptGet(ctx, append([]string{"install", "-y", "--no-install-recommends"}, packages...)...)
	}
	// The lists may be there and still too old for the mirror, so a failed
	// installation gets fresh ones, too.
	if !haveLists() || install() != nil {
		if err := aptGet(ctx, "update"); err != nil {
			return err
		}
		if err := install(); err != nil {
			return err
		}
	}
	if left := missing(more); len(left) > 0 {
		return errors.New("installed, but their programs are not there: " + strings.Join(left, " "))
	}
	return nil
}

func haveLists() bool {
	names, _ := filepath.Glob("/var/lib/apt/lists/*_Packages*")
	return len(names) > 0
}

func aptGet(ctx context.Context, args ...string) error {
	// Somebody else may be installing: wait for the lock.
	args = append([]string{"-q", "-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3"}, args...)
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
