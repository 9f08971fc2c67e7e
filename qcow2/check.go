package qcow2

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// CheckReport is the result of Check. The JSON names are qemu-img's where it
// has the same number.
type CheckReport struct {
	Corruptions int64 `json:"corruptions"`
	Leaks       int64 `json:"leaks"` // clusters

	// What a repair has found and this check no longer finds.
	CorruptionsFixed int64 `json:"corruptions-fixed,omitempty"`
	LeaksFixed       int64 `json:"leaks-fixed,omitempty"`

	TotalClusters     int64 `json:"total-clusters"`     // of the device
	AllocatedClusters int64 `json:"allocated-clusters"` // of the device
	// ImageEnd is where the last cluster in use ends, in bytes of the file, which
	// may be longer.
	ImageEnd int64 `json:"image-end-offset"`

	// Dirty: refcounts mean nothing until the image is next opened for writing,
	// which counts them anew; they were not looked at.
	Dirty bool `json:"dirty-flag"`
	// Ahead counts mappings above a write pointer, where they cannot be read. In
	// a dirty image they are leaks.
	Ahead int64 `json:"clusters-above-write-pointer"`
	// Unplaced counts clusters below the write pointers of partly written zones
	// that have no place in the file and read as zeros; see tellUnplaced.
	Unplaced int64 `json:"zeros-below-write-pointer"`

	// Messages has the first of what was found, a sentence each.
	Messages []string `json:"messages,omitempty"`
	Omitted  int64    `json:"messages-omitted,omitempty"`
}

// The exit codes of qemu-img check.
const (
	exitClean   = 0
	exitCorrupt = 2
	exitLeaks   = 3
)

// ExitCode is qemu-img check's: 0 clean, 2 corruption, 3 leaks and nothing
// worse.
func (r *CheckReport) ExitCode() int {
	switch {
	case r.Corruptions > 0:
		return exitCorrupt
	case r.Leaks > 0:
		return exitLeaks
	}
	return exitClean
}

// checkMessages is how many findings are told in words.
const checkMessages = 100

func (r *CheckReport) say(format string, args ...any) {
	if len(r.Messages) == checkMessages {
		r.Omitted++
		return
	}
	r.Messages = append(r.Messages, fmt.Sprintf(format, args...))
}

func (r *CheckReport) corrupt(format string, args ...any) {
	r.Corruptions++
	r.say("corruption: "+format, args...)
}

func (r *CheckReport) leak(n int64, format string, args ...any) {
	r.Leaks += n
	r.say("leak: "+format, args...)
}

// Check compares what refers to the clusters of an image with its refcounts,
// and the mappings with the write pointers. It reads only. progress may be nil;
// it is told how many table entries of how many have been looked at.
//
// An error means that the check could not be done, also because ReadHeader
// refuses the image or it needs what is not built.
func Check(f File, progress func(done, total int64)) (*CheckReport, error) {
	if err := settle(f, &Options{ReadOnly: true}); err != nil {
		return nil, err
	}
	c, err := check(f, progress)
	if err != nil {
		return nil, err
	}
	return &c.rep, nil
}

func check(f File, progress func(done, total int64)) (*checker, error) {
	h, meta, err := readHeader(f)
	if err != nil {
		return nil, err
	}
	if err := h.Built(); err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	c := &checker{f: f, h: h, size: size, progress: progress}
	c.rep.Dirty = h.Dirty()
	c.rep.TotalClusters = int64((h.Size-1)>>h.ClusterBits) + 1
	if c.rep.Dirty {
		c.rep.say("note: the image was not closed; its refcounts are counted anew when it is next opened for writing, and were not checked")
	}
	c.judgePointers(meta)
	if err := c.readTable(); err != nil {
		return nil, err
	}
	c.total = int64(h.L1Size) + int64(len(c.table))
	if err := walk(f, h, !c.rep.Dirty, c.visit); err != nil {
		return nil, err
	}
	c.tellAhead()
	c.tellUnplaced()
	c.end = c.refs.end()
	if !c.rep.Dirty {
		if err := c.compareBlocks(); err != nil {
			return nil, err
		}
		c.findUncounted()
	}
	c.rep.ImageEnd = c.end << h.ClusterBits
	c.progress(c.total, c.total)
	return c, nil
}

