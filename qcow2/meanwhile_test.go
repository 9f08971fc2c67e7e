package qcow2

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// meanwhile is a file during whose first sync something happens.
type meanwhile struct {
	*OSFile
	do func()
}

func (m *meanwhile) Sync() error {
	if m.do != nil {
		m.do()
		m.do = nil
	}
	return m.OSFile.Sync()
}

// Somebody may make a file of the same name while an image is being made: what
// is in it is not the creator's to replace.
func TestCreateLeavesAloneWhatComesIntoBeingMeanwhile(t *testing.T) {
	for _, c := range []struct {
		name  string
		there bool // a file that is to be replaced
	}{{"where nothing was", false}, {"where another file was", true}} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "image")
			if c.there {
				must(t, os.WriteFile(path, []byte("old"), 0o600))
			}
			err := createWith(path, CreateOptions{Size: 1 << 20, ZoneSize: 1 << 20}, func(f *OSFile) File {
				return &meanwhile{f, func() {
					must(t, os.WriteFile(path+".new", []byte("somebody's data"), 0o600))
					must(t, os.Rename(path+".new", path))
				}}
			})
			if err == nil || !strings.Contains(err.Error(), "meanwhile") {
				t.Errorf("create: %v", err)
			}
			if b, err := os.ReadFile(path); string(b) != "somebody's data" {
				t.Errorf("the file has %q, %v", b, err)
			}
			if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
				t.Errorf("the directory has %v, %v", names, err)
			}
		})
	}
}
