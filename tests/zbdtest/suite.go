package zbdtest

import (
	"flag"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/qzbd/qzbd/tests/zonemodel"
	"github.com/qzbd/qzbd/zns"
)

var (
	seedFlag = flag.Uint64("seed", 0, "`seed` of the random tests; 0: a new one")
	walkFlag = flag.Int("walk", 400, "`steps` of the random walk")
)

// rule is one thing that a device has to keep to.
type rule struct {
	name  string // a sentence
	needs func(*bed) string
	run   func(*bed)
}

// rules is what the suite checks, in this order.
func rules() (all []rule) {
	for _, some := range [][]rule{
		reportRules, attributeRules, transitionRules(), manageRules, limitRules, writeRules,
		readRules, zeroRules, conventionalRules, concurrentRules, walkRules,
	} {
		all = append(all, some...)
	}
	return all
}

// Run checks that a device keeps to the rules, one subtest for each rule.
// Whatever was on it is lost. Rules that say nothing about a device of its
// shape are named in the log and no subtest.
func Run(t *testing.T, d Drive) {
	if p, ok := d.(interface{ Prepare() error }); ok {
		if err := p.Prepare(); err != nil {
			t.Fatal(err)
		}
	}
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	s := d.Shape()
	t.Logf("%v: %s, %d zones of %d bytes with a capacity of %d, %d conventional, limits %d open and %d active, blocks of %d, seed %d",
		d, d.Kind(), s.Zones, s.ZoneSize, s.Capacity, s.Conventional, s.MaxOpen, s.MaxActive, s.Block, seed)
	if s.Sequential() < 4 || s.Capacity < 256<<10 {
		t.Fatalf("too small to be tested: at least 4 sequential zones with a capacity of 256K are needed")
	}
	var idle []string
	for i, r := range rules() {
		b := &bed{T: t, d: d, s: s, kind: d.Kind(), seed: seed, stamp: mix(seed+uint64(i)) | 1, piece: 8 * s.Block}
		if r.needs != nil {
			if why := r.needs(b); why != "" {
				idle = append(idle, r.name+": "+why)
				continue
			}
		}
		t.Run(r.name, func(t *testing.T) {
			b.T = t
			b.resetAll()
			r.run(b)
		})
	}
	b := &bed{T: t, d: d, s: s}
	b.resetAll()
	if len(idle) > 0 {
		t.Logf("do not apply:\n  %s", strings.Join(idle, "\n  "))
	}
}

// bed is where a rule finds the device: all sequential zones empty.
type bed struct {
	*testing.T
	d     Drive
	s     zonemodel.Shape
	kind  Kind
	seed  uint64 // of the run
	stamp uint64 // of what this rule writes
	piece int64  // the size of a usual write: a few blocks
}

// Conditions for rules.

func needsConventional(b *bed) string {
	if b.s.Conventional == 0 {
		return "no zone is conventional"
	}
	return ""
}

func needsGap(b *bed) string {
	if b.s.Capacity == b.s.ZoneSize {
		return "the capacity of a zone is its size"
	}
	return ""
}

func needsBlockDevice(b *bed) string {
	if _, ok := b.d.(*BlockDevice); !ok {
		return "this device is in this process and has no kernel above it"
	}
	return ""
}

// seq is the number of the k-th sequential zone.
func (b *bed) seq(k int) int { return b.s.Conventional + k }

// at is a place in a zone, by its distance from the start.
func (b *bed) at(i int, off int64) int64 { return b.s.Start(i) + off }

// want checks an error for an errno; 0 wants none.
func (b *bed) want(errno syscall.Errno, err error, what string) {
	b.Helper()
	switch {
	case errno == 0 && err != nil:
		b.Fatalf("%s: %v", what, err)
	case errno != 0 && err == nil:
		b.Errorf("%s: succeeded, want %v", what, errno)
	case errno != 0 && !b.kind.means(errno, err):
		b.Errorf("%s: %v, want %v", what, err, errno)
	}
}

func (b *bed) resetAll() {
	b.Helper()
	if err := b.d.Manage(Reset, 0, b.s.Size()); err != nil {
		b.Fatalf("reset of the whole device: %v", err)
	}
}

// must does something with a zone that has to succeed.
func (b *bed) must(op Management, i int) {
	b.Helper()
	b.refuse(0, op, i)
}

