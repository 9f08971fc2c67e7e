package zbdtest

import (
	"strings"
	"syscall"

	"github.com/qzbd/qzbd/zns"
)

// A zone in one of the seven states meets one of the operations. The table
// holds the condition it has afterwards; what says EIO is refused and changes
// nothing; what says "-" cannot be.
//
// The columns: a write at the write pointer; a write above it; one below it;
// one that ends at the capacity; one that crosses the capacity; one between
// the capacity and the end of the zone; a write of zeros at the write pointer,
// and one elsewhere; open, close, finish, reset; a read, a flush.
var transitions = [...]struct{ zone, next string }{
	//                                     wp  >wp below  fill cross gap zero >wp  open close fin reset read flush
	{"an empty zone", "                    oi  EIO   -     fu    -  EIO  oi  EIO   oe   EIO  fu   em    em   em"},
	{"an implicitly open zone", "          oi  EIO  EIO    fu  EIO  EIO  oi  EIO   oe    cl  fu   em    oi   oi"},
	{"an explicitly open untouched zone", "oe  EIO   -     fu    -  EIO  oe  EIO   oe    em  fu   em    oe   oe"},
	{"an explicitly open zone", "          oe  EIO  EIO    fu  EIO  EIO  oe  EIO   oe    cl  fu   em    oe   oe"},
	{"a closed zone", "                    oi  EIO  EIO    fu  EIO  EIO  oi  EIO   oe    cl  fu   em    cl   cl"},
	{"a zone that was written full", "      -   -   EIO     -    -  EIO   -   -    EIO   EIO  fu   em    fu   fu"},
	{"a zone that was finished", "          -   -   EIO     -    -  EIO   -   -    EIO   EIO  fu   em    fu   fu"},
	{"a zone that was finished empty", "    -   -   EIO     -    -  EIO   -   -    EIO   EIO  fu   em    fu   fu"},
}

// meetings are the columns of transitions. The number is the write pointer
// that the zone should have before, from the capacity if negative; zones that
// are untouched or full have theirs.
var meetings = [...]struct {
	name string
	wp   int64 // in pieces
	gap  bool  // needs one
	do   func(b *bed, i int, wp int64) error
}{
	{"takes a write at the write pointer", 1, false, func(b *bed, i int, wp int64) error { return b.try(i, wp, b.piece) }},
	{"meets a write above the write pointer", 1, false, func(b *bed, i int, wp int64) error { return b.try(i, wp+b.s.Block, b.piece) }},
	{"meets a write below the write pointer", 2, false, func(b *bed, i int, wp int64) error { return b.try(i, wp-b.s.Block, b.s.Block) }},
	{"is written to the capacity", -1, false, func(b *bed, i int, wp int64) error {
		b.fill(i, wp, b.s.Capacity)
		return nil
	}},
	{"meets a write across the capacity", -1, true, func(b *bed, i int, wp int64) error { return b.try(i, wp, b.piece+b.s.Block) }},
	{"meets a write behind the capacity", 1, true, func(b *bed, i int, wp int64) error { return b.try(i, b.s.Capacity, b.piece) }},
	{"takes zeros at the write pointer", 1, false, func(b *bed, i int, wp int64) error { return b.d.Zero(ZeroOut, b.at(i, wp), b.piece) }},
	{"meets zeros above the write pointer", 1, false, func(b *bed, i int, wp int64) error {
		return b.d.Zero(ZeroOut, b.at(i, wp+b.s.Block), b.piece)
	}},
	{"is opened", 1, false, func(b *bed, i int, wp int64) error { return b.manage(Open, i) }},
	{"is closed", 1, false, func(b *bed, i int, wp int64) error { return b.manage(Close, i) }},
	{"is finished", 1, false, func(b *bed, i int, wp int64) error { return b.manage(Finish, i) }},
	{"is reset", 1, false, func(b *bed, i int, wp int64) error { return b.manage(Reset, i) }},
	{"is read", 1, false, func(b *bed, i int, wp int64) error { return b.d.Read(b.at(i, 0), aligned(4*b.piece)) }},
	{"is there at a flush", 1, false, func(b *bed, i int, wp int64) error { return b.d.Flush() }},
}

