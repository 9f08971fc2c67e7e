package zns

import (
	"fmt"
	"strings"
	"testing"
)

func TestWhoWatchesSeesPointersConditionsAndCounts(t *testing.T) {
	r := newRig(t, Geometry{MaxOpen: 1})
	var got []string
	r.reopen(Watch(func(e Event) {
		got = append(got, fmt.Sprintf("%d %v>%v +%d o%d a%d", e.Zone, e.From, e.To, e.WP-r.start(e.Zone), e.Open, e.Active))
	}))
	r.ok(r.write(0, 0, 512, 1))
	r.ok(r.write(1, 0, 512, 1))
	r.ok(r.write(1, 512, 1024, 1))
	r.ok(r.manage(OpFinish, 1))
	r.ok(r.manage(OpReset, 1))
	r.ok(r.write(2, 0, r.g.ZoneCapacity, 1))
	want := strings.Join([]string{
		"0 empty>implicit-open +0 o1 a1", "0 implicit-open>implicit-open +512 o1 a1",
		"0 implicit-open>closed +512 o0 a1", "1 empty>implicit-open +0 o1 a2", "1 implicit-open>implicit-open +512 o1 a2",
		"1 implicit-open>implicit-open +1536 o1 a2",
		fmt.Sprintf("1 implicit-open>full +%d o0 a1", r.g.ZoneCapacity),
		"1 full>empty +0 o0 a1",
		"2 empty>implicit-open +0 o1 a2", fmt.Sprintf("2 implicit-open>full +%d o0 a1", r.g.ZoneCapacity),
	}, "\n")
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("seen\n%s\nwant\n%s", s, want)
	}
}

// What nobody watches costs a comparison, and watching allocates nothing.
func TestWatchingAllocatesNothing(t *testing.T) {
	events := 0
	for _, opts := range [][]Option{nil, {Watch(func(Event) { events++ })}} {
		d := flatDevice(t, 8, opts...)
		if n := testing.AllocsPerRun(1000, loop(t, d, OpWrite, 1)); n != 0 {
			t.Errorf("%d options: %v allocations per write, want 0", len(opts), n)
		}
	}
	if events < 1000 {
		t.Errorf("%d events", events)
	}
}

func BenchmarkWatch(b *testing.B) {
	for _, watched := range []bool{false, true} {
		b.Run(fmt.Sprintf("watched=%v", watched), func(b *testing.B) {
			var opts []Option
			if watched {
				opts = append(opts, Watch(func(Event) {}))
			}
			f := loop(b, flatDevice(b, 16, opts...), OpWrite, 1)
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}
