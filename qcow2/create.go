package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"
)

// Create makes an image of which every zone is empty. A file that is there
// already is replaced, unless somebody has it open; it keeps its mode. One that
// comes into being meanwhile is left alone. The new
// image is written beside it and renamed when it is complete and durable: an
// error leaves what was there, and nothing else. So does being killed, where the
// file system has files without a name.
func Create(path string, o CreateOptions) error {
	return createWith(path, o, func(f *OSFile) File { return f })
}

// createWith is Create through what wrap makes of the file.
func createWith(path string, o CreateOptions, wrap func(*OSFile) File) (err error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // replace the file, not a link to it
	} else if target, e := os.Readlink(path); e == nil {
		return fmt.Errorf("%s is a symbolic link to %s, which cannot be followed: %w", path, target, err)
	}
	old, err := openOld(path)
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o666)
	if old != nil {
		defer old.Close() // holds the lock until the new image is in place
		st, err := old.Stat()
		if err != nil {
			return err
		}
		mode = st.Mode().Perm()
	}
	f, err := openTemp(path, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.discard()) }()
	if old != nil {
		if err := f.Chmod(mode); err != nil {
			return err
		}
	}
	if err := Format(wrap(NewOSFile(f.File)), o); err != nil {
		return err
	}
	if err := f.Sync(); err != nil { // with the mode
		return err
	}
	return f.publish(path, old)
}

