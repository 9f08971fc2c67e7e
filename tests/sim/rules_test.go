package sim

import (
	"errors"
	"fmt"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/zns"
)

// state is a condition of zone 1 and how it is reached. Zones have 16 KiB of
// which 10 can be written.
type state struct {
	name  string
	cond  zns.Cond
	wp    uint64
	reach func(r *rig)
}

var states = []state{
	{"empty", zns.CondEmpty, 0, func(r *rig) {}},
	{"implicitly open", zns.CondImpOpen, 2 * kib, func(r *rig) { r.ok(r.write(1, 0, 2*kib, 1)) }},
	{"explicitly open, untouched", zns.CondExpOpen, 0, func(r *rig) { r.ok(r.manage(zns.OpOpen, 1)) }},
	{"explicitly open, written", zns.CondExpOpen, 2 * kib, func(r *rig) {
		r.ok(r.manage(zns.OpOpen, 1))
		r.ok(r.write(1, 0, 2*kib, 1))
	}},
	{"closed", zns.CondClosed, 2 * kib, func(r *rig) {
		r.ok(r.write(1, 0, 2*kib, 1))
		r.ok(r.manage(zns.OpClose, 1))
	}},
	{"full by writing", zns.CondFull, 10 * kib, func(r *rig) { r.ok(r.write(1, 0, 10*kib, 1)) }},
	{"full by finish", zns.CondFull, 10 * kib, func(r *rig) {
		r.ok(r.write(1, 0, 2*kib, 1))
		r.ok(r.manage(zns.OpFinish, 1))
	}},
	{"read-only", zns.CondReadOnly, 2 * kib, func(r *rig) {
		r.ok(r.write(1, 0, 2*kib, 1))
		r.ok(r.dev.SetCond(1, zns.CondReadOnly))
	}},
	{"offline", zns.CondOffline, 2 * kib, func(r *rig) {
		r.ok(r.write(1, 0, 2*kib, 1))
		r.ok(r.dev.SetCond(1, zns.CondOffline))
	}},
}

// verb is something a host does with zone 1.
type verb struct {
	name string
	do   func(r *rig) error
}

var verbs = []verb{
	{"write", func(r *rig) error { return r.write(1, r.at(1), kib, 2) }},
	{"write elsewhere", func(r *rig) error { return r.write(1, r.at(1)+kib, kib, 2) }},
	{"write too much", func(r *rig) error { return r.write(1, r.at(1), 10*kib-r.at(1)+512, 2) }},
	{"fill", func(r *rig) error { return r.write(1, r.at(1), max(10*kib-r.at(1), 512), 2) }},
	{"append", func(r *rig) error { _, err := r.append(1, kib, 2); return err }},
	{"write-zeroes", func(r *rig) error { return r.zeroes(1, r.at(1), kib) }},
	{"write-zeroes elsewhere", func(r *rig) error { return r.zeroes(1, 9*kib, kib) }},
	{"open", func(r *rig) error { return r.manage(zns.OpOpen, 1) }},
	{"close", func(r *rig) error { return r.manage(zns.OpClose, 1) }},
	{"finish", func(r *rig) error { return r.manage(zns.OpFinish, 1) }},
	{"reset", func(r *rig) error { return r.manage(zns.OpReset, 1) }},
	{"reset all", func(r *rig) error { return r.manage(zns.OpResetAll, 0) }},
}

// at is a zone's write pointer from its start.
func (r *rig) at(zone int) uint64 { return r.dev.Zone(uint32(zone)).WP - r.start(zone) }