// refuse does something with a zone that has to fail.
func (b *bed) refuse(errno syscall.Errno, op Management, i int) {
	b.Helper()
	b.want(errno, b.d.Manage(op, b.s.Start(i), b.s.ZoneSize), op.String()+" "+b.name(i))
}

// name is how messages call a zone.
func (b *bed) name(i int) string {
	if i < b.s.Conventional {
		return "conventional zone " + itoa(i)
	}
	return "sequential zone " + itoa(i-b.s.Conventional)
}

// largest is the most that one write of these tests has.
const largest = 1 << 20

// write writes at a place of a zone, in pieces if it is much.
func (b *bed) write(i int, off, n int64) {
	b.Helper()
	for n > 0 {
		k := min(n, largest)
		if err := b.d.Write(b.at(i, off), painted(b.stamp, b.at(i, off), k), false); err != nil {
			b.Fatalf("%s: %v", b.name(i), err)
		}
		off, n = off+k, n-k
	}
}

// refuseWrite writes where it has to fail. The report afterwards is what lets
// the kernel write to the zone again.
func (b *bed) refuseWrite(errno syscall.Errno, i int, off, n int64) {
	b.Helper()
	err := b.d.Write(b.at(i, off), painted(^b.stamp, b.at(i, off), n), false)
	b.zone(i)
	b.want(errno, err, "write to "+b.name(i)+" at "+hex(off))
}

// fill writes a zone from the write pointer on: what is much is mostly zeros.
// It returns from where on it is the pattern.
func (b *bed) fill(i int, from, to int64) (pattern int64) {
	b.Helper()
	if zeros := to - from - b.piece; to-from > largest {
		if err := b.d.Zero(ZeroOut, b.at(i, from), zeros); err != nil {
			b.Fatalf("%s: %v", b.name(i), err)
		}
		from += zeros
	}
	b.write(i, from, to-from)
	return from
}

// zone reports one zone.
func (b *bed) zone(i int) Zone {
	b.Helper()
	zones, err := b.d.Report(b.s.Start(i), 1)
	if err != nil || len(zones) != 1 {
		b.Fatalf("report of %s: %d zones, %v", b.name(i), len(zones), err)
	}
	return zones[0]
}

// is checks condition and fill of a zone.
func (b *bed) is(i int, c zns.Cond, written int64) {
	b.Helper()
	if z := b.zone(i); z.Cond != c || z.Written() != written {
		b.Errorf("%s is %v, want %v with %#x", b.name(i), z, c, written)
	}
}

// read reads from a zone.
func (b *bed) read(i int, off, n int64) []byte {
	b.Helper()
	p := aligned(n)
	if err := b.d.Read(b.at(i, off), p); err != nil {
		b.Fatalf("%s: %v", b.name(i), err)
	}
	return p
}

// holds checks that a range has what this rule wrote there.
func (b *bed) holds(i int, off, n int64) { b.Helper(); b.stamped(b.stamp, i, off, n) }

// zeros checks that a range below the write pointer is zeros.
func (b *bed) zeros(i int, off, n int64) { b.Helper(); b.stamped(0, i, off, n) }

// stamped checks a range for what was written with a stamp.
func (b *bed) stamped(stamp uint64, i int, off, n int64) {
	b.Helper()
	for n > 0 {
		k := min(n, largest)
		if d := differ(b.at(i, off), b.read(i, off, k), painted(stamp, b.at(i, off), k)); d != "" {
			b.Errorf("%s: %s", b.name(i), d)
			return
		}
		off, n = off+k, n-k
	}
}

// blank checks a range that lies wholly above the write pointer.
func (b *bed) blank(i int, off, n int64) {
	b.Helper()
	for n > 0 {
		k := min(n, largest)
		want := make([]byte, k)
		b.unwritten(want)
		if d := differ(b.at(i, off), b.read(i, off, k), want); d != "" {
			b.Errorf("%s, above the write pointer: %s", b.name(i), d)
			return
		}
		off, n = off+k, n-k
	}
}

// unwritten fills p with what a read above the write pointer gives.
func (b *bed) unwritten(p []byte) {
	clear(p)
	if b.kind.differs(onesAboveWP) {
		for i := range p {
			p[i] = 0xff
		}
	}
}
