package qcow2

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzRepair changes a sound image and repairs it. It is left as it is, or is
// then without leaks, or without any fault, and contains what it contained.
func FuzzRepair(f *testing.F) {
	eachBase(func(i byte, _ *baseImage) { f.Add(i, byte(1), []byte{}) })
	for kind := range byte(targets) {
		for value := kind % 2; value < 16; value += 2 {
			f.Add(kind^value, value>>1, []byte{kind, value, value, kind, kind, 1, 2, 3})
		}
	}
	f.Fuzz(func(t *testing.T, base, mode byte, changes []byte) {
		repairMutated(t, baseOf(base).mutate(changes), RepairLeaks+RepairMode(mode&1))
	})
}

// repairMutated repairs an image that may be hostile.
func repairMutated(t *testing.T, f *sparseFile, mode RepairMode) {
	h, rep := offline(t, f.clone())
	want := lookReadOnly(t, f.clone())
	var meta []byte
	if h != nil {
		meta = make([]byte, h.Zoned.MetaSize)
		must(t, readPadded(f, meta, h.Zoned.MetaOffset))
	}
	r := &rig{t, 4 * work(f)}
	var before, after *CheckReport
	var err error
	r.on("Repair", f, func() { before, after, err = Repair(f, mode, nil) })
	switch {
	case err != nil:
		sentence(t, err)
		if f.changes != 0 {
			t.Fatalf("refused, but changed: %v", err)
		}
		return
	case before == after:
		if f.changes != 0 {
			t.Fatalf("left as it is, but changed: %+v", after)
		}
		if rep.Corruptions+rep.Leaks != 0 && mode == RepairAll && !strings.Contains(strings.Join(after.Messages, "\n"), "note: the image was left as it is: ") && after.Omitted == 0 {
			t.Fatalf("no reason is given: %+v", after)
		}
		return
	case after.Dirty, after.Leaks != 0, after.Corruptions > before.Corruptions, after.Corruptions != 0 && (mode == RepairAll || before.Dirty):
		t.Fatalf("repaired, but\n%+v\nit was\n%+v", after, before)
	}
	now := make([]byte, len(meta))
	must(t, readPadded(f, now, h.Zoned.MetaOffset))
	if !bytes.Equal(now, meta) {
		t.Fatal("zonedmeta was changed")
	}
	im, err := Open(f.clone(), Options{CacheBytes: 1, ReadOnly: after.Corruptions != 0})
	if err != nil {
		if h.checkForm() == nil || strings.Contains(err.Error(), "corrupt") {
			t.Fatalf("repaired, but not opened: %v", err)
		}
		return
	}
	defer im.Abandon()
	if want == nil {
		return // what could not be read was above the pointers
	}
	seen, err := want.look(im)
	if err == nil {
		err = want.differs(seen)
	}
	if err != nil {
		t.Fatal(err)
	}
}
