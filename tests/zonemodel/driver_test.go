package zonemodel

import (
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/qzbd/qzbd/zns"
)

func shape() Shape {
	return Shape{
		Zones: 20, Conventional: 2, ZoneSize: 1 << 20, Capacity: 768 << 10,
		MaxOpen: 3, MaxActive: 5, Block: 512,
	}
}

func TestADriverDoesEverythingAndItsSeedSaysWhat(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	m, again := New(shape(), Quirks{}), New(shape(), Quirks{})
	d, copied := NewDriver(m, seed), NewDriver(again, seed)
	type outcome struct {
		kind  Kind
		errno syscall.Errno
	}
	seen := map[outcome]int{}
	conds := map[zns.Cond]int{}
	for range 20000 {
		op := d.Next()
		if c := copied.Next(); c != op {
			t.Fatalf("the same seed gives %v and %v", op, c)
		}
		switch op.Kind {
		case Write, Zeroes, Read:
			if op.At < 0 || op.Len <= 0 || op.At+op.Len > m.ZoneSize || op.At%m.Block != 0 || op.Len%m.Block != 0 {
				t.Fatalf("impossible: %v", op)
			}
		}
		seen[outcome{op.Kind, m.Apply(op)}]++
		again.Apply(op)
		conds[m.Cond(op.Zone)]++
		if n := m.Count(zns.Cond.Open); n > m.MaxOpen {
			t.Fatalf("after %v, %d zones are open", op, n)
		}
		if n := m.Count(zns.Cond.Active); n > m.MaxActive {
			t.Fatalf("after %v, %d zones are active", op, n)
		}
	}
	for _, k := range []Kind{Write, Zeroes, Open, Close, Finish, Reset, ResetAll, Read, Flush} {
		if seen[outcome{k, 0}] == 0 {
			t.Errorf("no %v has succeeded", k)
		}
	}
	for _, k := range []Kind{Write, Open, Finish} {
		for _, e := range []syscall.Errno{syscall.EIO, syscall.ETOOMANYREFS, syscall.EOVERFLOW} {
			if seen[outcome{k, e}] == 0 && (k != Finish || e != syscall.EIO) {
				t.Errorf("no %v was refused with %v", k, e)
			}
		}
	}
	for _, c := range []zns.Cond{zns.CondNotWP, zns.CondEmpty, zns.CondImpOpen, zns.CondExpOpen, zns.CondClosed, zns.CondFull} {
		if conds[c] == 0 {
			t.Errorf("no zone was %v", c)
		}
	}
}
