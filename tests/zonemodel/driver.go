package zonemodel

import (
	"math/rand/v2"

	"github.com/qzbd/qzbd/zns"
)

// Driver thinks of operations, for ever. What it comes up with depends on its
// seed and on the model alone. It stays near the places where something can go
// wrong: the write pointer, the capacity, the limits.
type Driver struct {
	// Largest is the most bytes of one read or write; Filler of a write of
	// zeros, which is how it gets to the end of a large zone.
	Largest, Filler int64

	m     *Model
	rnd   *rand.Rand
	zones []int
	stamp uint64
}

// Single is the most bytes that no block layer splits. A write that has to be
// refused for its place is not larger: a part of it could be in the right one.
const Single = 64 << 10

// NewDriver makes a Driver for m.
func NewDriver(m *Model, seed uint64) *Driver {
	d := &Driver{Largest: 1 << 20, Filler: m.Capacity, m: m, rnd: rand.New(rand.NewPCG(seed, 1))}
	for i := range min(2, m.Conventional) {
		d.zones = append(d.zones, i)
	}
	// Enough zones to be one too many for every limit.
	n := min(m.Sequential(), 2+max(5, m.MaxOpen, m.MaxActive))
	for i := range n - 1 {
		d.zones = append(d.zones, m.Conventional+i)
	}
	d.zones = append(d.zones, m.Zones-1)
	return d
}

// Zones are those that the driver touches.
func (d *Driver) Zones() []int { return d.zones }

// blocks draws a length of at most n bytes; small ones are more likely.
func (d *Driver) blocks(n int64) int64 {
	most := max(1, n/d.m.Block)
	for range d.rnd.IntN(4) {
		most = max(1, most/4)
	}
	return (1 + d.rnd.Int64N(most)) * d.m.Block
}

// Next is the next operation. Apply it to the model before the next one.
func (d *Driver) Next() Op {
	op := Op{Zone: d.zones[d.rnd.IntN(len(d.zones))]}
	d.stamp++
	op.Stamp = d.rnd.Uint64()<<20 | d.stamp&(1<<20-1) | 1
	switch n := d.rnd.IntN(100); {
	case n < 40:
		d.write(&op)
	case n < 52:
		op.Kind = Read
		op.At = d.rnd.Int64N(d.m.ZoneSize/d.m.Block) * d.m.Block
		if d.rnd.IntN(2) == 0 { // around the write pointer
			op.At = max(0, d.m.WP(op.Zone)-d.blocks(Single))
		}
		op.Len = d.blocks(min(d.Largest, d.m.ZoneSize-op.At))
	case n < 66:
		op.Kind = Open
	case n < 80:
		op.Kind = Close
	case n < 86:
		op.Kind = Finish
	case n < 96:
		op.Kind = Reset
	case n < 99:
		op.Kind = Flush
	case d.rnd.IntN(3) == 0:
		op.Kind = ResetAll
	default:
		op.Kind = Reset
	}
	return op
}

// write draws a write or a write of zeros.
func (d *Driver) write(op *Op) {
	op.Sync = d.rnd.IntN(10) == 0
	if d.m.Cond(op.Zone) == zns.CondNotWP {
		if d.rnd.IntN(8) == 0 {
			op.Kind = Zeroes
		}
		op.At = d.rnd.Int64N(min(d.m.ZoneSize, 4*d.Largest)/d.m.Block) * d.m.Block
		op.Len = d.blocks(min(d.Largest, d.m.ZoneSize-op.At))
		return
	}
	op.At = d.m.WP(op.Zone)
	room := d.m.Capacity - op.At
	switch n := d.rnd.IntN(20); {
	case n < 11 && room > 0:
		op.Len = d.blocks(min(room, d.Largest))
	case n < 13 && room > 0:
		op.Kind, op.Len = Zeroes, d.blocks(min(room, d.Largest))
	case n < 14 && room > Single: // near the end
		op.Kind, op.Len = Zeroes, min(room-d.blocks(Single), d.Filler)
	case n < 17 && room > 0 && room <= Single: // full
		op.Len = room
	case n < 18 && room > 0 && room < Single && d.m.ZoneSize-d.m.Capacity >= Single: // too far
		op.Len = room + d.blocks(Single-room)
	default: // elsewhere
		op.At = d.rnd.Int64N(d.m.ZoneSize/d.m.Block) * d.m.Block
		op.Len = d.blocks(min(Single, d.m.ZoneSize-op.At))
	}
}
