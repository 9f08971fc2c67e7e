package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// rebuild repairs a surveyed image whose dirty bit is set: its refcounts mean
// nothing (I5), and mappings may be ahead of the write pointers. The mappings
// below the pointers are the truth; everything else follows from them.
//
// It writes in place, and whatever it writes, a cut in the middle leaves
// something that the next rebuild makes the same of. The dirty bit stays set.
func (r *rebuilder) rebuild() error {
	im := r.im
	if err := r.plan(); err != nil {
		return err
	}
	if err := r.write(); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	im.attached.Store(true)
	im.writable.Store(true)
	return nil
}

type rebuilder struct {
	im    *Image
	clean bool       // the dirty bit is clear: there is nothing to change
	used  clusterSet // what something refers to
	drops []Extent   // entries above the write pointers, in the file
	fixes []fix

	table  run             // of the refcount table
	blocks map[int64]int64 // refcount block: its cluster
	free   []run           // for place
	end    int64           // clusters that the file needs
}

// fix is an entry that lacks its flag.
type fix struct {
	at    int64 // in the file
	entry uint64
}

// survey finds out what is in use, and which entries have to be changed. It
// refuses references that cannot be followed, that overlap, and compressed
// clusters: what is written through one of two references destroys the other's.
// In a clean image that is also said of what lies above the write pointers, and
// of the refcount structures; there it changes nothing.
func (r *rebuilder) survey(progress func(done, total int64)) error {
	im, h := r.im, r.im.header()
	var done, total int64
	total = int64(h.L1Size)
	return walk(im.f, h, r.clean, func(x *ref) error {
		switch x.kind {
		case RefRefTable:
			if !r.clean {
				return nil // its place is decided when everything else has one
			}
		case RefCompressed:
			if !r.above(x.guest) {
				return fmt.Errorf("%s: compressed clusters are not supported", r.name(x))
			}
		case RefL2:
			done = x.index + 1
			if progress != nil {
				progress(done, total)
			}
		}
		if (x.kind == RefData || x.kind == RefCompressed) && r.above(x.guest) {
			if k := len(r.drops) - 1; k >= 0 && r.drops[k].Off+r.drops[k].Len == x.entryAt {
				r.drops[k].Len += 8
			} else {
				r.drops = append(r.drops, Extent{Off: x.entryAt, Len: 8})
			}
			return nil
		}
		if x.bad != "" {
			return fmt.Errorf("%s %s", r.name(x), x.bad)
		}
		for c := x.off >> im.clusterBits; c<<im.clusterBits < x.off+x.n; c++ {
			if r.used.has(c) {
				return fmt.Errorf("%s lies in a cluster that something else uses, too", r.name(x))
			}
			if err := r.used.set(c); err != nil {
				return err
			}
		}
		if !r.clean && (x.kind == RefData || x.kind == RefL2) && x.entry&flagCopied == 0 {
			r.fixes = append(r.fixes, fix{x.entryAt, x.entry | flagCopied})
		}
		return nil
	})
}

// name says what a reference is, and of which zone.
func (r *rebuilder) name(x *ref) string {
	if x.kind == RefData || x.kind == RefCompressed {
		return fmt.Sprintf("zone %d: %s", x.guest/r.im.zoneSize, x)
	}
	return x.String()
}

// above reports whether the guest cluster at the device offset lies wholly
// above its zone's write pointer in an image that was not closed: what it maps
// to was never acknowledged.
func (r *rebuilder) above(guest uint64) bool {
	im := r.im
	if r.clean || guest >= im.size {
		return false
	}
	zone := uint32(guest / im.zoneSize)
	return !im.conventional(zone) && guest >= im.Pointer(zone)
}

