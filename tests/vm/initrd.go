package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/qzbd/qzbd/tests/vm/guest"
)

// earlyModules are needed before the host's root, with all the others, is
// visible. One that is built in, or that a kernel does not have, is skipped: crc32c,
// which ext4 asks for without naming it, is a module on 6.12.
var earlyModules = []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "virtio_blk", "crc32c_generic", "ext4"}

// initMain makes a program of package guest, in a module of its own.
const initMain = "package main\n\nimport \"qzbd-init/guest\"\n\nfunc main() { guest.Main() }\n"

// ensureInitrd returns the RAM disk for a kernel: init and its modules. It is
// kept in the cache under the hash of all that it is made of.
func ensureInitrd(ctx context.Context, k Kernel) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	source, sum, err := initSource()
	if err != nil {
		return "", err
	}
	name := filepath.Join(cache, fmt.Sprintf("initrd-%s-%s", k.Version, sum))
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	unlock, err := lockFile(filepath.Join(cache, "initrd.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	program, err := buildInit(ctx, source)
	if err != nil {
		return "", err
	}
	var a cpio
	for _, dir := range []string{"proc", "sys", "dev", "host", "share", "root", "upper", "modules"} {
		a.add(dir, 0o040755, nil)
	}
	a.add("init", 0o100755, program)
	if err := addModules(ctx, &a, k); err != nil {
		return "", err
	}
	a.end()
	return name, writeFile(name, a.Bytes())
}

// initSource collects the source of init and hashes it, together with what
// else decides about the RAM disk.
func initSource() (map[string][]byte, string, error) {
	source := map[string][]byte{
		"main.go": []byte(initMain),
		"go.mod":  []byte("module qzbd-init\n\ngo 1.25\n"),
	}
	h := sha256.New()
	fmt.Fprintln(h, initMain, earlyModules)
	err := fs.WalkDir(guest.Source, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(name, "_test.go") {
			return err
		}
		b, err := guest.Source.ReadFile(name)
		if err != nil {
			return err
		}
		source[path.Join("guest", name)] = b
		fmt.Fprintf(h, "%s %d\n", name, len(b))
		h.Write(b)
		return nil
	})
	return source, fmt.Sprintf("%x", h.Sum(nil)[:8]), err
}

// buildInit compiles init. It must be static: the RAM disk has no libraries.
func buildInit(ctx context.Context, source map[string][]byte) ([]byte, error) {
	dir, err := os.MkdirTemp("", "qzbd-init-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for name, b := range source {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", "init", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off", "GO111MODULE=on", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the guest's init: %w: %s", err, out)
	}
	return os.ReadFile(filepath.Join(dir, "init"))
}

// addModules puts the early modules and what they depend on into the archive,
// unpacked, and a list of them in the order of insertion.
func addModules(ctx context.Context, a *cpio, k Kernel) error {
	b, err := os.ReadFile(filepath.Join(k.modules(), "modules.dep"))
	if err != nil {
		return err
	}
	var order bytes.Buffer
	for _, file := range loadOrder(string(b), earlyModules) {
		image, err := readModule(ctx, filepath.Join(k.modules(), file))
		if err != nil {
			return err
		}
		name := moduleName(file)
		a.add("modules/"+name, 0o100644, image)
		fmt.Fprintln(&order, name)
	}
	a.add("modules/order", 0o100644, order.Bytes())
	return nil
}

// loadOrder resolves names of modules with the lines of a modules.dep, whose
// dependencies are listed in reverse order of insertion.
func loadOrder(dep string, names []string) []string {
	deps := make(map[string][]string)
	for _, line := range strings.Split(dep, "\n") {
		if file, needs, ok := strings.Cut(line, ":"); ok {
			deps[moduleName(file)] = append(strings.Fields(needs), file)
		}
	}
	var order []string
	seen := make(map[string]bool)
	insert := func(file string) {
		if !seen[file] {
			seen[file] = true
			order = append(order, file)
		}
	}
	for _, name := range names {
		files := deps[name]
		if len(files) == 0 {
			continue // built in
		}
		for i := len(files) - 2; i >= 0; i-- {
			insert(files[i])
		}
		insert(files[len(files)-1])
	}
	return order
}

// moduleName is the name of a module file as modprobe takes it.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func readModule(ctx context.Context, file string) ([]byte, error) {
	var tool string
	switch filepath.Ext(file) {
	case ".xz":
		tool = "xz"
	case ".zst":
		tool = "zstd"
	default:
		return os.ReadFile(file)
	}
	out, err := exec.CommandContext(ctx, tool, "-dc", file).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", file, err)
	}
	return out, nil
}

// cpio writes the kernel's archive format for RAM disks ("newc").
type cpio struct {
	bytes.Buffer
	inode int
}

func (c *cpio) add(name string, mode int, data []byte) {
	c.inode++
	// magic ino mode uid gid nlink mtime filesize devmajor devminor
	// rdevmajor rdevminor namesize check
	fmt.Fprintf(c, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	io.WriteString(c, name+"\x00")
	c.pad()
	c.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.Len()%4 != 0 {
		c.WriteByte(0)
	}
}

func (c *cpio) end() { c.add("TRAILER!!!", 0, nil) }