type checker struct {
	f        File
	h        *Header
	size     int64 // of the file
	rep      CheckReport
	progress func(done, total int64)
	total    int64 // table entries

	// What no refcount says: entries that cannot be followed, structures that
	// overlap, pointers outside their zones.
	contradictions int64
	badPointers    bool
	unflagged      bool // an entry lacks its flag because its cluster's refcount is too high

	masked []uint64 // per zone: device offset from which mappings are ahead
	// unplaced counts down, per partly written zone, the clusters below its
	// pointer that have no place in the file.
	unplaced []int64
	full     []int64 // per full zone: its clusters; unplaced is minus those that have a place
	leaked   []run   // what nothing refers to, though its refcount says so
	refs     refMap
	end      int64    // the cluster behind the last one that has references or a refcount
	table    []uint64 // the refcount table
	blocks   blockCache
	ahead    struct { // mappings of one zone above its write pointer, not yet told
		n     int64
		zone  uint64
		first uint64 // guest offset
	}
}

// judgePointers decodes zonedmeta entry by entry: one that is damaged must not
// hide the others.
func (c *checker) judgePointers(meta []byte) {
	h := c.h
	cs := uint64(h.ClusterSize())
	partly := uint32(0)
	c.masked = make([]uint64, h.Zoned.NrZones)
	c.unplaced, c.full = make([]int64, h.Zoned.NrZones), make([]int64, h.Zoned.NrZones)
	for i := range h.Zoned.NrZones {
		start := h.ZoneStart(i)
		c.masked[i] = start + h.ZoneLength(i)
		wp, err := h.decodeEntry(meta[8*i:], i)
		if err != nil {
			c.contradict("%v", err)
			c.badPointers = true
			continue
		}
		if i < h.Zoned.Conventional {
			continue
		}
		c.masked[i] = (wp + cs - 1) &^ (cs - 1)
		if wp > start && wp < start+h.ZoneCapacity(i) {
			partly++
			c.unplaced[i] = int64(c.masked[i]-start) >> h.ClusterBits
		} else if wp > start {
			c.full[i] = int64(c.masked[i]-start) >> h.ClusterBits
		}
	}
	if limit := h.Zoned.MaxActive; limit != 0 && partly > limit {
		c.rep.say("note: %d zones are neither empty nor full, max_active_zones is %d: no more zones can be written until some are full or reset", partly, limit)
	}
}

func (c *checker) readTable() error {
	raw := make([]byte, int64(c.h.RefTableClusters)<<c.h.ClusterBits)
	if err := readPadded(c.f, raw, c.h.RefTableOffset); err != nil {
		return fmt.Errorf("read refcount table: %w", err)
	}
	c.table = make([]uint64, len(raw)/8)
	for i := range c.table {
		c.table[i] = binary.BigEndian.Uint64(raw[8*i:])
	}
	return nil
}

func (c *checker) contradict(format string, args ...any) {
	c.contradictions++
	c.rep.corrupt(format, args...)
}

// visit counts one reference.
func (c *checker) visit(r *ref) error {
	if r.kind == RefL2 {
		c.progress(r.index, c.total)
	}
	if r.bad != "" {
		c.contradict("%s %s", r, r.bad)
		return nil
	}
	for at := r.off &^ (c.h.ClusterSize() - 1); at < r.off+r.n; at += c.h.ClusterSize() {
		shared, err := c.refs.add(at>>c.h.ClusterBits, !r.data())
		if err != nil {
			return err
		}
		if shared || r.kind == RefData && c.refs.count(at>>c.h.ClusterBits) > 1 {
			c.contradict("%s overlaps another structure in the cluster at %#x", r, at)
			switch r.kind {
			case RefRefBlock:
				c.table[r.index] = 0 // a block is not compared twice
			case RefL2:
				return errSkip
			}
		}
	}
	switch r.kind {
	case RefL2:
		return c.checkCopied(r, L1Entry(r.entry).Copied())
	case RefData:
		c.rep.AllocatedClusters++
		c.checkAhead(r)
		return c.checkCopied(r, L2Entry(r.entry).Copied())
	case RefCompressed:
		c.rep.AllocatedClusters++
		if c.checkAhead(r); c.rep.Dirty && c.isAhead(r.guest) && r.guest < c.h.Size {
			return nil // dropped when the image is opened
		}
		c.contradict("%s: the cluster of guest offset %#x (entry at %#x) is compressed, which is not supported", r.zones(), r.guest, r.entryAt)
		if L2Entry(r.entry).Copied() {
			c.rep.corrupt("%s has the copied flag, which a compressed cluster must not have", r)
		}
	}
	return nil
}

// isAhead reports whether the guest offset is above its zone's write pointer.
func (c *checker) isAhead(guest uint64) bool {
	z := guest / c.h.Zoned.ZoneSize
	return z >= uint64(len(c.masked)) || guest >= c.masked[z]
}

