package sim

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/qzbd/qzbd/zns"
)

// A model knows what every sector of the device must contain. Each sector that
// is written gets a stamp of its own, so that no mix-up goes unseen; 0 stands
// for zeros. Positions and lengths are in sectors, relative to the zone.
type zone struct {
	conv bool

	// A sequential zone.
	data     []uint64 // up to the reserved pointer
	pieces   []*piece // of data, in order
	done     int      // the committed pointer, as far as the model can know
	answered int      // the highest end of an answered request
	floor    int      // the pointer is durable at least up to here
	epoch    int      // counts resets
	busy     bool     // a reset or finish is in flight
	resets   bool     // it is a reset
	cond     zns.Cond
	used     int // when it was last written or opened

	// A conventional zone: what each sector may contain after a cut, the
	// current version last.
	versions [][]version
	writing  map[int]bool // sectors with a write in flight
}

// piece is what one request writes in a sequential zone.
type piece struct {
	from, end int
	epoch     int
	ended     bool
}

type version struct {
	stamp    uint64
	answered int // when; 0: the write is in flight
}

func newZone(conv bool, sectors int) zone {
	if !conv {
		return zone{cond: zns.CondEmpty}
	}
	z := zone{conv: true, cond: zns.CondNotWP, versions: make([][]version, sectors), writing: map[int]bool{}}
	for i := range z.versions {
		z.versions[i] = []version{{answered: 1}}
	}
	return z
}

// reserve takes a range for a request.
func (z *zone) reserve(at int, stamps []uint64) *piece {
	if z.conv {
		for i, s := range stamps {
			z.versions[at+i] = append(z.versions[at+i], version{stamp: s})
			z.writing[at+i] = true
		}
		return nil
	}
	p := &piece{from: len(z.data), end: len(z.data) + len(stamps), epoch: z.epoch}
	z.data = append(z.data, stamps...)
	z.pieces = append(z.pieces, p)
	return p
}

// written notes that the request of a range was answered at time now.
func (z *zone) written(at, n, now int, p *piece, fua bool) {
	if z.conv {
		for i := at; i < at+n; i++ {
			delete(z.writing, i)
			v := z.versions[i]
			v[len(v)-1].answered = now
			if fua {
				z.versions[i] = v[len(v)-1:]
			}
		}
		return
	}
	p.ended = true
	if p.epoch != z.epoch {
		return // a reset came before the sync that the request asked for
	}
	z.answered = max(z.answered, p.end)
	if fua {
		z.floor = max(z.floor, p.end)
	}
}

// reset notes an answered reset.
func (z *zone) reset() {
	z.data, z.pieces, z.done, z.answered, z.floor = nil, nil, 0, 0, 0
	z.epoch++
}

// finish notes an answered finish.
func (z *zone) finish(capacity int) {
	z.written(0, 0, 0, z.reserve(0, make([]uint64, capacity-len(z.data))), false)
	z.done = capacity
}

// mark is what a flush that begins now makes durable.
type mark struct{ epoch, answered int }

// settle notes that a flush that began at time began with mark m was answered.
func (z *zone) settle(m mark, began int) {
	if !z.conv {
		if z.epoch == m.epoch {
			z.floor = max(z.floor, m.answered)
		}
		return
	}
	for i, v := range z.versions {
		for k := len(v) - 1; k > 0; k-- {
			if v[k].answered != 0 && v[k].answered < began {
				z.versions[i] = v[k:]
				break
			}
		}
	}
}

// may says why a zone cannot have this pointer and these contents after a cut
// or a kill. It takes over what it finds.
func (z *zone) may(wp, capacity int, got []uint64, killed bool) error {
	if z.conv {
		for i, s := range got {
			v := z.versions[i]
			if killed { // what was answered is in the page cache
				for k := len(v) - 1; k > 0; k-- {
					if v[k].answered != 0 {
						v = v[k:]
						break
					}
				}
			}
			if !slices.ContainsFunc(v, func(v version) bool { return v.stamp == s }) {
				return fmt.Errorf("sector %d has %d, want one of %v (I2b)", i, s, v)
			}
			z.versions[i] = []version{{stamp: s, answered: 1}}
		}
		clear(z.writing)
		return nil
	}
	switch {
	case z.busy && z.resets && wp == 0:
	case z.busy && !z.resets && wp == capacity:
		z.data = append(z.data, make([]uint64, capacity-len(z.data))...)
	case wp < z.floor:
		return fmt.Errorf("write pointer %d, but %d was flushed (I1)", wp, z.floor)
	case wp > len(z.data):
		return fmt.Errorf("write pointer %d, but only %d was written (I3)", wp, len(z.data))
	case wp != z.floor && !slices.ContainsFunc(z.pieces, func(p *piece) bool { return p.end == wp }):
		return fmt.Errorf("write pointer %d is no request's end (I3)", wp)
	}
	z.data = slices.Clone(z.data[:wp])
	if err := z.compare(0, wp, got); err != nil {
		return fmt.Errorf("%w; write pointer %d (I2)", err, wp)
	}
	z.pieces, z.done, z.answered, z.floor = nil, wp, wp, wp
	z.busy = false
	switch wp {
	case 0:
		z.cond = zns.CondEmpty
		z.epoch++
	case capacity:
		z.cond = zns.CondFull
	default:
		z.cond = zns.CondClosed
	}
	return nil
}

// compare holds what was read at a position of a sequential zone against the
// model. Up to sure it must be there; above, it may be.
func (z *zone) compare(at, sure int, got []uint64) error {
	for i, s := range got {
		want := uint64(0)
		if at+i < len(z.data) {
			want = z.data[at+i]
		}
		if s != want && (at+i < sure || s != 0) {
			return fmt.Errorf("sector %d has %d, want %d", at+i, s, want)
		}
	}
	return nil
}

// fill writes stamps as sectors.
func fill(stamps []uint64) []byte {
	p := make([]byte, 0, len(stamps)*512)
	for _, s := range stamps {
		for range 64 {
			p = binary.BigEndian.AppendUint64(p, s)
		}
	}
	return p
}

// stamps reads sectors. One that was torn has a stamp that nobody gave.
func stamps(p []byte) []uint64 {
	out := make([]uint64, len(p)/512)
	for i := range out {
		s := p[i*512 : i*512+512]
		out[i] = binary.BigEndian.Uint64(s)
		for k := 8; k < 512; k += 8 {
			if binary.BigEndian.Uint64(s[k:]) != out[i] {
				out[i] = ^uint64(0)
			}
		}
	}
	return out
}
