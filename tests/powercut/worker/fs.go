package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// fileSystem writes files into a file system on the device. Its lines are
// "file NAME SUM": that file is fsync'ed, and so is its directory.
type fileSystem struct {
	name        string
	mkfs, fsck  []string
	image, size string
	uses        []use // chance takes one for each boot
}

// use is a way to work with a file system.
type use struct {
	options string // of mount
	litter  bool   // files come and go besides, and nobody syncs them
}

// Where a zoned btrfs writes a log for an fsync while it commits what others did,
// the fsync may fail with EAGAIN and, soon after, the commit: it is read-only then.
// Seen on null_blk too, Linux 7.2. So either there is no log or nothing beside it.
var btrfsUses = []use{{"notreelog", true}, {"commit=3600", false}}

const tree = "/mnt/tree"

func (k fileSystem) create() (options, size string) { return k.image, k.size }

func (k fileSystem) prepare(node string) error {
	return command(k.mkfs[0], append(k.mkfs[1:len(k.mkfs):len(k.mkfs)], node)...)
}

func (k fileSystem) mount(node, options string) error {
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return err
	}
	return command("mount", "-t", k.name, "-o", options, node, tree)
}

func (k fileSystem) verify(node string, lines []string) error {
	if err := k.mount(node, "defaults"); err != nil {
		return err
	}
	var errs []error
	for _, l := range lines {
		name, sum, ok := strings.Cut(strings.TrimPrefix(l, "file "), " ")
		if !ok || !strings.HasPrefix(l, "file ") {
			continue
		}
		p, err := os.ReadFile(filepath.Join(tree, name))
		if err == nil && fmt.Sprintf("%x", sha256.Sum256(p)) != sum {
			err = fmt.Errorf("%s: its %d bytes are not those that were fsync'ed", name, len(p))
		}
		errs = append(errs, err)
	}
	errs = append(errs, command("umount", tree))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return command(k.fsck[0], append(k.fsck[1:len(k.fsck):len(k.fsck)], node)...)
}

func (k fileSystem) work(node string, rng *rand.Rand) error {
	use := k.uses[rng.IntN(len(k.uses))]
	fmt.Println("# mount -o", use.options)
	if err := k.mount(node, use.options); err != nil {
		return err
	}
	boot := rng.Uint32()
	litter := make(chan error, 1)
	if use.litter {
		go func() { litter <- scatter(rand.New(rand.NewPCG(uint64(boot), 1))) }()
	}
	for n := 0; ; n++ {
		select {
		case err := <-litter:
			return err
		default:
		}
		name := fmt.Sprintf("%d-%d", boot, n)
		p := randomBytes(rng, 1+rng.IntN(1<<20))
		if err := writeSynced(filepath.Join(tree, name), p); err != nil {
			return err
		}
		fmt.Printf("file %s %x\nflushed\n", name, sha256.Sum256(p))
	}
}

// scatter writes and removes files without a sync, so that the file system has
// more to do than it is told to.
func scatter(rng *rand.Rand) error {
	for n := 0; ; n++ {
		name := func(n int) string { return filepath.Join(tree, fmt.Sprintf("litter-%d", n)) }
		if err := os.WriteFile(name(n%12), randomBytes(rng, 1+rng.IntN(4<<20)), 0o644); err != nil {
			return err
		}
		if n%3 == 0 {
			if err := os.Remove(name(n % 12)); err != nil {
				return err
			}
		}
	}
}

func randomBytes(rng *rand.Rand, n int) []byte {
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%016x", rng.Uint64())
	}
	return b.Bytes()[:n]
}

func writeSynced(path string, p []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
