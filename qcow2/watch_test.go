package qcow2

import (
	"bytes"
	"fmt"
	"hash/maphash"
)

// A hostile image can claim an exabyte. Of each zone that is looked at only two
// windows are compared, one at its start and one around its write pointer.
const (
	watchedZones    = 12
	watchedClusters = 48
)

// watch is what the contents of an image are expected to be: a hash for each
// sector below a write pointer, in the windows, that is not zeros.
type watch struct {
	zones   []uint32
	windows [][2]uint64 // device offsets, by zone
	sectors map[uint64]uint64
	wps     []uint64 // by index in zones
}

var watchSeed = maphash.MakeSeed()

// newWatch chooses zones and windows of an image.
func newWatch(im *Image) *watch {
	w := &watch{}
	for z := uint32(0); z < im.nrZones; z++ {
		if z == watchedZones-4 && im.nrZones > watchedZones {
			z = im.nrZones - 4
		}
		w.zones = append(w.zones, z)
		span := uint64(watchedClusters) << im.clusterBits
		start, end, wp := im.zoneStart(z), im.zoneEnd(z), im.Pointer(z)
		w.windows = append(w.windows, [2]uint64{start, min(end, start+span)})
		if from := max(wp-min(wp, span), start+span) &^ (sectorSize - 1); from < end {
			w.windows = append(w.windows, [2]uint64{from, min(end, from+2*span)})
		}
	}
	return w
}

// look reads what the image has in the windows.
func (w *watch) look(im *Image) (*watch, error) {
	seen := &watch{zones: w.zones, windows: w.windows, sectors: map[uint64]uint64{}}
	for _, z := range w.zones {
		seen.wps = append(seen.wps, im.Pointer(z))
	}
	var ext []Extent
	for _, x := range w.windows {
		end := x[1]
		if z := uint32(x[0] / im.zoneSize); !im.conventional(z) {
			end = min(end, im.Pointer(z))
		}
		if x[0] >= end {
			continue
		}
		var err error
		if ext, err = im.MapSlow(ext[:0], x[0], end-x[0], false); err != nil {
			return nil, err
		}
		dev := x[0]
		for _, e := range ext {
			if e.Off != Hole {
				if err := seen.hash(im.f, dev, e); err != nil {
					return nil, err
				}
			}
			dev += uint64(e.Len)
		}
		if dev != end {
			return nil, fmt.Errorf("[%#x, %#x) was mapped to %#x", x[0], end, dev)
		}
	}
	return seen, nil
}

func (w *watch) hash(f File, dev uint64, e Extent) error {
	var buf [sparsePageSize]byte
	for e.Len > 0 {
		n := min(e.Len, int64(len(buf)))
		if !isHole(f, e.Off, n) {
			if err := readPadded(f, buf[:n], e.Off); err != nil {
				return err
			}
			for i := int64(0); i < n; i += sectorSize {
				w.set(dev+uint64(i), buf[i:min(n, i+sectorSize)])
			}
		}
		e.Off, e.Len, dev = e.Off+n, e.Len-n, dev+uint64(n)
	}
	return nil
}

// set notes the contents of one sector.
func (w *watch) set(dev uint64, p []byte) {
	delete(w.sectors, dev)
	if !bytes.Equal(p, zeroPage[:len(p)]) {
		w.sectors[dev] = maphash.Bytes(watchSeed, p)
	}
}

func (w *watch) watched(dev uint64) bool {
	for _, x := range w.windows {
		if dev >= x[0] && dev < x[1] {
			return true
		}
	}
	return false
}

// wrote notes a sector written at a device offset.
func (w *watch) wrote(dev uint64, p []byte) {
	if w.watched(dev) {
		w.set(dev, p)
	}
}

// zeroed notes that [from, end) reads as zeros.
func (w *watch) zeroed(from, end uint64) {
	for dev := range w.sectors {
		if dev >= from && dev < end {
			delete(w.sectors, dev)
		}
	}
}

// differs compares what is expected with what is there.
func (w *watch) differs(seen *watch) error {
	for i, z := range w.zones {
		if w.wps[i] != seen.wps[i] {
			return fmt.Errorf("zone %d: the write pointer is %#x, want %#x", z, seen.wps[i], w.wps[i])
		}
	}
	for dev, h := range w.sectors {
		if seen.sectors[dev] != h {
			return fmt.Errorf("device offset %#x has other data", dev)
		}
	}
	for dev := range seen.sectors {
		if _, ok := w.sectors[dev]; !ok {
			return fmt.Errorf("device offset %#x has data, want zeros", dev)
		}
	}
	return nil
}
