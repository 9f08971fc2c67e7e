package zbdtest

import (
	"bytes"
	"syscall"

	"github.com/qzbd/qzbd/zns"
)

var writeRules = []rule{
	{"writes at the write pointer are taken in every size", nil, func(b *bed) {
		i, at := b.seq(1), int64(0)
		c := zns.CondImpOpen
		for _, n := range []int64{1, 1, 2, 8, 3, 16, 128, 127, 31, 7} {
			n *= b.s.Block
			if at+n > b.s.Capacity {
				break
			}
			b.want(0, b.try(i, at, n), "write of "+hex(n))
			if at += n; at == b.s.Capacity {
				c = zns.CondFull
			}
			b.is(i, c, at)
		}
		b.holds(i, 0, at)
		b.is(b.seq(0), zns.CondEmpty, 0)
		b.is(b.seq(2), zns.CondEmpty, 0)
	}},
	{"a write that is larger than the device takes at once arrives whole", nil, func(b *bed) {
		i, n := b.seq(1), min(b.s.Capacity, 8<<20)
		b.want(0, b.try(i, 0, n), "write of "+hex(n))
		if n == b.s.Capacity {
			b.is(i, zns.CondFull, n)
		} else {
			b.is(i, zns.CondImpOpen, n)
		}
		b.holds(i, 0, n)
	}},
	{"a write may go over from a zone into the next", func(b *bed) string {
		if b.s.Capacity != b.s.ZoneSize {
			return "there is a gap between the zones"
		}
		if b.s.MaxOpen == 1 {
			return "only one zone may be open"
		}
		return needsTwoActive(b)
	}, func(b *bed) {
		i := b.seq(0)
		from := b.fill(i, 0, b.s.Capacity-b.piece)
		b.want(0, b.try(i, b.s.Capacity-b.piece, 3*b.piece), "write across the boundary")
		b.is(i, zns.CondFull, b.s.Capacity)
		b.is(b.seq(1), zns.CondImpOpen, 2*b.piece)
		b.holds(i, from, b.s.Capacity-from)
		b.holds(b.seq(1), 0, 2*b.piece)
		// Into a zone that is written already: each half stands for itself.
		b.resetAll()
		i = b.seq(2)
		b.write(b.seq(3), 0, b.piece)
		b.fill(i, 0, b.s.Capacity-b.piece)
		b.want(syscall.EIO, b.try(i, b.s.Capacity-b.piece, 3*b.piece), "write across the boundary into a written zone")
		b.is(b.seq(3), zns.CondImpOpen, b.piece)
		b.sound(i, b.zone(i))
	}},
	{"a zone becomes full exactly at its capacity", nil, func(b *bed) {
		i := b.seq(1)
		from := b.fill(i, 0, b.s.Capacity-b.s.Block)
		b.is(i, zns.CondImpOpen, b.s.Capacity-b.s.Block)
		b.write(i, b.s.Capacity-b.s.Block, b.s.Block)
		b.is(i, zns.CondFull, b.s.Capacity)
		b.refuseWrite(syscall.EIO, i, b.s.Capacity-b.s.Block, b.s.Block)
		b.refuseWrite(syscall.EIO, i, 0, b.s.Block)
		b.is(i, zns.CondFull, b.s.Capacity)
		b.holds(i, from, b.s.Capacity-from)
	}},
	{"after a refused write and a report the zone goes on where it was", nil, func(b *bed) {
		i := b.seq(1)
		b.write(i, 0, 2*b.piece)
		wp := 2 * b.piece
		for _, wrong := range []int64{b.s.Block, b.piece, -b.s.Block, -b.piece, -wp} {
			b.refuseWrite(syscall.EIO, i, wp+wrong, b.s.Block)
			b.is(i, zns.CondImpOpen, wp)
			b.write(i, wp, b.piece)
			b.holds(i, 0, wp+b.piece)
			b.must(Reset, i)
			b.write(i, 0, wp)
		}
	}},
	{"after a refused write a reset or finish lets the zone go on as well", needsTwoActive, func(b *bed) {
		i, j := b.seq(0), b.seq(1)
		for _, z := range []int{i, j} {
			b.write(z, 0, b.piece)
			err := b.d.Write(b.at(z, 4*b.piece), painted(^b.stamp, b.at(z, 4*b.piece), b.piece), false)
			b.want(syscall.EIO, err, "write above the write pointer")
		}
		b.must(Reset, i)
		b.write(i, 0, b.piece)
		b.holds(i, 0, b.piece)
		b.must(Finish, j)
		b.is(j, zns.CondFull, b.s.Capacity)
		b.holds(j, 0, b.piece)
	}},
	{"a write that is not whole blocks is EINVAL and changes nothing", needsBlockDevice, func(b *bed) {
		i := b.seq(0)
		b.write(i, 0, b.piece)
		half := b.s.Block / 2
		b.refuseWrite(syscall.EINVAL, i, b.piece, half)
		b.refuseWrite(syscall.EINVAL, i, b.piece, b.s.Block+half)
		b.refuseWrite(syscall.EINVAL, i, b.piece+half, b.s.Block)
		b.is(i, zns.CondImpOpen, b.piece)
		b.write(i, b.piece, b.piece)
	}},
	{"a write beyond the end of the device is ENOSPC", needsBlockDevice, func(b *bed) {
		b.want(syscall.ENOSPC, b.d.Write(b.s.Size(), aligned(b.s.Block), false), "write at the end")
	}},
	{"a write that asks for it is durable, and so is everything after a flush", nil, func(b *bed) {
		i := b.seq(0)
		for at := int64(0); at < 6*b.piece; at += 2 * b.piece {
			p := painted(b.stamp, b.at(i, at), b.piece)
			b.want(0, b.d.Write(b.at(i, at), p, true), "write with RWF_DSYNC")
			b.write(i, at+b.piece, b.piece)
			b.want(0, b.d.Flush(), "flush")
		}
		b.is(i, zns.CondImpOpen, 6*b.piece)
		b.holds(i, 0, 6*b.piece)
		p := painted(^b.stamp, b.at(i, 0), b.piece)
		err := b.d.Write(b.at(i, 0), p, true)
		b.is(i, zns.CondImpOpen, 6*b.piece)
		b.want(syscall.EIO, err, "write with RWF_DSYNC below the write pointer")
		b.holds(i, 0, 6*b.piece)
	}},
	{"a flush of a device on which nothing is written succeeds", nil, func(b *bed) {
		b.want(0, b.d.Flush(), "flush")
		b.want(0, b.d.Flush(), "flush")
	}},
	{"writes that are queued all at once are taken in order", needsBlockDevice, func(b *bed) {
		i := b.seq(1)
		const n = 32
		size := 2 * b.s.Block
		for round := range int64(3) {
			errs, err := b.d.(*BlockDevice).queue(b.stamp, b.at(i, round*n*size), size, n)
			if err != nil {
				b.Fatal(err)
			}
			for k, err := range errs {
				b.want(0, err, "queued write "+itoa(k))
			}
			b.is(i, zns.CondImpOpen, (round+1)*n*size)
			b.holds(i, 0, (round+1)*n*size)
		}
	}},
}