// plan gives the refcount table and its blocks their places: where they are, if
// nothing else is there.
func (r *rebuilder) plan() error {
	im, h := r.im, r.im.header()
	per := h.refBlockEntries()
	r.table = run{h.RefTableOffset >> im.clusterBits, int64(h.RefTableClusters)}
	r.blocks = make(map[int64]int64)
	old, err := r.oldBlocks()
	if err != nil {
		return err
	}
	r.end = r.used.end()
	stays := true
	for c := r.table.start; c < r.table.end(); c++ {
		stays = stays && !r.used.has(c)
	}
	need := func() int64 { return ((r.end-1)/per + 1) * 8 } // bytes of table
	if stays {
		r.end = max(r.end, r.table.end())
	}
	if need() > maxRefTableBytes {
		return fmt.Errorf("image is corrupt: its refcount table would take %d bytes, more than %d", need(), maxRefTableBytes)
	}
	if stays {
		err = r.mark(r.table)
	} else {
		r.table, err = r.place(r.table.n)
	}
	if err != nil {
		return err
	}
	// What is placed needs refcounts itself: go on until nothing is missing.
	queue := make(map[int64]bool)
	want := func(x run) {
		for k := x.start / per; k*per < x.end(); k++ {
			if r.blocks[k] == 0 {
				queue[k] = true
			}
		}
	}
	r.used.runs(want)
	for len(queue) > 0 {
		for _, k := range slices.Sorted(maps.Keys(queue)) {
			delete(queue, k)
			if r.blocks[k] != 0 {
				continue
			}
			x := run{0, 1}
			if k < int64(len(old)) {
				x.start = old[k]
			}
			if x.start != 0 && !r.used.has(x.start) {
				r.end = max(r.end, x.end())
				err = r.mark(x)
			} else {
				x, err = r.place(1)
			}
			if err != nil {
				return err
			}
			r.blocks[k] = x.start
			want(x)
		}
		if n := (need() + im.cs - 1) >> im.clusterBits; n > r.table.n {
			for c := r.table.start; c < r.table.end(); c++ {
				r.used.unset(c)
			}
			if r.table, err = r.place(n); err != nil {
				return err
			}
			want(r.table)
		}
	}
	return nil
}

// oldBlocks returns the clusters of the blocks that the old table names,
// whatever they are good for.
func (r *rebuilder) oldBlocks() ([]int64, error) {
	im := r.im
	buf := make([]byte, r.table.n<<im.clusterBits) // at most maxRefTableBytes
	if err := readPadded(im.f, buf, r.table.start<<im.clusterBits); err != nil {
		return nil, fmt.Errorf("read refcount table: %w", err)
	}
	old := make([]int64, len(buf)/8)
	for i := range old {
		if off := binary.BigEndian.Uint64(buf[i*8:]); off&uint64(im.cs-1) == 0 && off>>im.clusterBits < uint64(im.alloc.length()) {
			old[i] = int64(off >> im.clusterBits)
		}
	}
	return old, nil
}

func (r *rebuilder) mark(x run) error {
	for c := x.start; c < x.end(); c++ {
		if err := r.used.set(c); err != nil {
			return err
		}
	}
	return nil
}

// place takes n consecutive clusters that nothing refers to, behind all others
// if need be.
func (r *rebuilder) place(n int64) (run, error) {
	if r.free == nil {
		r.free = r.used.gaps(r.end)
	}
	x := run{r.end, n}
	for len(r.free) > 0 && n == 1 {
		c := r.free[0].start
		if r.free[0].n--; r.free[0].n == 0 {
			r.free = r.free[1:]
		} else {
			r.free[0].start++
		}
		if !r.used.has(c) {
			x.start = c
			break
		}
	}
	r.end = max(r.end, x.end())
	return x, r.mark(x)
}

// write carries out what has been found and planned.
func (r *rebuilder) write() error {
	im := r.im
	if r.end > im.alloc.length() {
		if err := im.f.Truncate(r.end << im.clusterBits); err != nil {
			return err
		}
		im.alloc.fileEnd.Store(r.end)
	}
	for _, d := range r.drops {
		if _, err := im.f.WriteAt(make([]byte, d.Len), d.Off); err != nil {
			return err
		}
	}
	for _, x := range r.fixes {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], x.entry)
		if _, err := im.f.WriteAt(b[:], x.at); err != nil {
			return err
		}
	}
	if err := r.writeRefcounts(); err != nil {
		return err
	}
	// From here on no durable entry refers to what is not in use.
	if err := im.f.Sync(); err != nil {
		return err
	}
	h := *im.header()
	if h.RefTableOffset != r.table.start<<im.clusterBits || int64(h.RefTableClusters) != r.table.n || h.Autoclear != 0 {
		h.RefTableOffset, h.RefTableClusters = r.table.start<<im.clusterBits, uint32(r.table.n)
		h.Autoclear = 0
		if err := im.putHeader(&h); err != nil {
			return err
		}
	}
	return r.release()
}

