package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// RefKind says what refers to a range of the file.
type RefKind uint8

// The kinds of references, in the order in which they are walked.
const (
	RefHeader RefKind = iota
	RefZonedMeta
	RefRefTable
	RefRefBlock
	RefL1
	RefL2
	RefData
	RefCompressed
)

func (k RefKind) String() string {
	return [...]string{
		"header", "zonedmeta", "refcount table", "refcount block", "L1 table", "L2 table", "data cluster", "compressed cluster",
	}[k]
}

// ref is one reference to a range of the file.
type ref struct {
	h       *Header
	kind    RefKind
	off, n  int64  // the range; a compressed cluster's is not aligned
	guest   uint64 // L2 table, data: the device offset where what it maps begins
	index   int64  // refcount block: which one; L2 table, data: index in the table
	entry   uint64 // the entry as it stands in the file; 0 for what the header names
	entryAt int64  // where in the file the entry is
	bad     string // why the entry cannot be followed, "" if it can
}

// errSkip makes a walk leave out what is behind an L2 table.
var errSkip = errors.New("skip this L2 table")

// String names the reference: the zone, the structure, and the place of the
// entry.
func (r *ref) String() string {
	switch r.kind {
	case RefL2, RefData, RefCompressed:
		return fmt.Sprintf("%s: %s %#x of guest offset %#x (entry at %#x)", r.zones(), r.kind, r.off, r.guest, r.entryAt)
	case RefRefBlock:
		return fmt.Sprintf("%s %d at %#x (entry at %#x)", r.kind, r.index, r.off, r.entryAt)
	default:
		return fmt.Sprintf("%s at %#x", r.kind, r.off)
	}
}

// zones says which zones an entry maps.
func (r *ref) zones() string {
	if r.guest >= r.h.Size {
		return "behind the device"
	}
	first, end := r.guest/r.h.Zoned.ZoneSize, r.guest+1
	if r.kind == RefL2 {
		end = min(r.guest+uint64(r.h.l2Entries())<<r.h.ClusterBits, r.h.Size)
	}
	if last := (end - 1) / r.h.Zoned.ZoneSize; last != first {
		return fmt.Sprintf("zones %d to %d", first, last)
	}
	return fmt.Sprintf("zone %d", first)
}

// data reports whether the reference is a device cluster's.
func (r *ref) data() bool { return r.kind == RefData || r.kind == RefCompressed }

// walk calls fn with every range of the file that something refers to: what the
// header names, then refcount blocks, L2 tables and data clusters, also where
// an entry cannot be followed (bad). Memory is bounded by a cluster and a chunk
// of each table. refBlocks false leaves out the refcount blocks: in a dirty image they
// mean nothing. fn may return errSkip for an L2 table; the ref is only valid
// during the call.
func walk(f File, h *Header, refBlocks bool, fn func(r *ref) error) error {
	fileSize, err := f.Size()
	if err != nil {
		return err
	}
	w := &walker{f: f, h: h, end: h.roundUp(fileSize), fn: fn, l2: make([]byte, h.ClusterSize())}
	kinds := []RefKind{RefHeader, RefRefTable, RefL1, RefZonedMeta} // as in places
	for i, p := range h.places() {
		if err := fn(&ref{h: h, kind: kinds[i], off: p.off, n: p.n}); err != nil {
			return err
		}
	}
	if refBlocks {
		if err := w.refBlocks(); err != nil {
			return err
		}
	}
	return w.l1()
}

type walker struct {
	f   File
	h   *Header
	end int64 // of the file, in whole clusters
	fn  func(r *ref) error
	l2  []byte
	ref ref // handed to fn: one for each entry would be much garbage
}

// table calls fn with each nonzero entry of a table of n entries.
func (w *walker) table(off, n int64, fn func(i, at int64, entry uint64) error) error {
	buf := make([]byte, min(n*8, walkChunk))
	for at := int64(0); at < n*8; at += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), n*8-at)]
		if err := readPadded(w.f, buf, off+at); err != nil {
			return fmt.Errorf("read table at %#x: %w", off, err)
		}
		for i := 0; i < len(buf); i += 8 {
			v := binary.BigEndian.Uint64(buf[i:])
			if v == 0 {
				continue
			}
			if err := fn((at+int64(i))/8, off+at+int64(i), v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walker) refBlocks() error {
	n := int64(w.h.RefTableClusters) << w.h.ClusterBits / 8
	return w.table(w.h.RefTableOffset, n, func(i, at int64, e uint64) error {
		r := &w.ref
		*r = ref{h: w.h, kind: RefRefBlock, off: int64(e &^ (sectorSize - 1)), n: w.h.ClusterSize(), index: i, entry: e, entryAt: at}
		r.bad = w.judge(r.off, e&(sectorSize-1))
		return w.fn(r)
	})
}

func (w *walker) l1() error {
	span := uint64(w.h.l2Entries()) << w.h.ClusterBits
	return w.table(w.h.L1Offset, int64(w.h.L1Size), func(i, at int64, v uint64) error {
		e := L1Entry(v)
		r := &w.ref
		*r = ref{h: w.h, kind: RefL2, off: e.Offset(), n: w.h.ClusterSize(), guest: uint64(i) * span, index: i, entry: v, entryAt: at}
		if r.off == 0 && e.Reserved() == 0 {
			return nil // nothing but flags
		}
		r.bad = w.judge(r.off, e.Reserved())
		err := w.fn(r)
		if errors.Is(err, errSkip) || err == nil && r.bad != "" {
			return nil
		}
		if err != nil {
			return err
		}
		return w.l2table(r.off, r.guest)
	})
}

func (w *walker) l2table(off int64, guest uint64) error {
	// A file of holes can be full of tables that say nothing. Whoever acts upon
	// what is not there has synced the file before: no file system that tells
	// of holes is wrong about synced data.
	if isHole(w.f, off, int64(len(w.l2))) {
		return nil
	}
	if err := readPadded(w.f, w.l2, off); err != nil {
		return fmt.Errorf("read L2 table at %#x: %w", off, err)
	}
	for i := int64(0); i < w.h.l2Entries(); i++ {
		v := binary.BigEndian.Uint64(w.l2[8*i:])
		if v == 0 {
			continue
		}
		e := L2Entry(v)
		r := &w.ref
		*r = ref{h: w.h, kind: RefData, guest: guest + uint64(i)<<w.h.ClusterBits, index: i, entry: v, entryAt: off + 8*i}
		if e.Compressed() {
			r.kind = RefCompressed
			r.off, r.n = e.compressedRange(w.h.ClusterBits)
			if r.off+r.n > w.end {
				r.bad = fmt.Sprintf("lies beyond the end of the file at %#x", w.end)
			}
		} else {
			r.off, r.n = e.Offset(), w.h.ClusterSize()
			if r.off == 0 && e.Reserved() == 0 {
				continue // unallocated, perhaps reading as zeros
			}
			r.bad = w.judge(r.off, e.Reserved())
		}
		if err := w.fn(r); err != nil {
			return err
		}
	}
	return nil
}

// judge says what is wrong with an entry that refers to a cluster. The last
// cluster of the file may be incomplete.
func (w *walker) judge(off int64, reserved uint64) string {
	switch {
	case reserved != 0:
		return fmt.Sprintf("has reserved bits set: %#x", reserved)
	case off < 0 || off&(w.h.ClusterSize()-1) != 0:
		return "is not at a multiple of the cluster size"
	case off > w.end-w.h.ClusterSize():
		return fmt.Sprintf("lies beyond the end of the file at %#x", w.end)
	}
	return ""
}
