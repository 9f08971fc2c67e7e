package qcow2

import (
	"encoding/binary"
	"errors"
	"reflect"
	"runtime/metrics"
	"strings"
	"testing"
)

// What a look at an image may cost, in terms of what it stores: sparse files
// make everything else free for whoever wrote the image.
const (
	// fixedWork is for what every image takes: the caches, a chunk of a table.
	fixedWork = 8 << 20
	// tableWork is how often a table that the header names may be read, or held
	// in some form.
	tableWork = 10
	// wordWork is what one stored word may cost: it can name a place of which
	// a page of counts is kept (refPage), and a refcount is looked up.
	wordWork = 2 * refPageSize
	// pageWork is how often a stored page may make a whole cluster be read: one
	// word of it makes it an L2 table.
	pageWork = 6
)

// work returns how many bytes one look at f may read, and how many it may
// allocate.
func work(f *sparseFile) int64 {
	words, pages := int64(0), f.stored()
	for _, k := range pages {
		p := f.page(k)
		for i := 0; i < sparsePageSize; i += 8 {
			if binary.NativeEndian.Uint64(p[i:]) != 0 {
				words++
			}
		}
	}
	n := fixedWork + words*wordWork
	if h, err := ReadHeader(f); err == nil {
		// A rebuild makes the refcount table as long as the file needs it.
		table := min((f.size>>h.ClusterBits/h.refBlockEntries()+1)*8, maxRefTableBytes)
		table = max(table, int64(h.RefTableClusters)<<h.ClusterBits)
		n += tableWork * (int64(h.L1Size)*8 + table + int64(h.Zoned.MetaSize))
		n += pageWork * int64(len(pages)) << h.ClusterBits
	}
	return n
}

// rig runs things on an image and sees that none costs more than it may.
type rig struct {
	t    testing.TB
	work int64
}

func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// on runs fn on f.
func (r *rig) on(what string, f *sparseFile, fn func()) {
	r.t.Helper()
	f.reads, f.bytes, f.allowed = 0, 0, r.work
	before := allocated()
	fn()
	after := allocated()
	f.allowed = 0
	if f.wrong != nil {
		r.t.Fatalf("%s: %v (%d reads of %d bytes; %d allowed)", what, f.wrong, f.reads, f.bytes, r.work)
	}
	if n := after - before; n > uint64(r.work) {
		r.t.Fatalf("%s allocates %d bytes; %d allowed", what, n, r.work)
	}
}

// sentence checks that an error is one for people.
func sentence(t testing.TB, err error) {
	t.Helper()
	if s := err.Error(); s == "" || strings.ContainsAny(s, "\n\x00") || strings.Contains(s, "%!") || len(s) > 1000 {
		t.Fatalf("not a sentence: %q", s)
	}
}

// offline runs everything that only reads, and holds the findings against each
// other.
func offline(t testing.TB, f *sparseFile) (*Header, *CheckReport) {
	t.Helper()
	r := &rig{t, work(f)}
	var h *Header
	var herr error
	r.on("ReadHeader", f, func() { h, herr = ReadHeader(f) })
	if herr != nil {
		sentence(t, herr)
	} else {
		roundTrip(t, f, h)
		if h.NotBuilt == nil {
			r.on("walk", f, func() { walkRefs(t, f, h) })
		}
	}
	var err error
	var wps []uint64
	r.on("ReadPointers", f, func() { _, wps, err = ReadPointers(f) })
	if herr != nil && err == nil {
		t.Fatal("the header is refused, but its write pointers are read")
	}
	if err != nil {
		sentence(t, err)
	}
	for i, wp := range wps {
		if start := h.ZoneStart(uint32(i)); wp < start || wp > start+h.ZoneCapacity(uint32(i)) || wp%sectorSize != 0 {
			t.Fatalf("zone %d is at %#x", i, wp)
		}
	}
	r.on("ReadInfo", f, func() {
		in, e := ReadInfo(f)
		if e == nil && (in.String() == "" || wps == nil) {
			t.Fatal("an image has an info and no write pointers")
		}
		if e != nil {
			sentence(t, e)
		} else if z := in.Zoned; z.Empty+z.Full+z.Partly+z.Conventional != z.Zones {
			t.Fatalf("zones are lost: %+v", z)
		}
	})
	var rep *CheckReport
	r.on("Check", f, func() {
		last, total := int64(-1), int64(0)
		rep, err = Check(f, func(done, of int64) {
			if done < last || done > of {
				t.Fatalf("progress goes from %d to %d of %d", last, done, of)
			}
			last, total = done, of
		})
		if err == nil && last != total {
			t.Fatalf("progress ends with %d of %d", last, total)
		}
	})
	switch {
	case err != nil:
		sentence(t, err)
	case herr != nil:
		t.Fatal("the header is refused, but the image is checked")
	case wps == nil && rep.Corruptions == 0:
		t.Fatal("write pointers are refused, and check finds nothing")
	case len(rep.Messages) > checkMessages:
		t.Fatalf("%d messages", len(rep.Messages))
	}
	if again, e := Check(f, nil); (e == nil) != (err == nil) || !reflect.DeepEqual(again, rep) {
		t.Fatalf("check finds first this, then that:\n%+v\n%+v", rep, again)
	}
	if f.changes != 0 {
		t.Fatal("something that only reads has changed the image")
	}
	return h, rep
}

// walkRefs checks what a walk says about each reference.
func walkRefs(t testing.TB, f *sparseFile, h *Header) {
	t.Helper()
	end := h.roundUp(f.size)
	_ = walk(f, h, true, func(x *ref) error {
		if x.bad == "" && (x.off < 0 || x.n <= 0 || x.off > end-x.n || x.kind != RefCompressed && x.off&(h.ClusterSize()-1) != 0) {
			t.Fatalf("%v is called good: %+v", x, *x)
		}
		if x.entry != 0 && (x.entryAt < 0 || x.entryAt%8 != 0 || x.index < 0) || x.kind == RefData && x.guest>>h.ClusterBits<<h.ClusterBits != x.guest {
			t.Fatalf("no such entry: %+v", *x)
		}
		return nil
	})
}

// roundTrip writes a header and reads it again.
func roundTrip(t testing.TB, f *sparseFile, h *Header) {
	t.Helper()
	if h.NotBuilt != nil {
		return // what it needs is not in h
	}
	enc, err := h.encode()
	if err != nil {
		return // the extensions do not fit beside our own
	}
	if len(enc)%sectorSize != 0 || int64(len(enc)) > h.ClusterSize() {
		t.Fatalf("the header has %d bytes", len(enc))
	}
	g := f.clone()
	g.put(make([]byte, h.ClusterSize()), 0)
	g.put(enc, 0)
	again, err := ReadHeader(g)
	if err != nil {
		t.Fatalf("what was read cannot be written and read again: %v\n%+v", err, h)
	}
	a, b := *again, *h
	a.HeaderLength, b.HeaderLength = 0, 0
	if !reflect.DeepEqual(a, b) {
		t.Fatalf("what was read is not what was written:\n%+v\n%+v", a, b)
	}
}

// mayRefuse says whether a writable open may refuse an image in which check found
// rep.
func mayRefuse(t testing.TB, err error, h *Header, rep *CheckReport) {
	t.Helper()
	sentence(t, err)
	if h != nil && rep != nil && rep.Corruptions == 0 && !errors.Is(err, errTooSpread) && !strings.Contains(err.Error(), "refcount table would take") {
		t.Fatalf("refused, but check finds nothing: %v\n%+v", err, rep)
	}
}