func (b *bed) manage(op Management, i int) error {
	return b.d.Manage(op, b.s.Start(i), b.s.ZoneSize)
}

// try is one write, wherever it is.
func (b *bed) try(i int, off, n int64) error {
	return b.d.Write(b.at(i, off), painted(b.stamp, b.at(i, off), n), false)
}

// codes are the short names of conditions.
var codes = map[string]zns.Cond{
	"em": zns.CondEmpty, "oi": zns.CondImpOpen, "oe": zns.CondExpOpen, "cl": zns.CondClosed, "fu": zns.CondFull,
}

// bring makes zone i what a row of transitions says, with wp bytes written if
// that is possible, and returns how many are.
func (b *bed) bring(row, i int, wp int64) int64 {
	b.Helper()
	switch row {
	case 0:
		return 0
	case 1:
		b.fill(i, 0, wp)
	case 2:
		b.must(Open, i)
		return 0
	case 3:
		b.must(Open, i)
		b.fill(i, 0, wp)
	case 4:
		b.fill(i, 0, wp)
		b.must(Close, i)
	case 5:
		b.fill(i, 0, b.s.Capacity)
		return b.s.Capacity
	case 6:
		b.fill(i, 0, wp)
		b.must(Finish, i)
		return b.s.Capacity
	case 7:
		b.must(Finish, i)
		return b.s.Capacity
	}
	return wp
}

func transitionRules() (all []rule) {
	for row, t := range transitions {
		for column, cell := range strings.Fields(t.next) {
			if cell == "-" {
				continue
			}
			m := meetings[column]
			r := rule{name: t.zone + " " + m.name, run: func(b *bed) { b.meet(row, column, cell) }}
			if m.gap {
				r.needs = needsGap
			}
			all = append(all, r)
		}
	}
	return all
}

// meet checks one cell of transitions.
func (b *bed) meet(row, column int, cell string) {
	m := meetings[column]
	wp := m.wp * b.piece
	if wp < 0 {
		wp += b.s.Capacity
	}
	i, neighbour := b.seq(1), b.seq(2)
	wp = b.bring(row, i, wp)
	before := b.zone(i)
	b.sound(i, before)
	if before.Written() != wp {
		b.Fatalf("%s is %v, want %#x bytes written", b.name(i), before, wp)
	}

	err := m.do(b, i, wp)
	after := b.zone(i)
	if cell == "EIO" {
		idle := m.name == "is closed" && b.kind.differs(idleClose) || m.name == "is opened" && b.kind.differs(fullOpen) && before.Cond == zns.CondFull
		if idle {
			b.want(0, err, m.name)
		} else {
			b.want(syscall.EIO, err, m.name)
		}
		if after.Cond != before.Cond || after.Written() != wp {
			b.Errorf("it was %v and is %v", before, after)
		}
	} else {
		b.want(0, err, m.name)
		written := wp
		switch {
		case cell == "fu":
			written = b.s.Capacity
		case cell == "em":
			written = 0
		case column == 0 || column == 6:
			written += b.piece
		}
		if after.Cond != codes[cell] || after.Written() != written {
			b.Errorf("it was %v and is %v, want %v with %#x", before, after, codes[cell], written)
		}
	}
	b.sound(i, after)
	if z := b.zone(neighbour); z.Cond != zns.CondEmpty {
		b.Errorf("the next zone is %v", z)
	}
	b.goesOn(i)
}

// goesOn checks that a zone works, whatever has happened to it.
func (b *bed) goesOn(i int) {
	b.Helper()
	z := b.zone(i)
	if z.Cond != zns.CondFull && z.Written()+b.s.Block <= b.s.Capacity {
		b.write(i, z.Written(), b.s.Block)
		b.holds(i, z.Written(), b.s.Block)
	}
	b.must(Reset, i)
	b.write(i, 0, b.piece)
	b.holds(i, 0, b.piece)
	b.is(i, zns.CondImpOpen, b.piece)
}
