package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// toolsSuite has every tool new enough: xfsprogs for zoned XFS (6.15 or
// newer) most of all, which no stable release has.
const toolsSuite = "forky"

// toolsPackages is what goes into the tree, with all that it depends on:
// tools for zoned devices, and what a system cannot do without that boots and
// installs packages.
var toolsPackages = []string{
	"base-files", "base-passwd", "dash", "bash", "coreutils", "grep", "sed", "procps", "util-linux", "util-linux-extra",
	"mount", "kmod", "udev", "systemd", "systemd-sysv", "dbus", "e2fsprogs",
	"dpkg", "tar", "diffutils", "libc-bin", "libseccomp2", "libbpf1",
	"xfsprogs", "zonefs-tools", "btrfs-progs", "f2fs-tools", "fio", "dmsetup", "cryptsetup-bin",
}

// toolsLayout changes with whatever else decides about the tree.
const toolsLayout = 2

// EnsureTools returns the root directory of a Debian newer than the machine's
// own, with the tools that the kernel tests chroot into. It is made once per
// recipe and kept in the cache next to the kernels; a failure leaves nothing.
//
// Packages are unpacked, not installed: no script of theirs runs, so that
// neither root nor a working chroot is needed. What programs need beyond
// their files is written by [arrangeTools].
func EnsureTools(ctx context.Context, log io.Writer) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "tools-"+toolsRecipe())
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := lockFile(filepath.Join(cache, "tools.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil { // somebody was faster
		return dir, nil
	}
	if err := makeTools(ctx, cache, dir, log); err != nil {
		return "", fmt.Errorf("tools of %s: %w", toolsSuite, err)
	}
	return dir, nil
}

// toolsRecipe is a name for all that decides about the tree but the versions
// of its packages, which may be whatever the suite had.
func toolsRecipe() string {
	h := sha256.New()
	fmt.Fprintln(h, toolsLayout, toolsSuite, toolsPackages)
	return fmt.Sprintf("%s-%x", toolsSuite, h.Sum(nil)[:8])
}

// makeTools makes the tree beside its place and renames it when it is whole.
func makeTools(ctx context.Context, cache, dir string, log io.Writer) error {
	mirror, err := mirror(ctx)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	fmt.Fprintf(log, "vm: making a tree of tools from %s\n", toolsSuite)
	a, err := newApt(ctx, tmp, mirror, toolsSuite)
	if err != nil {
		return err
	}
	debs, err := a.downloadAll(ctx, toolsPackages)
	if err != nil {
		return err
	}
	tree := filepath.Join(tmp, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	if err := writeStatus(ctx, debs, tree); err != nil {
		return err
	}
	// The first one to unpack decides what /bin and /lib are: links into
	// /usr, as base-files has them.
	if err := unpackFirst(ctx, debs, tree, "base-files_"); err != nil {
		return err
	}
	if err := unpack(ctx, debs, tree); err != nil {
		return err
	}
	if err := arrangeTools(tree); err != nil {
		return err
	}
	return os.Rename(tree, dir)
}

func unpackFirst(ctx context.Context, debs, tree, prefix string) error {
	names, err := filepath.Glob(filepath.Join(debs, prefix+"*.deb"))
	if err != nil || len(names) != 1 {
		return fmt.Errorf("%d packages %s* among the downloaded, want 1 (%v)", len(names), prefix, err)
	}
	return unpackOne(ctx, names[0], tree)
}

// writeStatus makes a database of dpkg's that has the packages as installed.
func writeStatus(ctx context.Context, debs, tree string) error {
	names, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	db := filepath.Join(tree, "var/lib/dpkg")
	for _, dir := range []string{"info", "updates", "triggers", "alternatives"} {
		if err := os.MkdirAll(filepath.Join(db, dir), 0o755); err != nil {
			return err
		}
	}
	var status bytes.Buffer
	for _, deb := range names {
		out, err := exec.CommandContext(ctx, "dpkg-deb", "--field", deb).Output()
		if err != nil {
			return fmt.Errorf("read %s: %w", filepath.Base(deb), err)
		}
		fmt.Fprintf(&status, "%s\nStatus: install ok installed\n\n", bytes.TrimSpace(out))
	}
	return os.WriteFile(filepath.Join(db, "status"), status.Bytes(), 0o644)
}

// arrangeTools does what the packages' scripts would have done, as far as
// programs miss it.
func arrangeTools(tree string) error {
	for _, name := range []string{"passwd", "group"} {
		b, err := os.ReadFile(filepath.Join(tree, "usr/share/base-passwd", name+".master"))
		if err != nil {
			return err
		}
		// Passwords are not set ("*"), root's neither: nobody logs in here.
		if err := os.WriteFile(filepath.Join(tree, "etc", name), b, 0o644); err != nil {
			return err
		}
	}
	for name, content := range map[string]string{
		"etc/machine-id": "", // made at boot
		"etc/hostname":   "qzbd-vm\n",
		"etc/fstab":      "",
		"etc/shells":     "/bin/sh\n/bin/bash\n",
	} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	// A tree without these would fail much later and less clearly.
	for _, program := range []string{"bin/sh", "usr/sbin/mkfs.xfs", "usr/sbin/mkzonefs", "usr/bin/fio", "usr/sbin/dmsetup", "usr/sbin/cryptsetup", "usr/lib/systemd/systemd", "usr/bin/dpkg"} {
		if fi, err := os.Stat(filepath.Join(tree, program)); err != nil || fi.Mode()&0o111 == 0 {
			return fmt.Errorf("the packages have no program %s (%v): have %s", program, err, strings.Join(toolsPackages, " "))
		}
	}
	return nil
}
