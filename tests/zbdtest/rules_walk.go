package zbdtest

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/qzbd/qzbd/tests/zonemodel"
	"github.com/qzbd/qzbd/zns"
)

var walkRules = []rule{
	{"whatever is done, the device does what the model does", nil, func(b *bed) {
		m := zonemodel.New(b.s, b.kind.quirks())
		w := &walk{bed: b, m: m, d: zonemodel.NewDriver(m, b.seed)}
		w.d.Largest, w.d.Filler = 256<<10, min(b.s.Capacity, 64<<20)
		w.conventional()
		for step := range *walkFlag {
			op := w.d.Next()
			w.trace = append(w.trace, fmt.Sprintf("%d: %v", step, op))
			if err := w.step(op); err != nil {
				b.Fatalf("%v\nseed %d, the last steps:\n%s", err, b.seed, w.last(20))
			}
		}
		for _, i := range w.d.Zones() {
			for _, at := range []int64{0, m.WP(i) - w.d.Largest, b.s.ZoneSize - w.d.Largest} {
				at = max(0, at)
				if err := w.content(i, at, min(2*w.d.Largest, b.s.ZoneSize-at)); err != nil {
					b.Errorf("%v\nseed %d", err, b.seed)
				}
			}
		}
	}},
}

// walk does the same on the device and on the model and compares the answers,
// the reports and the bytes.
type walk struct {
	*bed
	m     *zonemodel.Model
	d     *zonemodel.Driver
	trace []string
}

func (w *walk) last(n int) (text string) {
	for _, line := range w.trace[max(0, len(w.trace)-n):] {
		text += line + "\n"
	}
	return text
}

// conventional makes the conventional zones what the model begins with.
func (w *walk) conventional() {
	for _, i := range w.d.Zones() {
		if i < w.s.Conventional {
			w.want(0, w.bed.d.Zero(ZeroOut, w.at(i, 0), w.s.ZoneSize), "zeros")
		}
	}
}

func (w *walk) step(op zonemodel.Op) error {
	before := ""
	if op.Kind != zonemodel.ResetAll && op.Kind != zonemodel.Flush {
		before = fmt.Sprintf("%v with %#x", w.m.Cond(op.Zone), w.m.WP(op.Zone))
	}
	want := w.m.Apply(op)
	err := w.do(op)
	// Of what is split, the first part is refused for the limit and the
	// others because they are not at the write pointer then.
	parts := op.Len > zonemodel.Single && want != 0 && errors.Is(err, syscall.EIO)
	if want == 0 && err != nil || want != 0 && !parts && !w.kind.means(want, err) {
		errno := want.Error()
		if want == 0 {
			errno = "success"
		}
		return fmt.Errorf("%v of a zone that is %s: %v, want %s", op, before, err, errno)
	}
	if err := w.reports(); err != nil {
		return fmt.Errorf("after %v of a zone that was %s: %w", op, before, err)
	}
	if op.Kind == zonemodel.Read {
		return w.content(op.Zone, op.At, op.Len)
	}
	return nil
}

// do does op on the device.
func (w *walk) do(op zonemodel.Op) error {
	start := w.s.Start(op.Zone)
	switch op.Kind {
	case zonemodel.Write:
		return w.bed.d.Write(start+op.At, painted(op.Stamp, start+op.At, op.Len), op.Sync)
	case zonemodel.Zeroes:
		return w.bed.d.Zero(ZeroOut, start+op.At, op.Len)
	case zonemodel.Open:
		return w.bed.manage(Open, op.Zone)
	case zonemodel.Close:
		return w.bed.manage(Close, op.Zone)
	case zonemodel.Finish:
		return w.bed.manage(Finish, op.Zone)
	case zonemodel.Reset:
		return w.bed.manage(Reset, op.Zone)
	case zonemodel.ResetAll:
		return w.bed.d.Manage(Reset, 0, w.s.Size())
	case zonemodel.Flush:
		return w.bed.d.Flush()
	case zonemodel.Read:
		return nil // step compares
	}
	return syscall.ENOSYS
}

// reports compares all zones that the driver touches.
func (w *walk) reports() error {
	zones := w.d.Zones()
	first, n := w.s.Conventional, len(zones)
	if first+n > w.s.Zones {
		n = w.s.Zones - first
	}
	all, err := w.bed.d.Report(w.s.Start(first), n)
	if err != nil {
		return err
	}
	last, err := w.bed.d.Report(w.s.Start(w.s.Zones-1), 1)
	if err != nil {
		return err
	}
	reported := map[int]Zone{w.s.Zones - 1: last[0]}
	for k, z := range all {
		reported[first+k] = z
		w.m.Learn(first+k, z.Cond)
	}
	w.m.Learn(w.s.Zones-1, last[0].Cond)
	if !w.m.Settled() {
		return errors.New("no implicitly open zone was closed to make room")
	}
	for i, z := range reported {
		w.sound(i, z)
		if c := w.m.Cond(i); z.Cond != c || c != zns.CondNotWP && z.Written() != w.m.WP(i) {
			return fmt.Errorf("%s is %v, want %v with %#x", w.name(i), z, c, w.m.WP(i))
		}
	}
	return nil
}

// content compares a range of a zone, block by block.
func (w *walk) content(i int, at, n int64) error {
	for n > 0 {
		k := min(n, largest)
		if w.kind.differs(gapZones) && at < w.s.Capacity && i >= w.s.Conventional {
			k = min(k, w.s.Capacity-at)
		}
		got, want := aligned(k), aligned(k)
		if err := w.bed.d.Read(w.at(i, at), got); err != nil {
			return err
		}
		for b, stamp := range w.m.Content(i, at, k) {
			off := int64(b) * w.s.Block
			have, want := got[off:off+w.s.Block], want[off:off+w.s.Block]
			paint(want, stamp, w.at(i, at+off))
			if stamp == zonemodel.Unwritten {
				if w.m.Cond(i) == zns.CondFull {
					continue // behind the capacity: rules of their own
				}
				w.unwritten(want)
			}
			if d := differ(w.at(i, at+off), have, want); d != "" {
				return fmt.Errorf("%s, read: %s", w.name(i), d)
			}
		}
		at, n = at+k, n-k
	}
	return nil
}
