package qcow2

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Reset makes the write pointers of zones durable at their start and then
// forgets what the zones contain (I4): first the pointers, then the entries,
// and the clusters last, in later rounds. No I/O is in flight in these zones.
func (im *Image) Reset(zones []uint32) error {
	if im.readOnly {
		return ErrReadOnly
	}
	if err := im.Failed(); err != nil {
		return err
	}
	// What may refuse the reset comes before the first change (I11).
	for _, zone := range zones {
		if err := im.checkMappings(zone); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(zones, func(z uint32) bool { return !im.pointers.at(z, im.zoneStart(z)) }) {
		im.lock()
		err := im.attach()
		im.unlock()
		if err == nil {
			err = im.syncer.reset(zones)
		}
		if err != nil {
			return err
		}
	}
	for _, zone := range zones {
		if err := im.forget(zone); err != nil {
			return err
		}
	}
	return nil
}

// checkMappings reads all entries of zone and refuses those that no image may
// have. Nothing else changes them meanwhile.
func (im *Image) checkMappings(zone uint32) error {
	im.lock()
	defer im.unlock()
	if !im.mapped.has(int64(zone)) {
		return nil
	}
	for g, end := im.clusterOf(im.zoneStart(zone)), im.lastCluster(zone); g < end; {
		n := min(end-g, im.tableLen-g&(im.tableLen-1))
		if _, err := im.readEntries(g, n); err != nil {
			return err
		}
		g += n
	}
	return nil
}

// readEntries reads and checks the entries of guest clusters [g, g+n), which
// are in one table; nil if there is none.
func (im *Image) readEntries(g, n int64) ([]L2Entry, error) {
	table := L1Entry(im.l1[g>>im.tableBits]).Offset()
	if table == 0 {
		return nil, nil
	}
	buf := make([]byte, n*8)
	if err := readPadded(im.f, buf, table+g&(im.tableLen-1)*8); err != nil {
		return nil, fmt.Errorf("read L2 table at %#x: %w", table, err)
	}
	entries := make([]L2Entry, n)
	for i := range entries {
		e := L2Entry(binary.BigEndian.Uint64(buf[i*8:]))
		if e != 0 {
			if err := im.checkEntry(g+int64(i), e); err != nil {
				return nil, err
			}
		}
		entries[i] = e
	}
	return entries, nil
}

// forget detaches everything that zone has.
func (im *Image) forget(zone uint32) error {
	im.lock()
	defer im.unlock()
	if err := im.Failed(); err != nil {
		return err
	}
	if err := im.alloc.dissolve(zone); err != nil {
		return im.fail(err)
	}
	if !im.mapped.has(int64(zone)) {
		return nil
	}
	if err := im.detach(im.clusterOf(im.zoneStart(zone)), im.lastCluster(zone)); err != nil {
		if im.Failed() != nil {
			return err
		}
		// The reset has happened: the pointer is durable. What is still mapped
		// lies above it, where nobody reads it, and is written in place.
		im.ahead.set(int64(zone))
		return nil
	}
	im.mapped.unset(int64(zone))
	im.ahead.unset(int64(zone))
	return nil
}

// Finish makes everything from the absolute byte offset wp to the zone's
// capacity read as zeros and stages the zone as full. No I/O is in flight in
// the zone. The next round makes both durable at once: it syncs the zeros
// before it writes the pointer.
func (im *Image) Finish(zone uint32, wp uint64) error {
	im.lock()
	defer im.unlock()
	if err := im.attach(); err != nil {
		return err
	}
	up := uint64(im.clusterUp(wp)) << im.clusterBits
	if err := im.zero(zone, wp, up); err != nil {
		return err
	}
	if err := im.alloc.dissolve(zone); err != nil {
		return im.fail(err)
	}
	if im.mapped.has(int64(zone)) {
		if err := im.detach(im.clusterUp(wp), im.lastCluster(zone)); err != nil {
			return err
		}
	}
	im.ahead.unset(int64(zone))
	im.Stage(zone, im.header().finishedPointer(zone))
	return nil
}

// Zero makes [off, off+n) read as zeros.
func (im *Image) Zero(off, n uint64) error {
	if off+n > im.size || off+n < off {
		return fmt.Errorf("range of %d bytes at %d is beyond the device's %d bytes", n, off, im.size)
	}
	im.lock()
	defer im.unlock()
	if im.readOnly {
		return ErrReadOnly
	}
	if err := im.Failed(); err != nil {
		return err
	}
	zone := uint32(off / im.zoneSize)
	if !im.conventional(zone) { // its pointer will move
		if err := im.attach(); err != nil {
			return err
		}
	}
	return im.zero(zone, off, off+n)
}

// zero punches what [off, end) is mapped to; what is not mapped reads as zeros
// already. The token is held.
func (im *Image) zero(zone uint32, off, end uint64) error {
	var hole Extent // in the file, not punched yet
	for off < end {
		g, in := int64(off>>im.clusterBits), int64(off)&(im.cs-1)
		n := min(im.cs-in, int64(end-off))
		e, err := im.entry(g)
		if err != nil {
			return err
		}
		off += uint64(n)
		if !e.Compressed() && (e.Offset() == 0 || e.Zero()) {
			continue
		}
		if err := im.attach(); err != nil {
			return err
		}
		if !e.Writable() {
			if err := im.replace(zone, g, e); err != nil {
				return err
			}
			if e, err = im.entry(g); err != nil {
				return err
			}
		}
		if at := e.Offset() + in; hole.Off+hole.Len != at {
			if err := im.punchBytes(hole); err != nil {
				return err
			}
			hole = Extent{Off: at}
		}
		hole.Len += n
	}
	return im.punchBytes(hole)
}

func (im *Image) punchBytes(e Extent) error {
	if e.Len == 0 {
		return nil
	}
	if err := im.f.Punch(e.Off, e.Len); err != nil {
		return fmt.Errorf("write zeros: %w", err)
	}
	return nil
}

// detach clears the entries of guest clusters [g, end) and puts the clusters
// they refer to into quarantine. The token is held.
func (im *Image) detach(g, end int64) error {
	for g < end {
		n := min(end-g, im.tableLen-g&(im.tableLen-1))
		if err := im.detachPart(g, n); err != nil {
			return err
		}
		g += n
	}
	return nil
}

// detachPart is detach within one table.
func (im *Image) detachPart(g, n int64) error {
	entries, err := im.readEntries(g, n)
	if err != nil {
		return err
	}
	var own []run       // refcount 1
	var foreign []int64 // clusters with any refcount
	first, last := int64(-1), int64(-1)
	for i, e := range entries {
		if e == 0 {
			continue
		}
		if first < 0 {
			first = int64(i)
		}
		last = int64(i)
		c := e.Offset() >> im.clusterBits
		switch {
		case e.Compressed(): // what it shares a cluster with is not known: it leaks
		case c == 0:
		case e.Copied():
			own = appendRun(own, run{c, 1})
		default:
			foreign = append(foreign, c)
		}
	}
	if first < 0 {
		return nil
	}
	if err := im.attach(); err != nil {
		return err
	}
	if err := im.ownTable(g >> im.tableBits); err != nil {
		return err
	}
	if err := im.writeEntries(g+first, make([]uint64, last-first+1)); err != nil {
		return err
	}
	for _, r := range own {
		if err := im.setRefs(r, 0); err != nil {
			return err
		}
	}
	for _, c := range foreign {
		last, err := im.dropRef(c)
		if err != nil {
			return err
		}
		if last {
			own = append(own, run{c, 1})
		}
	}
	im.quarantine(own)
	return nil
}
