package zbdtest

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"

	"github.com/qzbd/qzbd/zns"
)

var conventionalRules = []rule{
	{"a conventional zone takes writes in any order, and again", needsConventional, func(b *bed) {
		i, n := 0, 8*b.piece
		b.write(i, 0, n)
		for _, at := range []int64{6 * b.piece, 0, 3 * b.piece, 3*b.piece + b.s.Block, b.s.Block} {
			b.write(i, at, b.piece)
		}
		b.holds(i, 0, n)
		b.stamp ^= 1 << 40
		b.write(i, 2*b.piece, b.piece)
		b.holds(i, 2*b.piece, b.piece)
		b.stamp ^= 1 << 40
		b.holds(i, 0, 2*b.piece)
		b.holds(i, 3*b.piece, 5*b.piece)
		b.is(i, zns.CondNotWP, 0)
	}},
	{"a conventional zone is written to its end, and across into the next zone", needsConventional, func(b *bed) {
		i := b.s.Conventional - 1
		b.write(i, b.s.ZoneSize-b.piece, b.piece)
		b.holds(i, b.s.ZoneSize-b.piece, b.piece)
		b.want(0, b.try(i, b.s.ZoneSize-b.piece, 2*b.piece), "write into the first sequential zone")
		b.is(b.seq(0), zns.CondImpOpen, b.piece)
		b.holds(b.seq(0), 0, b.piece)
	}},
	{"a conventional zone takes zeros anywhere", needsConventional, func(b *bed) {
		b.write(0, 0, 8*b.piece)
		for _, how := range []Zeroing{ZeroOut, ZeroRange} {
			b.want(0, b.d.Zero(how, b.at(0, 2*b.piece), b.piece), how.String())
			b.holds(0, 0, 2*b.piece)
			b.zeros(0, 2*b.piece, b.piece)
			b.holds(0, 3*b.piece, 5*b.piece)
			b.write(0, 2*b.piece, b.piece)
		}
	}},
	{"a conventional zone cannot be opened, closed, finished or reset", needsConventional, func(b *bed) {
		b.write(0, 0, b.piece)
		for _, op := range []Management{Open, Close, Finish, Reset} {
			b.refuse(syscall.EIO, op, 0)
			b.is(0, zns.CondNotWP, 0)
			b.holds(0, 0, b.piece)
		}
		b.write(0, b.piece, b.piece)
	}},
	{"a range with a conventional zone cannot be opened or reset", needsConventional, func(b *bed) {
		i := b.s.Conventional - 1
		for _, op := range []Management{Open, Finish, Reset} {
			b.want(syscall.EIO, b.d.Manage(op, b.s.Start(i), 2*b.s.ZoneSize), op.String())
		}
		b.is(i, zns.CondNotWP, 0)
	}},
	{"a reset of the whole device leaves conventional zones alone", needsConventional, func(b *bed) {
		b.write(0, b.piece, b.piece)
		b.write(b.seq(0), 0, b.piece)
		b.resetAll()
		b.holds(0, b.piece, b.piece)
		b.is(b.seq(0), zns.CondEmpty, 0)
	}},
	{"conventional zones count for no limit", needsConventional, func(b *bed) {
		n := b.s.MaxOpen
		if n == 0 || n > most {
			n = 4
		}
		for k := range n {
			b.must(Open, b.seq(k))
		}
		for i := range min(b.s.Conventional, 8) {
			b.write(i, 0, b.piece)
			b.holds(i, 0, b.piece)
		}
		for k := range n {
			b.is(b.seq(k), zns.CondExpOpen, 0)
		}
	}},
	{"each block has one of the versions that were written over each other at once", needsConventional, overwriteAtOnce},
}

// overwriteAtOnce lets several threads write over each other in a conventional
// zone. Afterwards each block is one of the versions, as a whole.
func overwriteAtOnce(b *bed) {
	const threads, writes = 4, 40
	area := min(b.s.ZoneSize, 64*b.piece)
	b.write(0, 0, area)
	stamps := []uint64{b.stamp}
	for k := range threads {
		stamps = append(stamps, b.stamp+uint64(k+1)<<40)
	}
	var wg sync.WaitGroup
	for k := range threads {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(b.seed, uint64(k)))
			for range writes {
				n := (1 + rnd.Int64N(2*b.piece/b.s.Block)) * b.s.Block
				at := rnd.Int64N((area-n)/b.s.Block+1) * b.s.Block
				if err := b.d.Write(at, painted(stamps[k+1], at, n), false); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got := b.read(0, 0, area)
	var versions [][]byte
	for _, s := range stamps {
		versions = append(versions, painted(s, 0, area))
	}
	for at := int64(0); at < area; at += b.s.Block {
		block := got[at : at+b.s.Block]
		if !slices.ContainsFunc(versions, func(v []byte) bool { return bytes.Equal(block, v[at:at+b.s.Block]) }) {
			b.Errorf("the block at %#x is none of the versions: % x", at, block[:16])
		}
	}
}