// openOld opens and locks the file that an image is to replace; nil if there
// is none.
func openOld(path string) (*os.File, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is there and not a regular file: an image can only replace a regular file", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := Lock(f, true); err != nil && !errors.Is(err, ErrNoLocks) {
		return nil, errors.Join(err, f.Close())
	}
	if err := stillThere(path, f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// stillThere checks that a name still is that of an open file: a lock on
// another one protects nothing.
func stillThere(path string, f *os.File) error {
	now, err := os.Stat(path)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(now, st) {
		return fmt.Errorf("%s has been replaced by another file meanwhile, which was left as it is: try again", path)
	}
	return nil
}

// Format makes f, whatever it holds, an image of which every zone is empty.
// Everything is durable before the first sector is written, and that before
// Format returns: a file with a header is a complete image.
func Format(f File, o CreateOptions) error {
	o = o.withDefaults()
	var errs []error
	for _, r := range o.broken(nil) {
		errs = append(errs, r.err)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	p, err := planImage(o)
	if err != nil {
		return err
	}
	header, err := p.header.encode()
	if err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if err := f.Truncate(p.clusters << p.header.ClusterBits); err != nil {
		return err
	}
	if err := p.preallocate(f, o); err != nil {
		return err
	}
	if err := p.writeTables(f); err != nil {
		return err
	}
	if _, err := f.WriteAt(header[sectorSize:], sectorSize); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := f.WriteAt(header[:sectorSize], 0); err != nil {
		return err
	}
	return f.Sync()
}

// imagePlan is where everything of a fresh image lies:
//
//	header | refcount table | refcount blocks | zonedmeta | L1 table
//
// and if it is preallocated
//
//	| L2 tables | data clusters
type imagePlan struct {
	header    Header
	clusters  int64 // of the file
	refBlocks int64

	// All in clusters; zero if nothing is preallocated.
	l2At, tables int64
	dataAt, data int64
}

// planImage lays out an image. The options are complete and, but for what
// planImage itself says, obey the rules.
func planImage(o CreateOptions) (*imagePlan, error) {
	p := &imagePlan{header: Header{
		Version:       3,
		ClusterBits:   uint32(bits.TrailingZeros64(o.ClusterSize)),
		Size:          o.Size,
		RefcountOrder: uint32(bits.TrailingZeros64(o.RefcountBits)),
		Incompatible:  incompatZoned,
		HeaderLength:  offCompressionType + 8,
	}}
	h := &p.header
	if o.LazyRefcounts {
		h.Compatible |= compatLazyRefcounts
	}
	zones := (o.Size-1)/o.ZoneSize + 1
	h.Zoned = Zoned{
		Layout:       LayoutV9,
		Form:         LittleEndian59,
		ZoneSize:     o.ZoneSize,
		ZoneCapacity: o.ZoneCapacity,
		Conventional: uint32(o.Conventional),
		NrZones:      uint32(zones),
		MaxActive:    uint32(o.MaxActive),
		MaxOpen:      uint32(o.MaxOpen),
		MaxAppend:    uint32(o.MaxAppend),
		MetaSize:     8 * zones,
	}
	h.L1Size = uint32(l1EntriesFor(o.Size, h.ClusterBits))
	l1 := h.roundUp(int64(h.L1Size)*8) >> h.ClusterBits
	meta := h.roundUp(int64(h.Zoned.MetaSize)) >> h.ClusterBits

	// The refcount table is large enough for the full device and an eighth more,
	// so that it never has to move.
	full := int64((o.Size-1)>>h.ClusterBits) + 1 + int64(h.L1Size)
	_, table := h.refClusters(full+full/8+1+meta+l1, 0)
	if table<<h.ClusterBits > max(maxRefTableBytes, h.ClusterSize()) {
		return nil, fmt.Errorf("the refcount table for clusters of %d bytes with refcounts of %d bits would exceed %d bytes",
			h.ClusterSize(), 1<<h.RefcountOrder, maxRefTableBytes)
	}
	if o.Preallocation != PreallocationOff {
		p.tables, p.data = int64(h.L1Size), h.allMappable()
	}
	p.refBlocks, _ = h.refClusters(1+meta+l1+p.tables+p.data, table)

	next := int64(1)
	place := func(clusters int64) int64 {
		at := next << h.ClusterBits
		next += clusters
		return at
	}
	h.RefTableOffset, h.RefTableClusters = place(table), uint32(table)
	place(p.refBlocks)
	h.Zoned.MetaOffset = place(meta)
	h.L1Offset = place(l1)
	p.l2At = place(p.tables) >> h.ClusterBits
	p.dataAt = place(p.data) >> h.ClusterBits
	p.clusters = next
	return p, nil
}

// refClusters returns how many refcount blocks cover n clusters and those
// blocks and their table themselves; the table has at least minTable clusters.
func (h *Header) refClusters(n, minTable int64) (blocks, table int64) {
	table = minTable
	for {
		b := (n + blocks + table + h.refBlockEntries() - 1) / h.refBlockEntries()
		t := max(table, h.roundUp(b*8)>>h.ClusterBits)
		if b == blocks && t == table {
			return b, t
		}
		blocks, table = b, t
	}
}

// writeTables writes all tables, also where they are zero: an entry that is
// set later overwrites what has its place in the file system, so that a full
// one refuses a request and does not fail the image.
func (p *imagePlan) writeTables(f File) error {
	h := &p.header
	table := make([]byte, int64(h.RefTableClusters)<<h.ClusterBits) // at most maxRefTableBytes
	firstBlock := h.RefTableOffset + int64(h.RefTableClusters)<<h.ClusterBits
	block := make([]byte, h.ClusterSize())
	for b := range p.refBlocks {
		at := firstBlock + b<<h.ClusterBits
		binary.BigEndian.PutUint64(table[8*b:], uint64(at))
		clear(block)
		for i := range min(h.refBlockEntries(), p.clusters-b*h.refBlockEntries()) {
			setRefcount(block, h.RefcountOrder, int(i), 1)
		}
		if _, err := f.WriteAt(block, at); err != nil {
			return err
		}
	}
	if _, err := f.WriteAt(table, h.RefTableOffset); err != nil {
		return err
	}
	meta := make([]byte, h.Zoned.MetaSize)
	for i := range h.Zoned.NrZones {
		h.encodeEntry(meta[8*i:], i, h.ZoneStart(i))
	}
	if _, err := f.WriteAt(meta, h.Zoned.MetaOffset); err != nil {
		return err
	}
	_, err := f.WriteAt(p.l1Table(), h.L1Offset)
	return err
}