var readRules = []rule{
	{"what is read above the write pointer is no data", nil, func(b *bed) {
		i := b.seq(1)
		b.write(i, 0, b.piece+b.s.Block)
		wp := b.piece + b.s.Block
		b.holds(i, 0, wp)
		b.blank(i, wp, b.piece)                            // at it
		b.blank(i, b.s.Capacity/2&^(b.s.Block-1), b.piece) // far above
		b.blank(i, b.s.ZoneSize-b.piece, b.piece)          // the end of the zone
		b.blank(b.seq(0), 0, b.piece)                      // of an empty zone
		b.blank(b.s.Zones-1, b.s.ZoneSize-b.piece, b.piece)
	}},
	{"a read across the write pointer gives the data and then none", nil, func(b *bed) {
		i := b.seq(1)
		b.write(i, 0, 2*b.piece)
		want := painted(b.stamp, b.at(i, b.piece), 3*b.piece)
		b.unwritten(want[b.piece:])
		if d := differ(b.at(i, b.piece), b.read(i, b.piece, 3*b.piece), want); d != "" {
			b.Error(d)
		}
	}},
	{"a read across the capacity gives the data and then none", needsGap, func(b *bed) {
		i := b.seq(1)
		b.fill(i, 0, b.s.Capacity)
		n := min(b.piece, b.s.ZoneSize-b.s.Capacity)
		if b.kind.differs(gapZones) {
			err := b.d.Read(b.at(i, b.s.Capacity-b.piece), aligned(b.piece+n))
			b.want(syscall.EIO, err, "read across the capacity")
			return
		}
		want := painted(b.stamp, b.at(i, b.s.Capacity-b.piece), b.piece+n)
		got := b.read(i, b.s.Capacity-b.piece, b.piece+n)
		if d := differ(b.at(i, b.s.Capacity-b.piece), got[:b.piece], want[:b.piece]); d != "" {
			b.Error(d)
		}
		// A device may take a zone as written to its end when it is full.
		blank := make([]byte, n)
		if ones := bytes.Repeat([]byte{0xff}, int(n)); !bytes.Equal(got[b.piece:], blank) && !(b.kind.differs(onesAboveWP) && bytes.Equal(got[b.piece:], ones)) {
			b.Errorf("behind the capacity there is % x", got[b.piece:b.piece+16])
		}
	}},
	{"a read may go over from a zone into the next", nil, func(b *bed) {
		i, j := b.seq(0), b.seq(1)
		b.write(j, 0, b.piece)
		want := aligned(2 * b.piece)
		b.unwritten(want)
		copy(want[b.piece:], painted(b.stamp, b.at(j, 0), b.piece))
		if d := differ(b.at(j, -b.piece), b.read(i, b.s.ZoneSize-b.piece, 2*b.piece), want); d != "" {
			b.Error(d)
		}
	}},
	{"a reset zone gives no data, and then only the new", needsTwoActive, func(b *bed) {
		i, n := b.seq(1), min(b.s.Capacity, largest)
		b.write(i, 0, n)
		b.write(b.seq(2), 0, b.piece)
		b.must(Reset, i)
		b.blank(i, 0, n)
		b.stamp ^= 1 << 40
		b.write(i, 0, b.piece)
		b.holds(i, 0, b.piece)
		b.blank(i, b.piece, n-b.piece)
		b.stamp ^= 1 << 40
		b.holds(b.seq(2), 0, b.piece)
	}},
	{"what a finish fills up reads as zeros", nil, func(b *bed) {
		i, n := b.seq(1), min(b.s.Capacity, largest)
		b.write(i, 0, n) // old data
		b.must(Reset, i)
		b.write(i, 0, b.piece)
		b.must(Finish, i)
		b.holds(i, 0, b.piece)
		b.zeros(i, b.piece, n-b.piece)
		b.zeros(i, b.s.Capacity-b.piece, b.piece)
	}},
	{"a refused write has written nothing", nil, func(b *bed) {
		i := b.seq(1)
		b.write(i, 0, 2*b.piece)
		for _, at := range []int64{0, b.piece, 3 * b.piece, b.s.Capacity - b.piece} {
			b.refuseWrite(syscall.EIO, i, at, b.piece)
		}
		b.holds(i, 0, 2*b.piece)
		b.blank(i, 2*b.piece, 4*b.piece)
		b.blank(i, b.s.Capacity-b.piece, b.piece)
		b.is(i, zns.CondImpOpen, 2*b.piece)
	}},
}