// checkAhead finds a mapping that no read can reach.
func (c *checker) checkAhead(r *ref) {
	if !c.isAhead(r.guest) {
		c.unplaced[r.guest/c.h.Zoned.ZoneSize]--
		return
	}
	z := r.guest / c.h.Zoned.ZoneSize
	c.rep.Ahead++
	if !c.rep.Dirty {
		return
	}
	if z >= uint64(len(c.masked)) {
		c.rep.leak(1, "%s is beyond the end of the device", r)
		return
	}
	if c.ahead.n != 0 && c.ahead.zone != z {
		c.tellAhead()
	}
	if c.ahead.n++; c.ahead.n == 1 {
		c.ahead.zone, c.ahead.first = z, r.guest
	}
}

// tellAhead reports the clusters of one zone that checkAhead has counted: a
// server maps ahead of its data, so there are many.
func (c *checker) tellAhead() {
	if a := &c.ahead; a.n != 0 {
		c.rep.leak(a.n, "%d data clusters from guest offset %#x on are above the write pointer of zone %d", a.n, a.first, a.zone)
		a.n = 0
	}
}

// tellUnplaced notes what a partly written zone has below its write pointer
// without a place in the file. That is no contradiction of the pointer, however
// odd: write-zeroes moves a pointer over clusters that never get one, here as
// in the founding series, which may besides lose data and keep the pointer, and
// of which no image says that it has written it. A full zone needs no note: a
// finish fills it so.
//
// What does contradict a pointer, whoever wrote the image and however it was
// interrupted, is found entry by entry and named with its zone: a word of
// zonedmeta that no zone can have, and an entry below a pointer, or the table
// it should be in, that leads out of the file, into something else, or nowhere.
// The length of the file is durable before an entry refers to it, and entries
// before the pointers above them.
func (c *checker) tellUnplaced() {
	first, zones := -1, 0
	for i, n := range c.unplaced {
		if n <= 0 {
			continue
		}
		if zones++; zones == 1 {
			first = i
		}
		c.rep.Unplaced += n
	}
	if zones != 0 {
		c.rep.say("note: %d clusters below the write pointers of %d partly written zones, zone %d first, have no place in the file: they read as zeros, as write-zeroes leaves them", c.rep.Unplaced, zones, first)
	}
}

// checkCopied compares the copied flag of an entry with the refcount it is a
// copy of.
func (c *checker) checkCopied(r *ref, copied bool) error {
	if c.rep.Dirty {
		return nil
	}
	n, err := c.refcount(r.off >> c.h.ClusterBits)
	if err != nil {
		return err
	}
	if !copied && n > 1 {
		c.unflagged = true
	}
	if copied != (n == 1) && n != 0 { // a refcount of 0 is found by compareBlocks
		c.rep.corrupt("%s has the copied flag %v, but a refcount of %d", r, copied, n)
	}
	return nil
}

// refBlockAt returns where refcount block i is, 0 if there is none that can be
// read.
func (c *checker) refBlockAt(i int64) int64 {
	if i >= int64(len(c.table)) {
		return 0
	}
	off := int64(c.table[i])
	if off < 0 || off&(c.h.ClusterSize()-1) != 0 || off >= c.size {
		return 0 // the walk has told
	}
	return off
}

// refcount returns what the image has as refcount of a cluster.
func (c *checker) refcount(cluster int64) (uint64, error) {
	n := c.h.refBlockEntries()
	at := c.refBlockAt(cluster / n)
	if at == 0 {
		return 0, nil
	}
	// A piece of the block is enough: an image can have us read another block
	// for every entry.
	piece := min(n, cachedBytes*8>>c.h.RefcountOrder)
	k := cluster % n
	block, err := c.blocks.read(c.f, at+(k&^(piece-1))<<c.h.RefcountOrder>>3, piece<<c.h.RefcountOrder>>3)
	if err != nil {
		return 0, err
	}
	return refcountAt(block, c.h.RefcountOrder, int(k&(piece-1))), nil
}

// compareBlocks compares every refcount there is with the references counted.
func (c *checker) compareBlocks() error {
	return c.eachBlock(func(i int64, block []byte) error {
		c.eachRefcount(i, block, func(cluster int64, k int) {
			c.compare(cluster, refcountAt(block, c.h.RefcountOrder, k))
		})
		return nil
	})
}

// eachRefcount calls fn with each cluster of refcount block i whose refcount or
// references are not 0, and some others: with large clusters a block has
// millions of refcounts, most of them of clusters that the file does not have.
func (c *checker) eachRefcount(i int64, block []byte, fn func(cluster int64, k int)) {
	n, order := c.h.refBlockEntries(), c.h.RefcountOrder
	for k := int64(0); k < n; k += refPageSize {
		first, count := i*n+k, min(refPageSize, n-k)
		if c.refs.none(first, count) && allZero(block[k<<order>>3:(k+count)<<order>>3]) {
			continue
		}
		for j := range count {
			fn(first+j, int(k+j))
		}
	}
}

