package qcow2

import (
	"fmt"
	"sync/atomic"
)

// Hole as an extent's Off says that the range reads as zeros and lies nowhere
// in the file.
const Hole int64 = -1

// Extent is a piece of a range of the device: Len bytes at byte Off of the
// file, or a Hole. It is an alias, so that others can name the same type
// without an import.
type Extent = struct {
	Off int64
	Len int64
}

// Map appends the file extents of the device range [off, off+n) to dst. For a
// write, every byte must have a place of its own in the file; for a read what
// is not allocated becomes a Hole. ok is false, and dst unchanged, when that
// needs more than memory: MapSlow does it. Map never blocks and allocates only
// when dst is too small.
func (im *Image) Map(dst []Extent, off, n uint64, write bool) (ext []Extent, ok bool) {
	if write && !im.writable.Load() || !write && im.lost(off, n) {
		return dst, false
	}
	base, end := len(dst), off+n
	for off < end {
		idx := int64(off >> im.sliceShift)
		s := im.cache.find(idx)
		if s == nil {
			if write || im.tableOf(idx).Offset() != 0 {
				return dst[:base], false
			}
			s = im.cache.empty
		}
		if dst, off, ok = im.appendExtents(dst, base, s, off, end, write); !ok {
			return dst[:base], false
		}
	}
	return dst, true
}

// MapSlow is Map with everything it takes: tables are read, and for a write
// clusters are allocated. When it returns, all mapping metadata of a write is
// in the page cache, and the clusters that are new read as zeros, also after a
// power cut (I2, I2b, I6). It blocks.
func (im *Image) MapSlow(dst []Extent, off, n uint64, write bool) ([]Extent, error) {
	if off+n > im.size || off+n < off {
		return dst, fmt.Errorf("range of %d bytes at %d is beyond the device's %d bytes", n, off, im.size)
	}
	base := len(dst)
	if write {
		if err := im.Failed(); err != nil {
			return dst, err
		}
		if im.readOnly {
			return dst, ErrReadOnly
		}
		if im.attached.Load() { // perhaps only the table was missing
			if ext, ok, err := im.mapLoading(dst, off, n, true); ok || err != nil {
				return ext, err
			}
		}
		if err := im.mapWrite(off, n); err != nil {
			return dst[:base], err
		}
	} else if im.lost(off, n) {
		return dst, fmt.Errorf("no sync has covered what is read: %w", im.Failed())
	}
	ext, ok, err := im.mapLoading(dst, off, n, write)
	if err == nil && !ok {
		err = fmt.Errorf("the mapping of the cluster at device offset %d is compressed, which is not supported", off)
	}
	return ext, err
}

// lost reports whether a range reaches into what no sync has covered before the
// image failed: it may be in the page cache, and something else on the disk. Of
// a conventional zone, which has no pointer, that is not known.
func (im *Image) lost(off, n uint64) bool {
	if im.Failed() == nil {
		return false
	}
	zone := uint32(off / im.zoneSize)
	return !im.conventional(zone) && off+n > im.pointers.durable(zone)
}

// mapLoading is Map that reads the tables it lacks. ok is false when an entry
// is not fit for the purpose.
func (im *Image) mapLoading(dst []Extent, off, n uint64, write bool) (ext []Extent, ok bool, err error) {
	base, end := len(dst), off+n
	for off < end {
		s, err := im.cache.get(int64(off >> im.sliceShift))
		if err != nil {
			return dst[:base], false, err
		}
		if dst, off, ok = im.appendExtents(dst, base, s, off, end, write); !ok {
			return dst[:base], false, nil
		}
	}
	return dst, true, nil
}

// appendExtents maps [off, min(end, end of s)) with the entries of s. Extents
// before dst[base] are not touched. It returns how far it came.
func (im *Image) appendExtents(dst []Extent, base int, s *slice, off, end uint64, write bool) ([]Extent, uint64, bool) {
	i := int64(off>>im.clusterBits) & (im.sliceLen - 1)
	for ; off < end && i < im.sliceLen; i++ {
		e := s.at(i)
		in := int64(off) & (im.cs - 1)
		n := min(im.cs-in, int64(end-off))
		host := Hole
		switch {
		case write && !e.Writable(), e.Compressed():
			return dst, off, false
		case e.Offset() != 0 && !e.Zero():
			host = e.Offset() + in
		}
		if k := len(dst) - 1; k >= base && continues(dst[k], host) {
			dst[k].Len += n
		} else {
			dst = append(dst, Extent{Off: host, Len: n})
		}
		off += uint64(n)
	}
	return dst, off, true
}

func continues(e Extent, host int64) bool {
	if e.Off == Hole || host == Hole {
		return e.Off == host
	}
	return e.Off+e.Len == host
}

// tableOf returns the L1 entry of the table that slice idx is part of.
func (im *Image) tableOf(idx int64) L1Entry {
	return L1Entry(atomic.LoadUint64(&im.l1[idx>>(im.tableBits-im.sliceBits)]))
}

// entry returns the L2 entry of guest cluster g. It blocks.
func (im *Image) entry(g int64) (L2Entry, error) {
	s, err := im.cache.get(g >> im.sliceBits)
	if err != nil {
		return 0, err
	}
	return s.at(g & (im.sliceLen - 1)), nil
}

// checkEntry refuses an L2 entry of guest cluster g that no image may have.
func (im *Image) checkEntry(g int64, e L2Entry) error {
	if e.Compressed() {
		return nil // refused where it is used
	}
	off := e.Offset()
	bad := ""
	switch {
	case e.Reserved() != 0:
		bad = "has reserved bits set"
	case off&(im.cs-1) != 0:
		bad = "is not cluster aligned"
	case off>>im.clusterBits >= im.alloc.length():
		bad = "lies beyond the end of the file"
	case off != 0 && im.isMetadata(off):
		bad = "points into the image's own metadata"
	}
	if bad == "" {
		return nil
	}
	return fmt.Errorf("image is corrupt: L2 entry %#x of device offset %d %s", uint64(e), g<<im.clusterBits, bad)
}
