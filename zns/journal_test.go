package zns

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unsafe"
)

// journal lays one out in memory of its own.
func journal(t *testing.T, zones, slots uint32) *Journal {
	t.Helper()
	j, err := NewJournal(journalMemory(zones, slots), zones, slots)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func journalMemory(zones, slots uint32) []byte {
	words := make([]uint64, JournalBytes(zones, slots)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)
}

func TestAJournalNeedsItsMemory(t *testing.T) {
	mem := journalMemory(4, 2)
	for _, c := range []struct {
		mem   []byte
		zones uint32
		want  string
	}{
		{mem[:len(mem)-8], 4, "journal of 88 bytes: 4 zones and 2 slots take 96"},
		{mem, 3, "journal of 96 bytes: 3 zones and 2 slots take 88"},
		{append([]byte{0}, mem...)[1:], 4, "must be aligned to 8 bytes"},
		{nil, 0, "0 zones"},
	} {
		if _, err := NewJournal(c.mem, c.zones, 2); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// A word that no zone can have is damage, or another device's: nothing of the
// journal is used.
func TestAJournalThatIsNoDevicesIsRefused(t *testing.T) {
	g := Geometry{Size: 4 << 16, ZoneSize: 1 << 16, ZoneCapacity: 48 << 10, NrZones: 4, Conventional: 1, MaxAppend: 1 << 16, BlockSize: 4096}
	m := newMemMedia(g, 4096)
	for _, c := range []struct {
		zone int
		w    word
	}{
		{0, pack(CondEmpty, 0)}, {0, pack(CondNotWP, 4096)}, {1, pack(CondNotWP, 0)}, {1, pack(CondEmpty, 4096)},
		{1, pack(CondFull, 0)}, {1, pack(CondClosed, 48<<10)}, {1, pack(CondExpOpen, 52<<10)},
		{1, pack(CondImpOpen, 512)}, {1, pack(0x7, 4096)}, {1, pack(CondOffline, 1<<16)},
	} {
		j := journal(t, 4, 2)
		if _, err := New(g, m, WithJournal(j)); err != nil {
			t.Fatal(err)
		}
		j.words[c.zone].Store(uint64(c.w))
		if _, err := New(g, m, Resume(j)); err == nil || !strings.Contains(err.Error(), "is none a zone can have") {
			t.Errorf("zone %d with %#x: %v", c.zone, c.w, err)
		}
	}
	for _, o := range []Option{WithJournal(journal(t, 3, 2)), Resume(journal(t, 3, 2))} {
		if _, err := New(g, m, o); err == nil || err.Error() != "journal of 3 zones: the device has 4" {
			t.Error(err)
		}
	}
}

// What a device was before it was made to go on is what it is afterwards.
func TestResumeKeepsConditionsAndCounts(t *testing.T) {
	g := Geometry{Size: 8 << 16, ZoneSize: 1 << 16, ZoneCapacity: 48 << 10, NrZones: 8, Conventional: 1, MaxOpen: 2, MaxActive: 4, MaxAppend: 1 << 16, BlockSize: 4096}
	m := newMemMedia(g, 4096)
	j := journal(t, 8, 1)
	d, err := New(g, m, WithJournal(j))
	if err != nil {
		t.Fatal(err)
	}
	do := func(d *Device, op Op, zone, at, n uint64) error {
		return Do(d, &Request{Op: op, Start: zone<<16 + at, Len: n}, m, make([]byte, n))
	}
	for _, c := range []struct {
		op          Op
		zone, at, n uint64
	}{
		{OpWrite, 1, 0, 8192}, {OpWrite, 2, 0, 48 << 10}, {OpOpen, 3, 0, 0}, {OpWrite, 4, 0, 4096}, // closes zone 1
		{OpFinish, 5, 0, 0}, {OpWrite, 6, 0, 4096}, {OpReset, 6, 0, 0},
	} {
		if err := do(d, c.op, c.zone, c.at, c.n); err != nil {
			t.Fatal(c, err)
		}
	}
	if err := d.SetCond(7, CondReadOnly); err != nil {
		t.Fatal(err)
	}
	d2, err := New(g, m, Resume(j))
	if err != nil {
		t.Fatal(err)
	}
	for i := range g.NrZones {
		if a, b := d.Zone(i), d2.Zone(i); a != b {
			t.Errorf("zone %d was %+v and is %+v", i, a, b)
		}
	}
	open, active := d.Counts()
	if o, a := d2.Counts(); o != open || a != active {
		t.Errorf("%d open and %d active zones, were %d and %d", o, a, open, active)
	}
	// The write of zone 4 comes again, and its slot's last write was another
	// one: it is an error, as always.
	if err := do(d2, OpWrite, 4, 0, 4096); err != ErrNotAtWP {
		t.Error(err)
	}
	// An open zone may be closed to make room for another one.
	if err := do(d2, OpWrite, 1, 8192, 4096); err != nil {
		t.Error(err)
	}
}

// Where the media has failed, a reset that was under way has not happened.
func TestResumeOverAFailedMediaResetsNothing(t *testing.T) {
	g := Geometry{Size: 4 << 16, ZoneSize: 1 << 16, ZoneCapacity: 1 << 16, NrZones: 4, MaxAppend: 1 << 16, BlockSize: 4096}
	m := newMemMedia(g, 4096)
	j := journal(t, 4, 1)
	d, err := New(g, m, WithJournal(j))
	if err != nil {
		t.Fatal(err)
	}
	if err := Do(d, &Request{Op: OpWrite, Start: 1 << 16, Len: 8192}, m, make([]byte, 8192)); err != nil {
		t.Fatal(err)
	}
	before := d.Zone(1)
	d.words.setResetting(1, true)
	failed := errors.New("failed")
	m.fail = func(string) error { return failed }
	if _, err := New(g, m, Resume(j)); !errors.Is(err, failed) {
		t.Errorf("a reset that cannot be completed: %v", err)
	}
	if d, err = New(g, m, ResumeFailed(j)); err != nil {
		t.Fatal(err)
	}
	if now := d.Zone(1); now != before {
		t.Errorf("the zone was %+v and is %+v", before, now)
	}
	if err := Do(d, &Request{Op: OpReset, Start: 1 << 16}, m, nil); !errors.Is(err, failed) {
		t.Errorf("the reset, sent again: %v", err)
	}
	if now := d.Zone(1); now != before {
		t.Errorf("after a reset that failed the zone was %+v and is %+v", before, now)
	}
}

// Only as the first request of its slot, and only once, is a write below the
// pointer one that comes again. It may have grown.
func TestAWriteIsTakenAgainOnce(t *testing.T) {
	g := Geometry{Size: 4 << 16, ZoneSize: 1 << 16, ZoneCapacity: 1 << 16, NrZones: 4, MaxAppend: 1 << 16, BlockSize: 4096}
	const lost = ^uint64(0) // there is no place for it
	for _, c := range []struct {
		name  string
		op    Op
		data  byte // what comes again
		len   uint64
		slot  uint32
		later bool // something else comes first
		at    uint64
		wp    uint64 // afterwards
	}{
		{"write", OpWrite, 1, 8192, 0, false, 0, 8192},
		{"write that has grown", OpWrite, 1, 12288, 0, false, 0, 12288},
		{"write that has shrunk", OpWrite, 1, 4096, 0, false, lost, 8192},
		{"write on another slot", OpWrite, 1, 8192, 1, false, 0, 8192},
		{"write that has grown on another slot", OpWrite, 1, 12288, 1, false, 0, 12288},
		{"write-zeroes", OpWriteZeroes, 0, 8192, 0, false, 0, 8192},
		{"write-zeroes that have grown", OpWriteZeroes, 0, 16384, 0, false, 0, 16384},
		{"append", OpAppend, 1, 8192, 0, false, 0, 8192},
		{"append of other data", OpAppend, 2, 8192, 0, false, 8192, 16384},
		{"append of another length", OpAppend, 1, 4096, 0, false, 8192, 12288},
		{"append on another slot", OpAppend, 1, 8192, 1, false, 8192, 16384},
		{"append after something else", OpAppend, 1, 8192, 0, true, 8192, 16384},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemMedia(g, 4096)
			j := journal(t, 4, 2)
			d, err := New(g, m, WithJournal(j))
			if err != nil {
				t.Fatal(err)
			}
			send := func(d *Device, data byte, n uint64, slot uint32) (uint64, error) {
				r := &Request{Op: c.op, Len: n, Slot: slot}
				err := Do(d, r, m, bytes.Repeat([]byte{data}, int(n)))
				return r.At, err
			}
			if _, err := send(d, 1, 8192, 0); err != nil {
				t.Fatal(err)
			}
			if d, err = New(g, m, Resume(j)); err != nil {
				t.Fatal(err)
			}
			if c.later {
				if err := Do(d, &Request{Op: OpFlush}, m, nil); err != nil {
					t.Fatal(err)
				}
			}
			at, err := send(d, c.data, c.len, c.slot)
			switch {
			case c.at == lost && err != ErrNotAtWP:
				t.Fatalf("at %d, %v; want %v", at, err, ErrNotAtWP)
			case c.at != lost && (err != nil || at != c.at):
				t.Fatalf("at %d, %v; want %d", at, err, c.at)
			}
			if z := d.Zone(0); z.WP != c.wp {
				t.Errorf("the pointer is at %d, want %d", z.WP, c.wp)
			}
			// Once more it is a new one.
			switch at, err := send(d, c.data, c.len, c.slot); {
			case c.op == OpAppend && (err != nil || at != c.wp), c.op != OpAppend && err != ErrNotAtWP:
				t.Errorf("once more: at %d, %v", at, err)
			}
		})
	}
	t.Run("answered", func(t *testing.T) {
		m := newMemMedia(g, 4096)
		j := journal(t, 4, 2)
		d, err := New(g, m, WithJournal(j))
		if err != nil {
			t.Fatal(err)
		}
		r := &Request{Op: OpAppend, Len: 4096}
		if err := Do(d, r, m, make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		j.Answered(0)
		if d, err = New(g, m, Resume(j)); err != nil {
			t.Fatal(err)
		}
		if err := Do(d, r, m, make([]byte, 4096)); err != nil || r.At != 4096 {
			t.Errorf("a new append went to %d: %v", r.At, err)
		}
	})
}