// The whole truth, by hand: for each verb and each state, in the order above,
// the condition afterwards or the refusal.
var rules = map[string][]any{
	"write":                  {toImp, toImp, toExp, toExp, toImp, isFull, isFull, isRO, isOff},
	"write elsewhere":        {notAtWP, notAtWP, notAtWP, notAtWP, notAtWP, isFull, isFull, isRO, isOff},
	"write too much":         {tooMuch, tooMuch, tooMuch, tooMuch, tooMuch, isFull, isFull, isRO, isOff},
	"fill":                   {toFull, toFull, toFull, toFull, toFull, isFull, isFull, isRO, isOff},
	"append":                 {toImp, toImp, toExp, toExp, toImp, isFull, isFull, isRO, isOff},
	"write-zeroes":           {toImp, toImp, toExp, toExp, toImp, isFull, isFull, isRO, isOff},
	"write-zeroes elsewhere": {notAtWP, notAtWP, notAtWP, notAtWP, notAtWP, isFull, isFull, isRO, isOff},
	"open":                   {toExp, toExp, toExp, toExp, toExp, isFull, isFull, isRO, isOff},
	"close":                  {noCond, toClosed, toEmpty, toClosed, toClosed, noCond, noCond, isRO, isOff},
	"finish":                 {toFull, toFull, toFull, toFull, toFull, toFull, toFull, isRO, isOff},
	"reset":                  {toEmpty, toEmpty, toEmpty, toEmpty, toEmpty, toEmpty, toEmpty, isRO, isOff},
	"reset all":              {toEmpty, toEmpty, toEmpty, toEmpty, toEmpty, toEmpty, toEmpty, zns.CondReadOnly, zns.CondOffline},
}

// atOpenLimit and atActiveLimit are what is different when as many other zones
// are explicitly open, or active, as there may be. Both are as on null_blk: a
// finish passes through open, so that it needs room; a zone that is open or
// active already has its place; a closed zone has a place among the active ones.
var (
	atOpenLimit = map[string][]any{
		"write":        {noOpen, errOwn, errOwn, errOwn, noOpen, isFull, isFull, isRO, isOff},
		"fill":         {noOpen, errOwn, errOwn, errOwn, noOpen, isFull, isFull, isRO, isOff},
		"append":       {noOpen, errOwn, errOwn, errOwn, noOpen, isFull, isFull, isRO, isOff},
		"write-zeroes": {noOpen, errOwn, errOwn, errOwn, noOpen, isFull, isFull, isRO, isOff},
		"open":         {noOpen, errOwn, errOwn, errOwn, noOpen, isFull, isFull, isRO, isOff},
		"finish":       {noOpen, errOwn, errOwn, errOwn, noOpen, toFull, toFull, isRO, isOff},
	}
	atActiveLimit = map[string][]any{
		"write":        {noActive, toImp, toExp, toExp, toImp, isFull, isFull, isRO, isOff},
		"fill":         {noActive, toFull, toFull, toFull, toFull, isFull, isFull, isRO, isOff},
		"append":       {noActive, toImp, toExp, toExp, toImp, isFull, isFull, isRO, isOff},
		"write-zeroes": {noActive, toImp, toExp, toExp, toImp, isFull, isFull, isRO, isOff},
		"open":         {noActive, toExp, toExp, toExp, toExp, isFull, isFull, isRO, isOff},
		"finish":       {noActive, toFull, toFull, toFull, toFull, toFull, toFull, isRO, isOff},
	}
)

const (
	toEmpty  = zns.CondEmpty
	toImp    = zns.CondImpOpen
	toExp    = zns.CondExpOpen
	toClosed = zns.CondClosed
	toFull   = zns.CondFull
)

var (
	isFull, isRO, isOff = zns.ErrFull, zns.ErrReadOnly, zns.ErrOffline
	notAtWP, tooMuch    = zns.ErrNotAtWP, zns.ErrBoundary
	noOpen, noActive    = zns.ErrOpenLimit, zns.ErrActiveLimit
	noCond              = zns.ErrCond
	errOwn              = errors.New("an open zone has one of the places itself")
)

