//go:build kernel

package kernel

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// tree fills a directory with files whose content follows from a seed.
type tree struct {
	t     *testing.T
	rnd   *rand.Rand
	files map[string]content // by name
}

// content is what a file holds.
type content struct {
	seed uint64
	size int
}

func (c content) bytes() []byte { return pattern(c.seed, 0, (c.size+7)&^7)[:c.size] }

func newTree(t *testing.T) *tree {
	seed := rand.Uint64()
	t.Logf("files from seed %d", seed)
	return &tree{t, rand.New(rand.NewPCG(seed, 1)), map[string]content{}}
}

// add writes files below dir until they have total bytes together. Most are
// small, most bytes are in large ones; some are synced one by one.
func (tr *tree) add(dir, prefix string, total int) {
	tr.t.Helper()
	for i := 0; total > 0; i++ {
		n := 1 + tr.rnd.IntN(64<<10)
		if i%4 == 0 {
			n += tr.rnd.IntN(12 << 20)
		}
		n = min(n, total)
		total -= n
		name := filepath.Join(fmt.Sprintf("%s%d", prefix, i%7), fmt.Sprint(i))
		tr.write(dir, name, n, i%16 == 5)
	}
}

func (tr *tree) write(dir, name string, n int, sync bool) {
	tr.t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		tr.t.Fatal(err)
	}
	c := content{tr.rnd.Uint64(), n}
	f, err := os.Create(file)
	if err != nil {
		tr.t.Fatal(err)
	}
	defer f.Close()
	for rest := c.bytes(); len(rest) > 0; {
		piece := min(len(rest), 1+tr.rnd.IntN(1<<20))
		if _, err := f.Write(rest[:piece]); err != nil {
			tr.t.Fatal(err)
		}
		rest = rest[piece:]
	}
	if sync {
		if err := f.Sync(); err != nil {
			tr.t.Fatal(err)
		}
	}
	tr.files[name] = c
}

// churn deletes some files and writes others anew.
func (tr *tree) churn(dir string) {
	tr.t.Helper()
	names := make([]string, 0, len(tr.files))
	for name := range tr.files {
		names = append(names, name)
	}
	slices.Sort(names) // so that the seed decides
	for i, name := range names {
		switch i % 5 {
		case 0:
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				tr.t.Fatal(err)
			}
			delete(tr.files, name)
		case 1:
			tr.write(dir, name, 1+tr.rnd.IntN(1<<20), false)
		}
	}
}

// size is how many bytes the files have together: what was deleted before it
// was written back never reached the device.
func (tr *tree) size() (n int64) {
	for _, c := range tr.files {
		n += int64(c.size)
	}
	return n
}

// check compares the directory with what was written.
func (tr *tree) check(dir string) {
	tr.t.Helper()
	found := 0
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		want, ok := tr.files[name]
		if !ok {
			return fmt.Errorf("%s should not be there", name)
		}
		have, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(have, want.bytes()) {
			return fmt.Errorf("%s is not what was written", name)
		}
		found++
		return nil
	})
	if err != nil {
		tr.t.Fatal(err)
	}
	if found != len(tr.files) {
		tr.t.Errorf("%d files, want %d", found, len(tr.files))
	}
}
