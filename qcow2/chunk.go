package qcow2

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
)

// A zone is mapped ahead of its data, because mappings of durably zero clusters
// are harmless: a chunk is as long as what the zone has already, between these
// bounds, so that a zone takes few trips to a worker and a zone with little
// data takes little metadata.
const (
	minChunkBytes    = 4 << 20
	maxChunkBytes    = 64 << 20
	minChunkClusters = 64
	maxChunkClusters = 4096 // of metadata for one request

	// In a conventional zone, where requests do not follow each other, only a
	// little more than what is asked for is allocated.
	conventionalChunkClusters = 4
)

// mapWrite gives every byte of [off, off+n) a place of its own in the file.
func (im *Image) mapWrite(off, n uint64) error {
	im.lock()
	defer im.unlock()
	if err := im.attach(); err != nil {
		return err
	}
	zone := uint32(off / im.zoneSize)
	end := int64((off+n-1)>>im.clusterBits) + 1
	for g := int64(off >> im.clusterBits); g < end; {
		e, err := im.entry(g)
		if err != nil {
			return err
		}
		k := int64(1)
		switch {
		case e.Writable():
		case e == 0:
			k, err = im.mapChunk(zone, g, end)
		default:
			err = im.replace(zone, g, e)
		}
		if err != nil {
			return err
		}
		g += k
	}
	return nil
}

// mapChunk maps unmapped guest clusters of zone from g on, at least one, up to
// end and ahead of it as far as is sensible. It returns how many.
func (im *Image) mapChunk(zone uint32, g, end int64) (int64, error) {
	first, last := im.clusterOf(im.zoneStart(zone)), im.clusterUp(im.zoneEnd(zone))
	ahead := int64(conventionalChunkClusters)
	need := int64(0)
	if !im.conventional(zone) {
		ahead = min(max(g-first, minChunkBytes>>im.clusterBits), maxChunkBytes>>im.clusterBits)
		ahead = min(max(ahead, minChunkClusters), maxChunkClusters)
		need = last - g
	}
	k, err := im.unmapped(g, max(min(last, g+ahead), end))
	if err != nil {
		return 0, err
	}
	need = max(need, k)
	after := int64(0)
	if g > first {
		e, err := im.entry(g - 1)
		if err != nil {
			return 0, err
		}
		if e.Writable() {
			after = e.Offset()>>im.clusterBits + 1
		}
	}
	r, err := im.carve(zone, k, need, after)
	if err != nil {
		return 0, fmt.Errorf("allocate for zone %d: %w", zone, err)
	}
	// Whatever can fail for lack of space comes before the first change (I11).
	if err := im.prepare(g, r); err != nil {
		if e := im.uncarve(zone, r); e != nil {
			return 0, im.fail(e)
		}
		return 0, fmt.Errorf("allocate for zone %d: %w", zone, err)
	}
	if err := im.setRefs(r, 1); err != nil {
		return 0, err
	}
	im.mapped.set(int64(zone))
	im.ahead.set(int64(zone))
	return r.n, im.setEntries(g, r)
}

// prepare makes the tables and refcount blocks that mapping guest clusters from
// g to r takes.
func (im *Image) prepare(g int64, r run) error {
	if err := im.ensureBlocks(r); err != nil {
		return err
	}
	for t := g >> im.tableBits; t<<im.tableBits < g+r.n; t++ {
		if err := im.ownTable(t); err != nil {
			return err
		}
	}
	return nil
}

// unmapped counts the guest clusters in [g, end) from g on whose entries are
// zero.
func (im *Image) unmapped(g, end int64) (int64, error) {
	for i := g; i < end; i++ {
		s, err := im.cache.get(i >> im.sliceBits)
		if err != nil {
			return 0, err
		}
		for ; i < end; i++ {
			if s.at(i&(im.sliceLen-1)) != 0 {
				return i - g, nil
			}
			if (i+1)&(im.sliceLen-1) == 0 {
				break
			}
		}
	}
	return end - g, nil
}