var zeroRules = []rule{
	zeroRule(ZeroOut), zeroRule(ZeroRange), zeroRule(PunchHole),
	{"zeros fill a zone", nil, func(b *bed) {
		i := b.seq(1)
		b.write(i, 0, b.piece)
		b.want(0, b.d.Zero(ZeroOut, b.at(i, b.piece), b.s.Capacity-b.piece), "zeros")
		b.is(i, zns.CondFull, b.s.Capacity)
		b.holds(i, 0, b.piece)
		b.zeros(i, b.piece, min(largest, b.s.Capacity-b.piece))
		b.zeros(i, b.s.Capacity-b.piece, b.piece)
	}},
	{"zeros across the capacity are refused", needsGap, func(b *bed) {
		i := b.seq(1)
		b.fill(i, 0, b.s.Capacity-b.piece)
		err := b.d.Zero(ZeroOut, b.at(i, b.s.Capacity-b.piece), b.piece+b.s.Block)
		b.is(i, zns.CondImpOpen, b.s.Capacity-b.piece)
		b.want(syscall.EIO, err, "zeros")
		b.write(i, b.s.Capacity-b.piece, b.piece)
		b.is(i, zns.CondFull, b.s.Capacity)
	}},
}

// zeroRule is about one way to write zeros.
func zeroRule(how Zeroing) rule {
	return rule{how.String() + " is a write: at the write pointer, which it moves", nil, func(b *bed) {
		i := b.seq(1)
		n := min(16*b.piece, b.s.Capacity/8&^(b.s.Block-1))
		b.write(i, 0, 4*n) // old data, which must not shine through
		b.must(Reset, i)
		b.write(i, 0, b.piece)
		err := b.d.Zero(how, b.at(i, b.piece), n)
		if how == PunchHole && b.kind.differs(noPunch) {
			b.want(syscall.EOPNOTSUPP, err, "zeros")
			b.is(i, zns.CondImpOpen, b.piece)
			return
		}
		b.want(0, err, "zeros at the write pointer")
		b.is(i, zns.CondImpOpen, b.piece+n)
		b.write(i, b.piece+n, b.piece)
		b.holds(i, 0, b.piece)
		b.zeros(i, b.piece, n)
		b.holds(i, b.piece+n, b.piece)
		for _, at := range []int64{0, b.piece, 2*b.piece + n + b.s.Block} {
			err := b.d.Zero(how, b.at(i, at), b.piece)
			b.is(i, zns.CondImpOpen, 2*b.piece+n)
			b.want(syscall.EIO, err, "zeros at "+hex(at))
		}
		b.holds(i, 0, b.piece)
		b.blank(i, 2*b.piece+n, n)
	}}
}
