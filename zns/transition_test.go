package zns

import (
	"errors"
	"testing"
)

// The whole truth about conditions and events, written out by hand from NVMe
// ZNS 2.2.2 and null_blk: the condition afterwards, or the refusal.
func TestEveryConditionMeetsEveryEvent(t *testing.T) {
	const (
		nw = CondNotWP
		em = CondEmpty
		io = CondImpOpen
		eo = CondExpOpen
		cl = CondClosed
		fu = CondFull
		ro = CondReadOnly
		of = CondOffline
	)
	conds := [...]Cond{nw, em, io, eo, cl, fu, ro, of}
	var (
		conv, full, readonly, offline, cond = ErrConventional, ErrFull, ErrReadOnly, ErrOffline, ErrCond
	)
	table := map[event][len(conds)]any{
		//                  not-wp empty  imp-open exp-open closed full   read-only offline
		evRead:           {nw, em, io, eo, cl, fu, ro, offline},
		evWrite:          {nw, io, io, eo, io, full, readonly, offline},
		evAppend:         {conv, io, io, eo, io, full, readonly, offline},
		evOpen:           {conv, eo, eo, eo, eo, full, readonly, offline},
		evClose:          {conv, cond, cl, cl, cl, cond, readonly, offline},
		evCloseUnwritten: {conv, cond, em, em, cond, cond, readonly, offline},
		evFinish:         {conv, fu, fu, fu, fu, fu, readonly, offline},
		evReset:          {conv, em, em, em, em, em, readonly, offline},
		evFill:           {conv, cond, fu, fu, fu, cond, readonly, offline},
		evEvict:          {conv, cond, cl, cond, cond, cond, readonly, offline},
		evUnwind:         {conv, cond, em, cond, em, cond, readonly, offline},
		evReadOnly:       {conv, ro, ro, ro, ro, ro, ro, offline},
		evOffline:        {conv, of, of, of, of, of, of, of},
	}
	if len(table) != int(nrEvents) {
		t.Fatalf("the table has %d events, there are %d", len(table), nrEvents)
	}
	for ev, row := range table {
		for k, want := range row {
			c := conds[k]
			got, err := next(c, ev)
			switch want := want.(type) {
			case Cond:
				if err != nil || got != want {
					t.Errorf("next(%v, %d) = %v, %v, want %v", c, ev, got, err, want)
				}
			case error:
				if !errors.Is(err, want) || got != c {
					t.Errorf("next(%v, %d) = %v, %v, want %v, %v", c, ev, got, err, c, want)
				}
			}
		}
	}
}
