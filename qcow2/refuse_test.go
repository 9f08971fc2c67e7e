package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// refusal is a rule, what breaks it, and the sentence that says so: always which
// field has which value, and what it should be.
type refusal struct {
	rule string

	// What is changed in the founding example: bytes of the file where the
	// extension has layout v9; or fields of the extension, in every layout that
	// can hold the values; or entries of zonedmeta, in layout and form.
	patches []patch
	fields  []fieldValue
	layout  Layout
	form    EntryForm // 0: the layout's usual one
	entries []entryValue
	extend  int // the file, by so many bytes

	want   string
	others map[Layout]string // where fields make another layout say something else
	by     stage
}

type fieldValue struct {
	of func(*layout) field
	to uint64
}

type entryValue struct {
	zone         uint32
	wp           uint64
	conventional bool
}

// stage is who refuses.
type stage uint8

const (
	inHeader  stage = iota // ReadHeader, so that nothing works
	notBuilt               // Open, Check and Repair; zones can still be shown
	inEntries              // Open and ReadPointers; for Check it is what it finds
	inTables               // Open for writing; for Check it is what it finds, in its own words
)

func zoneSize(l *layout) field     { return l.zoneSize }
func zoneCapacity(l *layout) field { return l.zoneCapacity }
func conventional(l *layout) field { return l.conventional }
func nrZones(l *layout) field      { return l.nrZones }
func maxActive(l *layout) field    { return l.maxActive }
func maxOpen(l *layout) field      { return l.maxOpen }
func maxAppend(l *layout) field    { return l.maxAppend }
func metaSize(l *layout) field     { return l.metaSize }
func metaOffset(l *layout) field   { return l.metaOffset }
func model(*layout) field          { return field{0, 1} }
func reserved(*layout) field       { return field{1, 3} }

// inLayout returns the founding example with the extension and the entries as
// another layout has them.
func inLayout(t testing.TB, l Layout, form EntryForm) bytesFile {
	t.Helper()
	b := loaded(t, "v9-seed-fresh")
	h, err := ReadHeader(b)
	if err != nil {
		t.Fatal(err)
	}
	h.Zoned.Layout, h.Zoned.Form = l, form
	if layouts[l].maxAppend.width == 0 {
		h.Zoned.MaxAppend = 0
	}
	ext := appendExtension(nil, Extension{extZoned, h.Zoned.encode()})
	b = b.with(patch{sampleExt, make([]byte, 8+56)}, patch{sampleExt, ext})
	for i := range h.Zoned.NrZones {
		h.encodeEntry(b[sampleMeta+8*i:], i, h.ZoneStart(i))
	}
	return b
}

// images returns what the refusal makes of the founding example, by layout.
func (c *refusal) images(t *testing.T) map[Layout]bytesFile {
	t.Helper()
	out := make(map[Layout]bytesFile)
	for id := range layouts {
		l, spec := Layout(id), &layouts[id]
		if id == 0 || len(c.fields) == 0 && l != max(c.layout, LayoutV9) {
			continue
		}
		form := c.form
		if form == 0 {
			form = spec.usual
		}
		b := inLayout(t, l, form).with(c.patches...)
		ok := true
		for _, v := range c.fields {
			f := v.of(spec)
			if ok = ok && f.width != 0 && (f.width == 8 || v.to>>(8*f.width) == 0); ok {
				f.put(b[sampleZoned:], v.to)
			}
		}
		for _, e := range c.entries {
			form.encode(b[sampleMeta+8*e.zone:], e.wp, e.conventional)
		}
		if ok {
			out[l] = append(b, make([]byte, c.extend)...)
		}
	}
	return out
}

// untouched is an image whose every change is noted.
type untouched struct {
	bytesFile
	changes []string
}

func (u *untouched) WriteAt(p []byte, off int64) (int, error) {
	u.changes = append(u.changes, fmt.Sprintf("write of %d bytes at %#x", len(p), off))
	return 0, errReadOnly
}

func (u *untouched) WriteDurable(p []byte, off int64) error {
	_, err := u.WriteAt(p, off)
	return err
}

func (u *untouched) Truncate(n int64) error {
	u.changes = append(u.changes, fmt.Sprintf("truncate to %d", n))
	return errReadOnly
}

func (u *untouched) Punch(off, n int64) error {
	u.changes = append(u.changes, fmt.Sprintf("punch of %d bytes at %#x", n, off))
	return errReadOnly
}

func (u *untouched) Sync() error { return nil } // of what others have written

func TestEveryRuleHasItsSentenceAndARefusedImageIsLeftAlone(t *testing.T) {
	for _, c := range refusals(t) {
		t.Run(c.rule, func(t *testing.T) {
			images := c.images(t)
			if len(images) == 0 {
				t.Fatal("no layout can break this rule")
			}
			for l, b := range images {
				want := c.want
				if w, ok := c.others[l]; ok {
					want = w
				}
				c.refuse(t, l, b, want)
			}
		})
	}
}

func (c *refusal) refuse(t *testing.T, l Layout, b bytesFile, want string) {
	t.Helper()
	f := &untouched{bytesFile: b}
	before := bytes.Clone(b)
	is := func(who string, err error, must bool) {
		t.Helper()
		switch {
		case !must && err != nil:
			t.Errorf("%s of layout %s refuses it, too: %v", who, l, err)
		case must && (err == nil || err.Error() != want):
			t.Errorf("%s of layout %s:\ngot  %v\nwant %s", who, l, err, want)
		case must && errors.Is(err, ErrNotZoned) != strings.Contains(want, "not a zoned image"):
			t.Errorf("%s of layout %s: ErrNotZoned is %v", who, l, errors.Is(err, ErrNotZoned))
		}
	}
	_, err := ReadHeader(f)
	is("ReadHeader", err, c.by == inHeader)
	_, _, err = ReadPointers(f)
	is("ReadPointers", err, c.by == inHeader || c.by == inEntries)
	_, err = ReadInfo(f)
	is("ReadInfo", err, c.by == inHeader || c.by == inEntries)
	im, err := Open(f, Options{})
	is("Open", err, true)
	if im != nil {
		im.Abandon()
	}
	im, err = Open(f, Options{ReadOnly: true})
	if c.by != inTables { // then it depends on the table
		is("Open read-only", err, true)
	}
	if im != nil {
		im.Abandon()
	}
	r, err := Check(f, nil)
	is("Check", err, c.by < inEntries)
	if c.by >= inEntries && (r == nil || r.ExitCode() != exitCorrupt) {
		t.Errorf("Check of layout %s finds no corruption: %+v", l, r)
	}
	if c.by == inEntries && (r == nil || r.Messages[0] != "corruption: "+want) {
		t.Errorf("Check of layout %s:\ngot  %+v\nwant %s", l, r, want)
	}
	for _, mode := range []RepairMode{RepairLeaks, RepairAll} {
		if c.by != inTables { // what it mends is for its own tests
			_, _, err := Repair(f, mode, nil)
			is("Repair", err, c.by < inEntries)
		}
	}
	if len(f.changes) != 0 || !bytes.Equal(f.bytesFile, before) {
		t.Errorf("layout %s: a refused image was changed: %v", l, f.changes)
	}
}