func TestEveryStateMeetsEveryVerbAndANewStart(t *testing.T) {
	for _, c := range []struct {
		name             string
		different        map[string][]any
		maxOpen, maxActv uint64
		others           func(r *rig) // after zone 1 is in its state
	}{
		{"without limits", nil, 0, 0, func(r *rig) {}},
		{"at the open limit", atOpenLimit, 2, 0, func(r *rig) {
			r.ok(r.manage(zns.OpOpen, 2))
			r.ok(r.manage(zns.OpOpen, 3))
		}},
		{"at the active limit", atActiveLimit, 0, 3, func(r *rig) {
			for i := 2; ; i++ { // closed zones: nobody can be closed to make room
				if _, n := r.dev.Counts(); n == 3 {
					return
				}
				r.ok(r.write(i, 0, kib, 9))
				r.ok(r.manage(zns.OpClose, i))
			}
		}},
	} {
		for _, v := range verbs {
			for i, st := range states {
				want := rules[v.name][i]
				if row := c.different[v.name]; row != nil {
					want = row[i]
				}
				if want == errOwn || c.name == "at the open limit" && st.cond.Open() {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/%s", c.name, v.name, st.name), func(t *testing.T) {
					r := newRig(t, spec{CreateOptions: qcow2.CreateOptions{
						ClusterSize: 4 * kib, Size: 8 * 16 * kib, ZoneSize: 16 * kib, ZoneCapacity: 10 * kib, Conventional: 1,
						MaxOpen: c.maxOpen, MaxActive: c.maxActv,
					}})
					st.reach(r)
					c.others(r)
					r.is(1, st.cond, st.wp)
					r.follows(st, v, want)
				})
			}
		}
	}
}

// follows does v in state st and holds what comes out against want, before and
// after a new start.
func (r *rig) follows(st state, v verb, want any) {
	r.TB.Helper()
	before := r.report8()
	err := v.do(r)
	c, wp := st.cond, st.wp
	switch want := want.(type) {
	case error:
		r.refused(err, want)
		if after := r.report8(); after != before { // I11
			r.Fatalf("a refusal changed\n%+v to\n%+v", before, after)
		}
	case zns.Cond:
		r.ok(err)
		if c = want; c == zns.CondEmpty {
			wp = 0
		} else if c == zns.CondFull {
			wp = 10 * kib
		} else if v.name == "write" || v.name == "append" || v.name == "write-zeroes" {
			wp += kib
		}
	}
	r.is(1, c, wp)
	if c == zns.CondOffline {
		_, err := r.do(zns.OpRead, r.start(1), kib, make([]byte, kib))
		r.refused(err, zns.ErrOffline)
	} else {
		r.contents(st, v, wp)
	}
	r.reopen()
	switch { // open states and those of administration are not stored
	case wp == 0:
		c = zns.CondEmpty
	case wp == 10*kib:
		c = zns.CondFull
	default:
		c = zns.CondClosed
	}
	r.is(1, c, wp)
	r.contents(st, v, wp)
}

// contents reads zone 1 up to its end.
func (r *rig) contents(st state, v verb, wp uint64) {
	r.TB.Helper()
	was := uint64(2 * kib) // of ones
	switch {
	case wp == 0 || st.wp == 0:
		was = 0
	case st.name == "full by writing":
		was = 10 * kib
	}
	r.holds(1, 0, was, 1)
	at := was
	if wp > was && st.wp != 10*kib && (v.name == "write" || v.name == "append" || v.name == "fill") {
		r.holds(1, was, wp-was, 2)
		at = wp
	}
	r.holds(1, at, 16*kib-at, 0)
}

// report8 is what a host sees of the conditions.
func (r *rig) report8() (z [8]zns.Zone) {
	for i := range z {
		z[i] = r.dev.Zone(uint32(i))
	}
	return z
}

func TestAConventionalZoneRefusesEveryVerbOfZones(t *testing.T) {
	r := newRig(t, tight())
	r.ok(r.write(0, 8*kib, 4*kib, 1))
	for _, op := range []zns.Op{zns.OpOpen, zns.OpClose, zns.OpFinish, zns.OpReset} {
		r.refused(r.manage(op, 0), zns.ErrConventional)
	}
	_, err := r.append(0, kib, 1)
	r.refused(err, zns.ErrConventional)
	r.refused(r.dev.SetCond(0, zns.CondOffline), zns.ErrConventional)
	r.ok(r.manage(zns.OpResetAll, 0))
	for range 2 {
		r.is(0, zns.CondNotWP, 0)
		r.holds(0, 0, 8*kib, 0)
		r.holds(0, 8*kib, 4*kib, 1)
		r.reopen()
	}
}
