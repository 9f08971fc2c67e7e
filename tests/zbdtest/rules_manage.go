package zbdtest

import (
	"syscall"

	"github.com/qzbd/qzbd/zns"
)

var manageRules = []rule{
	{"a range of several zones is opened, closed, finished and reset as each of them would be", nil, func(b *bed) {
		n := 3
		if b.s.MaxOpen != 0 {
			n = min(n, b.s.MaxOpen)
		}
		all := func(op Management, c zns.Cond, written int64) {
			b.Helper()
			b.want(0, b.d.Manage(op, b.s.Start(b.seq(0)), int64(n)*b.s.ZoneSize), op.String()+" of "+itoa(n)+" zones")
			for k := range n {
				b.is(b.seq(k), c, written)
			}
			b.is(b.seq(n), zns.CondEmpty, 0)
		}
		all(Open, zns.CondExpOpen, 0)
		all(Close, zns.CondEmpty, 0)
		all(Open, zns.CondExpOpen, 0)
		for k := range n {
			b.write(b.seq(k), 0, b.piece)
		}
		all(Close, zns.CondClosed, b.piece)
		all(Finish, zns.CondFull, b.s.Capacity)
		all(Reset, zns.CondEmpty, 0)
	}},
	{"a reset of a range with zones in every condition empties all of them", needsTwoActive, func(b *bed) {
		b.write(b.seq(0), 0, b.piece)
		b.must(Close, b.seq(0))
		b.must(Finish, b.seq(1))
		b.must(Open, b.seq(3))
		b.want(0, b.d.Manage(Reset, b.s.Start(b.seq(0)), 4*b.s.ZoneSize), "reset of 4 zones")
		for k := range 4 {
			b.is(b.seq(k), zns.CondEmpty, 0)
		}
	}},
	{"a reset of one zone leaves its neighbours alone", nil, func(b *bed) {
		for k := range 3 {
			b.write(b.seq(k), 0, b.piece)
			b.must(Finish, b.seq(k))
		}
		b.must(Reset, b.seq(1))
		b.is(b.seq(0), zns.CondFull, b.s.Capacity)
		b.is(b.seq(1), zns.CondEmpty, 0)
		b.is(b.seq(2), zns.CondFull, b.s.Capacity)
		b.holds(b.seq(0), 0, b.piece)
		b.holds(b.seq(2), 0, b.piece)
	}},
	{"a reset of the whole device empties every sequential zone", needsTwoActive, func(b *bed) {
		last := b.s.Zones - 1
		b.write(b.seq(0), 0, b.piece)
		b.must(Close, b.seq(0))
		b.must(Finish, b.seq(1))
		b.must(Finish, last)
		b.must(Open, b.seq(2))
		b.resetAll()
		for i, z := range b.report(0, b.s.Zones) {
			if i >= b.s.Conventional && z.Cond != zns.CondEmpty {
				b.Errorf("%s is %v", b.name(i), z)
			}
		}
		b.write(last, 0, b.piece)
		b.holds(last, 0, b.piece)
	}},
	{"an operation on a range that is not whole zones of the device is EINVAL", nil, func(b *bed) {
		start, size := b.s.Start(b.seq(1)), b.s.ZoneSize
		b.write(b.seq(1), 0, b.piece)
		for _, r := range []struct {
			name    string
			from, n int64
		}{
			{"a start within a zone", start + b.s.Block, size},
			{"an end within a zone", start, b.s.Block},
			{"an end within another zone", start, size + b.s.Block},
			{"no length", start, 0},
			{"a start at the end of the device", b.s.Size(), size},
			{"a start beyond the end", b.s.Size() + size, size},
			{"an end beyond the end", b.s.Size() - size, 2 * size},
		} {
			for _, op := range []Management{Open, Close, Finish, Reset} {
				b.want(syscall.EINVAL, b.d.Manage(op, r.from, r.n), op.String()+" with "+r.name)
			}
		}
		b.is(b.seq(1), zns.CondImpOpen, b.piece)
	}},
	{"an operation on a range that goes round the end of all numbers is EINVAL", needsBlockDevice, func(b *bed) {
		d := b.d.(*BlockDevice)
		zone := uint64(b.s.ZoneSize / sector)
		for _, op := range []Management{Open, Close, Finish, Reset} {
			b.want(syscall.EINVAL, d.manageSectors(op, -zone, 2*zone), op.String())
		}
	}},
	{"what is done twice is no error", nil, func(b *bed) {
		i := b.seq(0)
		b.must(Reset, i)
		b.must(Reset, i)
		b.must(Open, i)
		b.must(Open, i)
		b.is(i, zns.CondExpOpen, 0)
		b.write(i, 0, b.piece)
		b.must(Close, i)
		b.must(Close, i)
		b.is(i, zns.CondClosed, b.piece)
		b.must(Finish, i)
		b.must(Finish, i)
		b.is(i, zns.CondFull, b.s.Capacity)
	}},
	{"a zone goes through all conditions and back again and again", nil, func(b *bed) {
		i := b.seq(0)
		for range 5 {
			b.is(i, zns.CondEmpty, 0)
			b.write(i, 0, b.piece)
			b.is(i, zns.CondImpOpen, b.piece)
			b.must(Open, i)
			b.is(i, zns.CondExpOpen, b.piece)
			b.must(Close, i)
			b.is(i, zns.CondClosed, b.piece)
			b.must(Open, i)
			b.write(i, b.piece, b.piece)
			b.is(i, zns.CondExpOpen, 2*b.piece)
			b.must(Close, i)
			b.write(i, 2*b.piece, b.piece)
			b.is(i, zns.CondImpOpen, 3*b.piece)
			b.holds(i, 0, 3*b.piece)
			b.must(Finish, i)
			b.is(i, zns.CondFull, b.s.Capacity)
			b.holds(i, 0, 3*b.piece)
			b.must(Reset, i)
		}
	}},
	{"the last zone of the device is a zone like the others", nil, func(b *bed) {
		i := b.s.Zones - 1
		b.must(Open, i)
		b.must(Close, i)
		b.is(i, zns.CondEmpty, 0)
		from := b.fill(i, 0, b.s.Capacity)
		b.is(i, zns.CondFull, b.s.Capacity)
		b.holds(i, from, b.s.Capacity-from)
		b.refuseWrite(syscall.EIO, i, 0, b.piece)
		b.must(Reset, i)
		b.must(Finish, i)
		b.is(i, zns.CondFull, b.s.Capacity)
		b.must(Reset, i)
		b.is(i, zns.CondEmpty, 0)
	}},
}
