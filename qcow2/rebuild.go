package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// rebuild repairs a surveyed image whose dirty bit is set: its refcounts mean
// nothing (I5), and mappings may be ahead of the write pointers. So it does with
// one whose refcounts are damaged, and sets the bit. The mappings
// below the pointers are the truth; everything else follows from them.
//
// It writes in place, and whatever it writes, a cut in the middle leaves
// something that the next rebuild makes the same of. The dirty bit stays set.
func (r *rebuilder) rebuild() error {
	im := r.im
	if err := r.plan(); err != nil {
		return err
	}
	// The bit is durable before anything else is written (I5).
	if !im.header().Dirty() {
		if err := im.attach(); err != nil {
			return err
		}
	}
	if err := r.write(); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	return nil
}

type rebuilder struct {
	im    *Image
	clean bool       // the dirty bit is clear and stays so: there is nothing to change
	keep  bool       // mappings above the write pointers stay
	used  clusterSet // what something refers to
	amend bool       // entries have to be dropped or lack their flag

	progress func(done, total int64)
	total    int64

	table  run             // of the refcount table
	blocks map[int64]int64 // refcount block: its cluster
	free   []run           // for place
	end    int64           // clusters that the file needs
}

// errCorrupt is wrapped by the refusal of an image that contradicts itself.
var errCorrupt = errors.New("image is corrupt and was left as it is")

// survey finds out what is in use, and whether entries have to be changed. It
// refuses references that cannot be followed, that overlap, and compressed
// clusters: what is written through one of two references destroys the other's.
// In a clean image that is also said of what lies above the write pointers, and
// of the refcount structures; there it changes nothing.
func (r *rebuilder) survey(progress func(done, total int64)) error {
	im, h := r.im, r.im.header()
	r.progress, r.total = progress, int64(h.L1Size)
	if !r.clean {
		r.total *= 2 // amendEntries reads them once more
	}
	return walk(im.f, h, r.clean, func(x *ref) error {
		if x.kind == RefL2 {
			r.tell(x.index + 1)
		}
		switch {
		case x.kind == RefRefTable && !r.clean:
			return nil // its place is decided when everything else has one
		case x.data() && r.above(x.guest):
			r.amend = true
			return nil
		case x.kind == RefCompressed:
			return fmt.Errorf("%w: %s: compressed clusters are not supported", errCorrupt, x)
		case x.bad != "":
			return fmt.Errorf("%w: %s %s", errCorrupt, x, x.bad)
		}
		for c := x.off >> im.clusterBits; c<<im.clusterBits < x.off+x.n; c++ {
			if r.used.has(c) {
				return fmt.Errorf("%w: %s lies in a cluster that something else uses, too", errCorrupt, x)
			}
			if err := r.used.set(c); err != nil {
				return err
			}
		}
		r.amend = r.amend || r.lacksFlag(x)
		return nil
	})
}

func (r *rebuilder) tell(done int64) {
	if r.progress != nil {
		r.progress(done, r.total)
	}
}

// lacksFlag reports whether a reference lacks the flag that says that it is the
// only one to its cluster, which all are.
func (r *rebuilder) lacksFlag(x *ref) bool {
	return !r.clean && (x.kind == RefData || x.kind == RefL2) && x.entry&flagCopied == 0
}

// above reports whether the guest cluster at the device offset lies wholly
// above its zone's write pointer in an image that was not closed: what it maps
// to was never acknowledged.
func (r *rebuilder) above(guest uint64) bool {
	im := r.im
	if r.clean || r.keep || guest >= im.size {
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
	need := func(end int64) int64 { return ((end-1)/per + 1) * 8 } // bytes of table
	if n := need(r.end); n > maxRefTableBytes {
		return tooLongToCount(n)
	}
	if stays = stays && need(r.table.end()) <= maxRefTableBytes; stays {
		r.end = max(r.end, r.table.end())
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
			if x.start != 0 && !r.used.has(x.start) && need(x.end()) <= maxRefTableBytes {
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
		if n := need(r.end); n > maxRefTableBytes { // nothing has been written yet
			return tooLongToCount(n)
		}
		if n := (need(r.end) + im.cs - 1) >> im.clusterBits; n > r.table.n {
			// It and its blocks need refcounts themselves. Growing by what just
			// then is missing would place a long table again and again.
			n = (need(r.end+n+n/per+2) + im.cs - 1) >> im.clusterBits
			n = min(n, maxRefTableBytes>>im.clusterBits)
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

func tooLongToCount(n int64) error {
	return fmt.Errorf("%w: its refcount table would take %d bytes, more than %d", errCorrupt, n, maxRefTableBytes)
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
	if err := r.amendEntries(); err != nil {
		return err
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

// amendEntries drops the entries above the write pointers and sets the flags
// that others lack. It finds them once more: there may be more of them than
// should be kept in memory.
func (r *rebuilder) amendEntries() error {
	if !r.amend {
		return nil
	}
	p := patcher{f: r.im.f}
	err := walk(r.im.f, r.im.header(), false, func(x *ref) error {
		if x.kind == RefL2 {
			r.tell(r.total/2 + x.index + 1)
		}
		switch {
		case x.data() && r.above(x.guest):
			return p.put(x.entryAt, 0)
		case r.lacksFlag(x):
			return p.put(x.entryAt, x.entry|flagCopied)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return p.flush()
}

// patcher overwrites entries of tables, neighbours with one write.
type patcher struct {
	f   File
	at  int64 // in the file
	buf []byte
}

func (p *patcher) put(at int64, entry uint64) error {
	if at != p.at+int64(len(p.buf)) || len(p.buf) >= walkChunk {
		if err := p.flush(); err != nil {
			return err
		}
		p.at = at
	}
	p.buf = binary.BigEndian.AppendUint64(p.buf, entry)
	return nil
}

func (p *patcher) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	_, err := p.f.WriteAt(p.buf, p.at)
	p.buf = p.buf[:0]
	return err
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
// reference each, and notes what is free, up to maxFreeRuns: what is not known to
// be free is not handed out.
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
		if n <= 0 || len(free) >= maxFreeRuns {
			break
		}
		if off == 0 {
			free = appendRun(free, run{base, n})
			continue
		}
		hole := isHole(im.f, off, im.cs)
		if !hole {
			if err := readPadded(im.f, block, off); err != nil {
				return fmt.Errorf("read refcount block at %#x: %w", off, err)
			}
		}
		if hole || allZero(block) {
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
			err = fmt.Errorf("image is corrupt and was left as it is: the refcounts call the cluster at %#x free, which is in use; run qzbd check -r all", c<<im.clusterBits)
		}
	})
	return err
}

// allZero reports whether all of b is zero.
func allZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}
