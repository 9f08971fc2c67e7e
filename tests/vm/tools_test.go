package vm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestToolsThatCannotBeMadeLeaveNothing(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("QZBD_VM_MIRROR", "file://"+filepath.Join(cache, "no archive"))
	dir, err := EnsureTools(context.Background(), t.Output())
	if err == nil || dir != "" || !strings.Contains(err.Error(), toolsSuite) {
		t.Errorf("got %q, %v", dir, err)
	}
	names, err := filepath.Glob(filepath.Join(cache, "qzbd", "*"))
	if err != nil || len(names) != 1 || filepath.Base(names[0]) != "tools.lock" {
		t.Errorf("left in the cache: %q, %v", names, err)
	}
}

func TestATreeWithoutItsProgramsIsRefused(t *testing.T) {
	tree := t.TempDir()
	for name, content := range map[string]string{
		"usr/share/base-passwd/passwd.master": "root:*:0:0:root:/root:/bin/bash\n",
		"usr/share/base-passwd/group.master":  "root:*:0:\n",
		"bin/sh":                              "",
	} {
		file := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(tree, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := arrangeTools(tree); err == nil || !strings.Contains(err.Error(), "mkfs.xfs") {
		t.Errorf("got %v, want the first program that is missing", err)
	}
}