func (r *rebuilder) writeRefcounts() error {
	im := r.im
	per := im.header().refBlockEntries()
	table := make([]byte, r.table.n<<im.clusterBits)
	im.ref.table = make([]int64, len(table)/8)
	block := make([]byte, im.cs)
	flush := func(k int64) error {
		c := r.blocks[k]
		_, err := im.f.WriteAt(block, c<<im.clusterBits)
		clear(block)
		im.ref.table[k] = c << im.clusterBits
		binary.BigEndian.PutUint64(table[k*8:], uint64(c<<im.clusterBits))
		return err
	}
	at := int64(0) // the block in hand; the header's comes first
	var err error
	r.used.runs(func(x run) {
		for c := x.start; c < x.end() && err == nil; c++ {
			if k := c / per; k != at {
				err = flush(at)
				at = k
			}
			setRefcount(block, im.ref.order, int(c%per), 1)
		}
	})
	if err == nil {
		err = flush(at)
	}
	for k := range r.blocks { // of a range that the table has left since
		if err == nil && im.ref.table[k] == 0 {
			err = flush(k)
		}
	}
	if err != nil {
		return err
	}
	_, err = im.f.WriteAt(table, r.table.start<<im.clusterBits)
	return err
}

// release gives the file the length that it needs, and the space of what lies
// unused below back to the file system. Nothing makes these holes durable, so
// the clusters count as unclean.
func (r *rebuilder) release() error {
	im := r.im
	end := r.used.end()
	if err := im.f.Truncate(end << im.clusterBits); err != nil {
		return err
	}
	im.alloc.fileEnd.Store(end)
	var free []run
	for _, x := range r.used.gaps(end) {
		free = appendRun(free, x)
	}
	_ = im.punch(free)
	for _, x := range free {
		im.alloc.unclean.add(x)
	}
	return nil
}

// loadRefcounts reads the refcounts of a clean image, in which used has a
// reference each, and notes what is free.
func (im *Image) loadRefcounts(used *clusterSet) error {
	h := im.header()
	buf := make([]byte, int64(h.RefTableClusters)<<im.clusterBits) // at most maxRefTableBytes
	if err := readPadded(im.f, buf, h.RefTableOffset); err != nil {
		return fmt.Errorf("read refcount table: %w", err)
	}
	im.ref.table = make([]int64, len(buf)/8)
	for i := range im.ref.table {
		off := binary.BigEndian.Uint64(buf[i*8:])
		if off&uint64(im.cs-1) != 0 || off>>im.clusterBits >= uint64(im.alloc.length()) || off != 0 && im.isMetadata(int64(off)) {
			return fmt.Errorf("image is corrupt: refcount table entry %d is %#x, which is no place for a block", i, off)
		}
		im.ref.table[i] = int64(off)
	}
	var free []run
	block := make([]byte, im.cs)
	per, end := h.refBlockEntries(), im.alloc.length()
	for k, off := range im.ref.table {
		base := int64(k) * per
		n := min(per, end-base)
		if n <= 0 {
			break
		}
		if off == 0 {
			free = appendRun(free, run{base, n})
			continue
		}
		if err := readPadded(im.f, block, off); err != nil {
			return fmt.Errorf("read refcount block at %#x: %w", off, err)
		}
		if allZero(block) {
			free = appendRun(free, run{base, n})
			continue
		}
		for i := range n {
			if refcountAt(block, im.ref.order, int(i)) == 0 {
				free = appendRun(free, run{base + i, 1})
			}
		}
	}
	if known := int64(len(im.ref.table)) * per; known < end {
		free = appendRun(free, run{known, end - known})
	}
	for _, r := range free {
		im.alloc.unclean.add(r)
	}
	return im.checkInUse(used)
}

// checkInUse refuses an image whose refcounts call something free that is
// referred to: the first allocation would destroy it.
func (im *Image) checkInUse(used *clusterSet) (err error) {
	free := &im.alloc.unclean
	used.runs(func(x run) {
		if err == nil && free.overlaps(x) {
			c := max(x.start, free.runs[free.find(x.start)].start)
			err = fmt.Errorf("image is corrupt and was left as it is: the refcounts call the cluster at %#x free, which is in use; run qzbd check", c<<im.clusterBits)
		}
	})
	return err
}

// allZero reports whether all of b is zero.
func allZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}
