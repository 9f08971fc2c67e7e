package zbdtest

import (
	"slices"
	"syscall"

	"github.com/qzbd/qzbd/zns"
)

// The limits are tested where a test may open that many zones one by one, and
// has enough left that are one too many.

func needsOpenLimit(b *bed) string {
	switch n := b.s.MaxOpen; {
	case n == 0:
		return "there is no limit of open zones"
	case n > most:
		return "the limit of open zones is large"
	}
	return ""
}

// needsSpareActive: more zones may be active than open.
func needsSpareActive(b *bed) string {
	if b.s.MaxActive != 0 && b.s.MaxActive <= b.s.MaxOpen {
		return "no more zones may be active than open"
	}
	return needsOpenLimit(b)
}

func needsActiveLimit(b *bed) string {
	switch n := b.s.MaxActive; {
	case n == 0:
		return "there is no limit of active zones"
	case n > most:
		return "the limit of active zones is large"
	}
	return ""
}

func needsTwoActive(b *bed) string {
	if b.s.MaxActive == 1 {
		return "only one zone may be active"
	}
	return ""
}

func needsNoLimit(b *bed) string {
	if b.s.MaxOpen != 0 || b.s.MaxActive != 0 {
		return "there is a limit"
	}
	return ""
}

// overflow is what a zone too many is refused with when all that may be open
// are explicitly open: the limit of active zones is looked at first.
func (b *bed) overflow() syscall.Errno {
	if b.s.MaxActive != 0 && b.s.MaxActive <= b.s.MaxOpen {
		return syscall.EOVERFLOW
	}
	return syscall.ETOOMANYREFS
}

// openAll opens as many zones as may be open and returns how many.
func (b *bed) openAll() int {
	b.Helper()
	for k := range b.s.MaxOpen {
		b.must(Open, b.seq(k))
	}
	return b.s.MaxOpen
}

// activateAll makes as many zones active as may be and returns how many. Each
// has one piece written.
func (b *bed) activateAll() int {
	b.Helper()
	for k := range b.s.MaxActive {
		b.write(b.seq(k), 0, b.piece)
	}
	return b.s.MaxActive
}

// having lists which of the first n sequential zones are in a condition.
func (b *bed) having(c zns.Cond, n int) (list []int) {
	b.Helper()
	for k, z := range b.report(b.s.Start(b.seq(0)), n) {
		if z.Cond == c {
			list = append(list, k)
		}
	}
	return list
}

// victim checks that one implicitly open zone of the first n was closed to
// make room, and which if the device is known to take the oldest.
func (b *bed) victim(n, oldest int) {
	b.Helper()
	closed := b.having(zns.CondClosed, n)
	if len(closed) != 1 || !b.kind.differs(anyVictim) && closed[0] != oldest {
		b.Errorf("zones %v were closed to make room, want one: %d", closed, oldest)
	}
}

