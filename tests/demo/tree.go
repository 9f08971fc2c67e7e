package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// tree is a number of files with random content, and their checksums.
type tree struct {
	rnd   *rand.ChaCha8
	bytes int
	sums  map[string][sha256.Size]byte
}

// Enough to fill several zones.
const (
	treeFiles = 120
	treeLimit = 1 << 20 // of one file
)

func newTree(seed uint64) *tree {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return &tree{rnd: rand.NewChaCha8(key), sums: map[string][sha256.Size]byte{}}
}

func (t *tree) String() string {
	return fmt.Sprintf("%d files, %d MiB", len(t.sums), t.bytes>>20)
}

func (t *tree) write(dir string) error {
	for i := range treeFiles {
		content := make([]byte, 1+t.rnd.Uint64()%treeLimit)
		if _, err := t.rnd.Read(content); err != nil {
			return err
		}
		name := filepath.Join(fmt.Sprint("dir", i%8), fmt.Sprint("file", i))
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
		t.bytes += len(content)
		t.sums[name] = sha256.Sum256(content)
	}
	return nil
}

func (t *tree) compare(dir string) error {
	for name, want := range t.sums {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return err
		}
		if [sha256.Size]byte(h.Sum(nil)) != want {
			return fmt.Errorf("%s has other content than was written", name)
		}
	}
	return nil
}