// replace gives guest cluster g, whose entry e must not be written in place, a
// cluster of its own with the same contents.
func (im *Image) replace(zone uint32, g int64, e L2Entry) error {
	if e.Compressed() {
		return fmt.Errorf("the cluster at device offset %d is compressed, which is not supported", g<<im.clusterBits)
	}
	r, err := im.takeMeta(1)
	if err != nil {
		return fmt.Errorf("allocate for zone %d: %w", zone, err)
	}
	undo := func(err error) error {
		im.giveBack(r)
		return fmt.Errorf("allocate for zone %d: %w", zone, err)
	}
	if err := im.prepare(g, r); err != nil {
		return undo(err)
	}
	if e.Offset() != 0 && !e.Zero() {
		buf, data := alignedBytes(int(im.cs)), dataWay(im.f)
		if err := readPadded(data, buf, e.Offset()); err != nil {
			return undo(err)
		}
		if _, err := data.WriteAt(buf, r.start<<im.clusterBits); err != nil {
			// The cluster is no longer known to be zero: nobody gets it
			// before the image has been opened again.
			return fmt.Errorf("copy a cluster of zone %d: %w", zone, err)
		}
		// The copy is durable before the entry refers to it (I2).
		if err := im.f.Sync(); err != nil {
			return im.fail(fmt.Errorf("sync of a copied cluster: %w", err)) // I8
		}
	}
	if err := im.setRefs(r, 1); err != nil {
		return err
	}
	if err := im.setEntries(g, r); err != nil {
		return err
	}
	im.mapped.set(int64(zone))
	return im.dropOld(e.Offset())
}

// dropOld takes a reference from the cluster at off that has been replaced. It
// is not used again before the image is closed, even if this was the last one:
// reads that were mapped before may still be in flight.
func (im *Image) dropOld(off int64) error {
	if off == 0 {
		return nil
	}
	_, err := im.dropRef(off >> im.clusterBits)
	return err
}

// ownTable makes sure that L2 table t exists and may be written in place. The
// token is held.
func (im *Image) ownTable(t int64) error {
	e := L1Entry(im.l1[t])
	if e.Offset() != 0 && e.Copied() {
		return im.reserveMeta(e.Offset())
	}
	r, err := im.takeMeta(1)
	if err != nil {
		return err
	}
	if err := im.ensureBlocks(r); err != nil {
		im.giveBack(r)
		return err
	}
	if e.Offset() != 0 {
		buf := make([]byte, im.cs)
		if err := readPadded(im.f, buf, e.Offset()); err != nil {
			im.giveBack(r)
			return err
		}
		if _, err := im.f.WriteAt(buf, r.start<<im.clusterBits); err != nil {
			return im.fail(fmt.Errorf("copy an L2 table: %w", err))
		}
		if err := im.f.Sync(); err != nil {
			return im.fail(fmt.Errorf("sync of a copied L2 table: %w", err)) // I8
		}
	}
	if err := im.setRefs(r, 1); err != nil {
		return err
	}
	// The table is durable: as the copy above, or as a cluster that has been
	// durably zero since before it was taken. So the L1 entry may follow at
	// once; the next round makes it durable together with what it leads to.
	v := uint64(r.start<<im.clusterBits) | flagCopied
	var buf [8]byte
	binary.BigEndian.PutUint64(buf[:], v)
	if _, err := im.f.WriteAt(buf[:], im.header().L1Offset+t*8); err != nil {
		return im.fail(fmt.Errorf("write L1 table: %w", err))
	}
	atomic.StoreUint64(&im.l1[t], v)
	return im.dropOld(e.Offset())
}

// setEntries maps the guest clusters from g on to the clusters of r, in the
// page cache first. Their tables exist. The token is held.
func (im *Image) setEntries(g int64, r run) error {
	vals := im.vals[:0]
	for c := r.start; c < r.end(); c++ {
		vals = append(vals, uint64(c<<im.clusterBits)|flagCopied)
	}
	im.vals = vals
	return im.writeEntries(g, vals)
}

// writeEntries writes the entries of guest clusters g, g+1, …, with one write
// per table. An error has failed the image.
func (im *Image) writeEntries(g int64, vals []uint64) error {
	for len(vals) > 0 {
		i := g & (im.tableLen - 1)
		part := vals[:min(int64(len(vals)), im.tableLen-i)]
		buf := im.buffer(int64(len(part)) * 8)
		for k, v := range part {
			binary.BigEndian.PutUint64(buf[k*8:], v)
		}
		at := L1Entry(im.l1[g>>im.tableBits]).Offset() + i*8
		if _, err := im.f.WriteAt(buf, at); err != nil {
			return im.fail(fmt.Errorf("write L2 table: %w", err))
		}
		im.cache.store(g, part)
		g, vals = g+int64(len(part)), vals[len(part):]
	}
	return nil
}

// buffer returns n bytes that are valid until the next call. The token is held.
func (im *Image) buffer(n int64) []byte {
	if int64(cap(im.scratch)) < n {
		im.scratch = make([]byte, n)
	}
	return im.scratch[:n]
}