var limitRules = []rule{
	{"exactly max_open_zones zones can be opened", needsOpenLimit, func(b *bed) {
		n := b.openAll()
		b.refuse(b.overflow(), Open, b.seq(n))
		b.is(b.seq(n), zns.CondEmpty, 0)
		if got := len(b.having(zns.CondExpOpen, n)); got != n {
			b.Errorf("%d zones are open, want %d", got, n)
		}
		b.must(Close, b.seq(0)) // never written: it is not active either
		b.must(Open, b.seq(n))
		b.refuse(b.overflow(), Open, b.seq(0))
		b.must(Reset, b.seq(n))
		b.must(Open, b.seq(0))
	}},
	{"a write is refused while all zones that may be open are explicitly open", needsOpenLimit, func(b *bed) {
		n := b.openAll()
		b.refuseWrite(b.overflow(), b.seq(n), 0, b.piece)
		b.is(b.seq(n), zns.CondEmpty, 0)
		b.write(b.seq(0), 0, b.piece) // those that are open are not concerned
		b.must(Finish, b.seq(0))
		b.write(b.seq(n), 0, b.piece)
		b.holds(b.seq(n), 0, b.piece)
		b.is(b.seq(n), zns.CondImpOpen, b.piece)
	}},
	{"a write of zeros is refused while all zones that may be open are explicitly open", needsOpenLimit, func(b *bed) {
		n := b.openAll()
		err := b.d.Zero(ZeroOut, b.at(b.seq(n), 0), b.piece)
		b.is(b.seq(n), zns.CondEmpty, 0)
		b.want(b.overflow(), err, "zeros")
	}},
	{"an empty zone is not finished while all zones that may be open are explicitly open", needsOpenLimit, func(b *bed) {
		n := b.openAll()
		if b.kind.differs(freeFinish) {
			b.must(Finish, b.seq(n))
			b.is(b.seq(n), zns.CondFull, b.s.Capacity)
			return
		}
		b.refuse(b.overflow(), Finish, b.seq(n))
		b.is(b.seq(n), zns.CondEmpty, 0)
	}},
	{"a write at the limit of open zones closes the least recently used implicitly open one", needsSpareActive, func(b *bed) {
		n := b.s.MaxOpen
		for k := range n {
			b.write(b.seq(k), 0, b.piece)
		}
		oldest := 0
		if n > 1 {
			b.write(b.seq(0), b.piece, b.piece)
			oldest = 1
		}
		b.write(b.seq(n), 0, b.piece)
		b.is(b.seq(n), zns.CondImpOpen, b.piece)
		b.victim(n, oldest)
	}},
	{"an opening at the limit of open zones closes the least recently used implicitly open one", needsSpareActive, func(b *bed) {
		n := b.s.MaxOpen
		for k := range n {
			b.write(b.seq(k), 0, b.piece)
		}
		b.must(Open, b.seq(n))
		b.is(b.seq(n), zns.CondExpOpen, 0)
		b.victim(n, 0)
	}},
	{"a finish of an empty zone at the limit of open zones closes an implicitly open one", needsSpareActive, func(b *bed) {
		n := b.s.MaxOpen
		for k := range n {
			b.write(b.seq(k), 0, b.piece)
		}
		b.must(Finish, b.seq(n))
		b.is(b.seq(n), zns.CondFull, b.s.Capacity)
		if b.kind.differs(freeFinish) {
			if got := b.having(zns.CondImpOpen, n); len(got) != n {
				b.Errorf("zones %v of %d are still open", got, n)
			}
			return
		}
		b.victim(n, 0)
	}},
	{"only an implicitly open zone is closed to make room", needsSpareActive, func(b *bed) {
		n := b.s.MaxOpen
		for k := range n - 1 {
			b.must(Open, b.seq(k))
			b.write(b.seq(k), 0, b.piece)
		}
		b.write(b.seq(n-1), 0, b.piece)
		b.write(b.seq(n), 0, b.piece)
		b.is(b.seq(n-1), zns.CondClosed, b.piece)
		b.is(b.seq(n), zns.CondImpOpen, b.piece)
		if got := b.having(zns.CondExpOpen, n); len(got) != n-1 {
			b.Errorf("explicitly open are %v of %d", got, n-1)
		}
		// The zone that was closed is written again, and another one closed.
		b.write(b.seq(n-1), b.piece, b.piece)
		b.is(b.seq(n), zns.CondClosed, b.piece)
		b.holds(b.seq(n-1), 0, 2*b.piece)
		b.holds(b.seq(n), 0, b.piece)
	}},
	{"an explicitly open zone does not become implicitly open by a write", needsOpenLimit, func(b *bed) {
		n := b.openAll()
		for k := range n {
			b.write(b.seq(k), 0, b.piece)
		}
		if got := len(b.having(zns.CondExpOpen, n)); got != n {
			b.Errorf("%d zones are explicitly open, want %d", got, n)
		}
	}},
	{"exactly max_active_zones zones can be active", needsActiveLimit, func(b *bed) {
		n := b.activateAll()
		b.refuseWrite(syscall.EOVERFLOW, b.seq(n), 0, b.piece)
		b.refuse(syscall.EOVERFLOW, Open, b.seq(n))
		b.refuse(syscall.EOVERFLOW, Finish, b.seq(n))
		b.want(syscall.EOVERFLOW, b.d.Zero(ZeroOut, b.at(b.seq(n), 0), b.piece), "zeros")
		b.is(b.seq(n), zns.CondEmpty, 0)
		open, closed := len(b.having(zns.CondImpOpen, n)), len(b.having(zns.CondClosed, n))
		if want := b.s.MaxOpen; want != 0 && open != want || open+closed != n {
			b.Errorf("%d zones are open and %d closed, want %d open and %d active", open, closed, want, n)
		}
	}},
	{"closing a zone does not make room for another active one, but closing an unwritten one does", needsActiveLimit, func(b *bed) {
		n := b.s.MaxActive - 1
		for k := range n {
			b.write(b.seq(k), 0, b.piece)
		}
		b.must(Open, b.seq(n))
		for k := range n {
			b.must(Close, b.seq(k))
		}
		b.refuse(syscall.EOVERFLOW, Open, b.seq(n+1))
		b.must(Close, b.seq(n))
		b.must(Open, b.seq(n+1))
	}},
	{"a closed zone is written and opened while as many zones are active as may be", needsActiveLimit, func(b *bed) {
		n := b.activateAll()
		for k := range n {
			b.must(Close, b.seq(k))
		}
		for k := range n {
			i := b.seq(k)
			if b.s.MaxOpen != 0 && k >= b.s.MaxOpen && b.kind.differs(closedNeedsActive) {
				b.refuseWrite(syscall.ETOOMANYREFS, i, b.piece, b.piece)
				b.is(i, zns.CondClosed, b.piece)
				continue
			}
			b.write(i, b.piece, b.piece)
			b.is(i, zns.CondImpOpen, 2*b.piece)
			b.holds(i, 0, 2*b.piece)
		}
		if n > 1 {
			b.must(Reset, b.seq(n-1)) // room for null_blk, too
		}
		b.must(Close, b.seq(0))
		b.must(Open, b.seq(0))
		b.is(b.seq(0), zns.CondExpOpen, 2*b.piece)
	}},
	{"a zone that is written full, finished or reset makes room for another active one", needsActiveLimit, func(b *bed) {
		n := b.activateAll()
		i := b.seq(n - 1) // open
		for round, free := range []func(){
			func() { b.fill(i, b.piece, b.s.Capacity) },
			func() { b.must(Finish, i) },
			func() { b.must(Reset, i) },
		} {
			b.refuseWrite(syscall.EOVERFLOW, b.seq(n), 0, b.piece)
			free()
			b.write(b.seq(n), 0, b.piece)
			b.refuse(syscall.EOVERFLOW, Open, b.seq(n+1))
			b.must(Reset, b.seq(n))
			if round < 2 {
				b.must(Reset, i)
				b.write(i, 0, b.piece)
			}
		}
	}},
	{"a full zone neither is open nor active", nil, func(b *bed) {
		n := min(b.s.Sequential(), 3+max(b.s.MaxOpen, b.s.MaxActive), most)
		for k := range n {
			b.must(Finish, b.seq(k))
		}
		if got := len(b.having(zns.CondFull, n)); got != n {
			b.Errorf("%d zones are full, want %d", got, n)
		}
	}},
	{"without limits every zone can be open at once", needsNoLimit, func(b *bed) {
		n := min(b.s.Sequential(), most)
		for k := range n {
			if k%2 == 0 {
				b.must(Open, b.seq(k))
			} else {
				b.write(b.seq(k), 0, b.piece)
			}
		}
		for k, z := range b.report(b.s.Start(b.seq(0)), n) {
			if want := []zns.Cond{zns.CondExpOpen, zns.CondImpOpen}[k%2]; z.Cond != want {
				b.Errorf("%s is %v, want %v", b.name(b.seq(k)), z, want)
			}
		}
	}},
	{"a reset of the whole device frees all open and active zones", needsOpenLimit, func(b *bed) {
		for range 3 {
			n := b.openAll()
			b.write(b.seq(n-1), 0, b.piece)
			b.refuse(b.overflow(), Open, b.seq(n))
			b.resetAll()
		}
		if got := b.having(zns.CondEmpty, b.s.MaxOpen); !slices.Equal(got, upTo(b.s.MaxOpen)) {
			b.Errorf("empty are %v", got)
		}
	}},
}

func upTo(n int) (list []int) {
	for k := range n {
		list = append(list, k)
	}
	return list
}