// eachBlock calls fn with each refcount block that says anything or should.
func (c *checker) eachBlock(fn func(i int64, block []byte) error) error {
	n := c.h.refBlockEntries()
	block := make([]byte, c.h.ClusterSize())
	for i := range c.table {
		c.progress(int64(c.h.L1Size)+int64(i), c.total)
		at := c.refBlockAt(int64(i))
		if at == 0 {
			continue
		}
		// A table can be full of blocks that say nothing, each a hole.
		unused := c.refs.none(int64(i)*n, n)
		if unused && isHole(c.f, at, int64(len(block))) {
			continue
		}
		if err := readPadded(c.f, block, at); err != nil {
			return fmt.Errorf("read refcount block at %#x: %w", at, err)
		}
		if unused && allZero(block) {
			continue
		}
		if err := fn(int64(i), block); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) compare(cluster int64, refcount uint64) {
	refs := c.refs.count(cluster)
	if refcount > 0 {
		c.end = max(c.end, cluster+1)
	}
	switch {
	case refcount < refs:
		c.rep.corrupt("the cluster at %#x has refcount %d, but %d references", cluster<<c.h.ClusterBits, refcount, refs)
	case refcount > refs && refs == maxRefs:
		// More references than are counted.
	case refcount > refs:
		c.rep.leak(1, "the cluster at %#x has refcount %d, but %d references", cluster<<c.h.ClusterBits, refcount, refs)
		if refs == 0 {
			c.leaked = append(c.leaked, run{cluster, 1})
			c.leaked = mergeLast(c.leaked)
		}
	}
}

// mergeLast joins the last run to the one before it if it follows that.
func mergeLast(rs []run) []run {
	if k := len(rs) - 1; k > 0 && rs[k-1].end() == rs[k].start {
		rs[k-1].n += rs[k].n
		return rs[:k]
	}
	return rs
}

// orphans reports how many clusters below write pointers have no place in the
// file, if leaked clusters hold data that could be theirs: what write-zeroes and
// finish leave looks like what a lost piece of a mapping table leaves, but that
// leaves data, too.
func (c *checker) orphans() (missing int64, err error) {
	for i := range c.full {
		missing += max(c.full[i]+c.unplaced[i], 0)
	}
	if missing == 0 {
		return 0, nil
	}
	buf := make([]byte, c.h.ClusterSize())
	for _, r := range c.leaked {
		for cluster := r.start; cluster < r.end(); cluster++ {
			at := cluster << c.h.ClusterBits
			if at >= c.size || isHole(c.f, at, int64(len(buf))) {
				continue
			}
			if err := readPadded(c.f, buf, at); err != nil {
				return 0, fmt.Errorf("read leaked cluster at %#x: %w", at, err)
			}
			if !allZero(buf) {
				return missing, nil
			}
		}
	}
	return 0, nil
}

// findUncounted finds references to clusters for which there is no refcount
// block.
func (c *checker) findUncounted() {
	n := c.h.refBlockEntries()
	for cluster := range c.refs.all() {
		if c.refBlockAt(cluster/n) == 0 {
			c.compare(cluster, 0)
		}
	}
}

// blockCache keeps the last few pieces of refcount blocks read. A zone's
// clusters lie together, so that it nearly always has the one that is asked for.
type blockCache struct {
	blocks []cachedBlock // the last one used first
}

type cachedBlock struct {
	at   int64
	data []byte
}

const (
	cachedBlocks = 8
	cachedBytes  = 4 << 10 // at most, of one block
)

func (b *blockCache) read(f File, at, n int64) ([]byte, error) {
	i := slices.IndexFunc(b.blocks, func(c cachedBlock) bool { return c.at == at })
	var c cachedBlock
	switch {
	case i >= 0:
		c = b.blocks[i]
		b.blocks = slices.Delete(b.blocks, i, i+1)
	case len(b.blocks) == cachedBlocks:
		c, b.blocks = b.blocks[cachedBlocks-1], b.blocks[:cachedBlocks-1]
	default:
		c.data = make([]byte, n)
	}
	if i < 0 {
		c.at = at
		if err := readPadded(f, c.data, at); err != nil {
			return nil, fmt.Errorf("read refcount block at %#x: %w", at, err)
		}
	}
	b.blocks = slices.Insert(b.blocks, 0, c)
	return c.data, nil
}
