package sim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/zns"
)

// What the series with which the format was introduced got wrong, line by line,
// and what its own test asks for, step by step. Sectors have 512 bytes. What a
// kernel lets an application do of it, tests/kernel/series_test.go does.

// founding is the series' own example, as its test uses it.
func founding() spec {
	return spec{CreateOptions: qcow2.CreateOptions{Size: 768 * mib, ZoneSize: 64 * mib, MaxOpen: 6, MaxActive: 8, MaxAppend: 32 * mib}}
}

// tight has a capacity that is no power of two, and a conventional zone.
func tight() spec {
	return spec{CreateOptions: qcow2.CreateOptions{ClusterSize: 4 * kib, Size: 8 * 64 * kib, ZoneSize: 64 * kib, ZoneCapacity: 48 * kib, Conventional: 1, MaxOpen: 3, MaxActive: 4}}
}

func TestWhatTheSeriesGotWrong(t *testing.T) {
	for _, c := range []struct {
		name string
		s    spec
		f    func(r *rig)
	}{
		{"zone append wrote its data at the zone start", tight(), func(r *rig) {
			for k := range uint64(3) {
				at, err := r.append(1, 5*kib, byte(k+1))
				r.ok(err)
				if at != k*5*kib {
					r.Errorf("append %d was placed at %#x", k, at)
				}
			}
			for range 2 {
				for k := range uint64(3) {
					r.holds(1, k*5*kib, 5*kib, byte(k+1))
				}
				r.reopen()
			}
		}},
		{"an I/O error was swallowed and the write pointer had advanced", tight(), func(r *rig) {
			r.ok(r.write(1, 0, 4*kib, 1))
			r.fail(syscall.EIO, func(op crashfile.Op) bool { return op.Kind == crashfile.Write && op.N == 3*kib })
			r.refused(r.write(1, 4*kib, 3*kib, 2), syscall.EIO)
			_, err := r.append(2, 3*kib, 2)
			r.refused(err, syscall.EIO)
			r.is(1, zns.CondImpOpen, 4*kib)
			r.is(2, zns.CondEmpty, 0)
			r.mend()
			r.reopen()
			r.is(1, zns.CondClosed, 4*kib)
			r.is(2, zns.CondEmpty, 0)
			r.ok(r.write(1, 4*kib, 3*kib, 3))
			r.holds(1, 4*kib, 3*kib, 3)
		}},
		{"the write pointer hit the disk before the data", tight(), theDataIsSyncedFirst},
		{"opening a zone twice crashed", tight(), func(r *rig) {
			r.ok(r.manage(zns.OpOpen, 1))
			r.ok(r.manage(zns.OpOpen, 1))
			r.is(1, zns.CondExpOpen, 0)
			if open, _ := r.dev.Counts(); open != 1 {
				r.Errorf("it counts as %d open zones", open)
			}
		}},
		{"all open zones explicit plus one write crashed", tight(), func(r *rig) {
			for i := 1; i <= 3; i++ {
				r.ok(r.manage(zns.OpOpen, i))
			}
			r.refused(r.write(4, 0, kib, 1), zns.ErrOpenLimit)
			_, err := r.append(4, kib, 1)
			r.refused(err, zns.ErrOpenLimit)
			r.refused(r.zeroes(4, 0, kib), zns.ErrOpenLimit)
			r.is(4, zns.CondEmpty, 0)
			r.ok(r.write(1, 0, kib, 1))
		}},
		{"explicit open ignored max_open", tight(), func(r *rig) {
			for i := 1; i <= 3; i++ {
				r.ok(r.manage(zns.OpOpen, i))
			}
			r.refused(r.manage(zns.OpOpen, 4), zns.ErrOpenLimit)
			r.is(4, zns.CondEmpty, 0)
		}},
		{"the active limit could be bypassed after a reopen", tight(), func(r *rig) {
			for i := 1; i <= 4; i++ {
				r.ok(r.write(i, 0, kib, 1))
			}
			for range 3 {
				r.refused(r.write(5, 0, kib, 1), zns.ErrActiveLimit)
				r.refused(r.manage(zns.OpOpen, 5), zns.ErrActiveLimit)
				r.reopen()
				if _, active := r.dev.Counts(); active != 4 {
					r.Errorf("%d active zones after a reopen, want 4", active)
				}
			}
		}},
		{"a closed zone could not be written when active = max", tight(), func(r *rig) {
			for i := 1; i <= 4; i++ {
				r.ok(r.write(i, 0, kib, 1))
			}
			r.ok(r.manage(zns.OpClose, 2))
			r.ok(r.write(2, kib, kib, 2))
			r.is(2, zns.CondImpOpen, 2*kib)
			r.reopen()
			for i := 1; i <= 4; i++ {
				at, err := r.append(i, kib, 3)
				r.ok(err)
				r.is(i, zns.CondImpOpen, at+kib)
			}
		}},
		{"opening a full zone made it open", tight(), func(r *rig) {
			r.ok(r.write(1, 0, 48*kib, 1))
			r.ok(r.manage(zns.OpFinish, 2))
			for range 2 {
				for i := 1; i <= 2; i++ {
					r.refused(r.manage(zns.OpOpen, i), zns.ErrFull)
					r.is(i, zns.CondFull, 48*kib)
				}
				r.reopen()
			}
		}},
		{"check called zonedmeta leaked", tight(), func(r *rig) {
			r.ok(r.write(1, 0, 4*kib, 1))
			r.reopen()
			rep, err := qcow2.Check(r.disk, nil)
			if err != nil || rep.Leaks != 0 || rep.Corruptions != 0 {
				r.Errorf("%+v, %v", rep, err)
			}
		}},
		{"capacity was reported as zone size", tight(), func(r *rig) {
			if z := r.dev.Zone(1); z.Capacity != 48*kib || z.Len != 64*kib {
				r.Errorf("%+v", z)
			}
			if z := r.dev.Zone(0); z.Capacity != 64*kib {
				r.Errorf("conventional: %+v", z)
			}
		}},
		{"full was missed when the capacity is no power of two", tight(), func(r *rig) {
			r.ok(r.write(1, 0, 40*kib, 1))
			r.is(1, zns.CondImpOpen, 40*kib)
			r.refused(r.write(1, 40*kib, 8*kib+512, 1), zns.ErrBoundary)
			r.ok(r.write(1, 40*kib, 8*kib, 1))
			for range 2 {
				r.is(1, zns.CondFull, 48*kib)
				r.refused(r.write(1, 48*kib, 512, 1), zns.ErrFull)
				r.holds(1, 0, 48*kib, 1)
				r.holds(1, 48*kib, 16*kib, 0)
				r.reopen()
			}
		}},
		{"a short last zone never became full and could not be reset alone", tight(), aShortLastZoneIsNoneOfTheDevice},
		{"append to a conventional zone was accepted", tight(), func(r *rig) {
			_, err := r.append(0, kib, 1)
			r.refused(err, zns.ErrConventional)
			r.is(0, zns.CondNotWP, 0)
			r.holds(0, 0, 64*kib, 0)
		}},
		{"zones of 2G broke reset", spec{CreateOptions: qcow2.CreateOptions{Size: 6 * gib, ZoneSize: 2 * gib}}, func(r *rig) { hugeZone(r, 1) }},
		{"zones of 4G broke reset", spec{CreateOptions: qcow2.CreateOptions{Size: 16 * gib, ZoneSize: 4 * gib}}, func(r *rig) { hugeZone(r, 2) }},
		{"write-zeroes and discard bypassed all zone rules", tight(), func(r *rig) {
			r.refused(r.zeroes(1, 512, 512), zns.ErrNotAtWP)
			r.ok(r.zeroes(1, 0, 512))
			r.is(1, zns.CondImpOpen, 512)
			r.refused(r.zeroes(1, 512, 48*kib), zns.ErrBoundary)
			r.ok(r.zeroes(1, 512, 48*kib-512))
			r.is(1, zns.CondFull, 48*kib)
			r.refused(r.zeroes(1, 0, 512), zns.ErrFull)
			// There is no discard: no operation frees a part of a zone.
			r.refused(r.manage(zns.Op(len("not an operation")), 1), zns.ErrUnsupported)
			r.reopen()
			r.is(1, zns.CondFull, 48*kib)
		}},
		{"internal snapshots did not keep write pointers", tight(), func(r *rig) {
			r.refusesImage("nb_snapshots", func(b []byte) { binary.BigEndian.PutUint32(b[60:], 1) })
		}},
		{"resize made the image unopenable", tight(), func(r *rig) {
			// There is no resize. What another tool has resized is refused with
			// the reason, and is as it was.
			r.refusesImage("nr_zones", func(b []byte) { binary.BigEndian.PutUint64(b[24:], 16*64*kib) })
			r.refusesImage("nr_zones", func(b []byte) { binary.BigEndian.PutUint64(b[24:], 7*64*kib) })
		}},
		{"unknown models were accepted", tight(), func(r *rig) {
			for _, model := range []byte{0, 2, 255} {
				r.refusesImage(fmt.Sprintf("zoned is %d", model), func(b []byte) { b[extension(r, b)] = model })
			}
		}},
		{"bad zonedmeta was accepted with memory corruption", tight(), func(r *rig) {
			for _, c := range []struct {
				why   string
				zone  uint64
				entry uint64
			}{
				{"zone 3", 3, 5 * 64 * kib},    // of another zone
				{"zone 3", 3, (1 << 60) - 512}, // nowhere
				{"zone 3", 3, 3*64*kib + 100},  // not a sector
				{"zone 0", 0, 0},               // conventional, without the flag
				{"zone 1", 1, 1<<59 | 64*kib},  // sequential, with it
			} {
				at := int64(r.im.Header().Zoned.MetaOffset) + int64(c.zone)*8
				r.refusesEntry(c.why, at, c.entry)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(newRig(t, c.s)) })
	}
}

// theDataIsSyncedFirst watches the order of what happens to the file: after the
// last write of data and before the pointer there is a sync.
func theDataIsSyncedFirst(r *rig) {
	z := r.im.Header().Zoned
	data, pointer := 0, 0
	synced := false
	r.disk.Fault(func(op crashfile.Op) error {
		switch {
		case op.Kind == crashfile.Sync:
			synced = true
		case op.Kind == crashfile.Write && op.N == 3*kib: // nothing but our data has that length
			data, synced = data+1, false
		case op.Kind == crashfile.WriteDurable && op.Off/512 == int64(z.MetaOffset)/512:
			pointer++
			if !synced {
				return errors.New("the pointer comes before its data")
			}
		}
		return nil
	})
	for i := range uint64(4) {
		_, err := r.append(1, 3*kib, 1)
		r.ok(err)
		if pointer != int(i) {
			r.Errorf("%d pointers after %d flushes", pointer, i)
		}
		r.flush()
	}
	if data != 4 || pointer != 4 {
		r.Errorf("%d writes of data and %d of pointers were seen, want 4", data, pointer)
	}
	r.mend()
}

// aShortLastZoneIsNoneOfTheDevice serves the whole zones of an image that has
// half a zone more: that one cannot become a zone of the device, and the last
// that is one is like any other.
func aShortLastZoneIsNoneOfTheDevice(r *rig) {
	s := tight()
	s.Size += 32 * kib
	f := crashfile.New()
	r.ok(qcow2.Format(f, s.CreateOptions))
	im, err := qcow2.Open(f, qcow2.Options{})
	r.ok(err)
	g := r.g
	if n := im.Header().Zoned.NrZones; n != g.NrZones+1 {
		r.Fatalf("%d zones", n)
	}
	g.NrZones++
	g.Size += 32 * kib
	if _, err := zns.New(g, im); err == nil {
		r.Error("a short last zone was served")
	}
	dev, err := zns.New(r.g, im)
	r.ok(err)
	r.im.Abandon()
	r.disk, r.im, r.dev = f, im, dev
	r.ok(r.write(7, 0, 48*kib, 1))
	r.ok(r.write(6, 0, kib, 1))
	r.is(7, zns.CondFull, 48*kib)
	r.ok(r.manage(zns.OpReset, 7))
	r.is(7, zns.CondEmpty, 0)
	r.is(6, zns.CondImpOpen, kib)
	if _, err := r.do(zns.OpWrite, r.g.Size, kib, make([]byte, kib)); !errors.Is(err, zns.ErrInvalid) {
		r.Errorf("write to the short zone: %v", err)
	}
}

// hugeZone fills a sparse zone up to its last blocks and goes through
// everything there that counts bytes.
func hugeZone(r *rig, zone int) {
	size := r.g.ZoneSize
	r.ok(r.write(zone, 0, 4*kib, 1))
	r.ok(r.zeroes(zone, 4*kib, size-12*kib))
	for range 2 {
		if z := r.dev.Zone(uint32(zone)); !z.Cond.Active() || z.WP != z.Start+size-8*kib {
			r.Fatalf("%+v", z)
		}
		r.holds(zone, 0, 4*kib, 1)
		r.holds(zone, size-8*kib, 8*kib, 0)
		r.reopen()
	}
	at, err := r.append(zone, 4*kib, 2)
	r.ok(err)
	if at != size-8*kib {
		r.Errorf("appended at %#x", at)
	}
	r.refused(r.write(zone, size-4*kib, 8*kib, 3), zns.ErrBoundary)
	r.ok(r.write(zone, size-4*kib, 4*kib, 3))
	for range 2 {
		r.is(zone, zns.CondFull, size)
		r.holds(zone, size-8*kib, 4*kib, 2)
		r.holds(zone, size-4*kib, 4*kib, 3)
		r.refused(r.write(zone, 0, 4*kib, 4), zns.ErrFull)
		r.reopen()
	}
	r.is(zone-1, zns.CondEmpty, 0)
	r.ok(r.manage(zns.OpReset, zone))
	for range 2 {
		r.is(zone, zns.CondEmpty, 0)
		r.holds(zone, size-8*kib, 8*kib, 0)
		r.reopen()
	}
	r.ok(r.write(zone, 0, 4*kib, 5))
	r.ok(r.manage(zns.OpFinish, zone))
	r.reopen()
	r.is(zone, zns.CondFull, size)
	r.holds(zone, 0, 4*kib, 5)
	r.holds(zone, size-8*kib, 8*kib, 0)
}

// extension returns where the payload of the zoned extension begins.
func extension(r *rig, sector []byte) int {
	i := bytes.Index(sector, []byte{0, 0x7a, 0x62, 0x64})
	if i < 0 {
		r.Fatal("there is no zoned extension")
	}
	return i + 8
}

// refusesImage says that an image with this first sector is not opened, and
// why, and that nothing was written to it.
func (r *rig) refusesImage(why string, spoil func(sector []byte)) {
	r.TB.Helper()
	r.refusesFile(why, 0, spoil)
}

func (r *rig) refusesEntry(why string, at int64, entry uint64) {
	r.TB.Helper()
	r.refusesFile(why, at/512*512, func(b []byte) { binary.LittleEndian.PutUint64(b[at%512:], entry) })
}

func (r *rig) refusesFile(why string, off int64, spoil func(sector []byte)) {
	r.TB.Helper()
	f := crashfile.New()
	r.ok(qcow2.Format(f, r.s.CreateOptions))
	b := make([]byte, 512)
	if _, err := f.ReadAt(b, off); err != nil {
		r.Fatal(err)
	}
	spoil(b)
	if _, err := f.WriteAt(b, off); err != nil {
		r.Fatal(err)
	}
	before := f.Ops()
	im, err := qcow2.Open(f, qcow2.Options{})
	if err == nil {
		im.Abandon()
		r.Errorf("an image with a wrong %s was opened", why)
		return
	}
	if !strings.Contains(err.Error(), why) {
		r.Errorf("the refusal does not speak of %s: %v", why, err)
	}
	var writes int
	f.Fault(func(op crashfile.Op) error {
		if op.Kind != crashfile.Read && op.Kind != crashfile.Sync {
			writes++
		}
		return nil
	})
	if im, err := qcow2.Open(f, qcow2.Options{}); err == nil {
		im.Abandon()
	}
	if writes != 0 {
		r.Errorf("%d writes to a refused image (%d operations)", writes, f.Ops()-before)
	}
}

func TestTheSeriesOwnTest(t *testing.T) {
	for _, c := range []struct {
		name string
		f    func(r *rig)
	}{
		{"1 a fresh image is empty and a report ends at the last zone", func(r *rig) {
			for i := range 12 {
				r.is(i, zns.CondEmpty, 0)
			}
			if r.g.NrZones != 12 {
				r.Errorf("%d zones", r.g.NrZones)
			}
		}},
		{"2 open, close, finish and reset", func(r *rig) {
			each := func(op zns.Op, c zns.Cond, wp uint64) {
				for _, i := range []int{0, 1, 11} {
					r.ok(r.manage(op, i))
					r.is(i, c, wp)
					r.is(5, zns.CondEmpty, 0)
				}
			}
			each(zns.OpOpen, zns.CondExpOpen, 0)
			each(zns.OpClose, zns.CondEmpty, 0)
			each(zns.OpFinish, zns.CondFull, 64*mib)
			r.reopen()
			each(zns.OpFinish, zns.CondFull, 64*mib)
			each(zns.OpReset, zns.CondEmpty, 0)
			r.reopen()
			each(zns.OpReset, zns.CondEmpty, 0)
		}},
		{"3 appends, a new start, reset all", func(r *rig) {
			for zone := range 2 {
				for k, n := range []uint64{0x1000, 0x2000, 0x1000, 0x2000} {
					at, err := r.append(zone, n, byte(k+1))
					r.ok(err)
					if want := [...]uint64{0, 8, 0x18, 0x20}[k] * 512; at != want {
						r.Errorf("append %d of zone %d placed at %#x, want %#x", k, zone, at, want)
					}
					r.is(zone, zns.CondImpOpen, at+n)
				}
			}
			r.is(1, zns.CondImpOpen, 0x30*512)
			r.reopen()
			for i := range 12 {
				if i > 1 {
					r.is(i, zns.CondEmpty, 0)
					continue
				}
				r.is(i, zns.CondClosed, 0x30*512)
				r.holds(i, 0, 0x1000, 1)
				r.holds(i, 0x18*512, 0x1000, 3)
				r.holds(i, 0x20*512, 0x2000, 4)
			}
			r.ok(r.manage(zns.OpResetAll, 0))
			for range 2 {
				for i := range 12 {
					r.is(i, zns.CondEmpty, 0)
					r.holds(i, 0, 0x6000, 0)
				}
				r.reopen()
			}
		}},
		{"4 the largest append and the capacity", func(r *rig) {
			_, err := r.append(0, 32*mib+512, 1)
			r.refused(err, zns.ErrAppendSize)
			r.is(0, zns.CondEmpty, 0)
			for _, n := range []uint64{0x1000, 0x1ffd000, 0x1fff000, 0x3000} {
				_, err := r.append(0, n, 1)
				r.ok(err)
			}
			r.is(0, zns.CondFull, 64*mib)
			_, err = r.append(0, 0x1000, 1)
			r.refused(err, zns.ErrFull)
			r.reopen()
			r.is(0, zns.CondFull, 64*mib)
			r.holds(0, 0, 64*mib, 1)
			r.ok(r.manage(zns.OpReset, 0))
			r.is(0, zns.CondEmpty, 0)
		}},
		{"5 closed by a new start and by close", func(r *rig) {
			for _, i := range []int{0, 3, 8} {
				_, err := r.append(i, 0x1000, 1)
				r.ok(err)
				r.is(i, zns.CondImpOpen, 0x1000)
			}
			r.reopen()
			for _, i := range []int{0, 3, 8} {
				r.is(i, zns.CondClosed, 0x1000)
			}
			r.ok(r.manage(zns.OpResetAll, 0))
			for i := range 3 {
				_, err := r.append(i, 0x1000, 1)
				r.ok(err)
			}
			for i := range 3 {
				r.ok(r.manage(zns.OpClose, i))
				r.is(i, zns.CondClosed, 0x1000)
			}
		}},
		{"2026: three writes in flight to one zone", func(r *rig) {
			var q [3]*manual
			for k := range q {
				q[k] = r.begin(zns.OpWrite, 1, uint64(k)*0x1000, 0x1000, byte(k+1))
			}
			for _, k := range []int{2, 0, 1} {
				q[k].end(nil)
			}
			for k := range q {
				q[k].answered(nil)
			}
			r.is(1, zns.CondImpOpen, 0x3000)
			r.reopen()
			for k := range q {
				r.holds(1, uint64(k)*0x1000, 0x1000, byte(k+1))
			}
		}},
		{"2026: three zones at once", func(r *rig) {
			var q [3]*manual
			for k := range q {
				q[k] = r.begin(zns.OpWrite, 4*k, 0, 0x1000, byte(k+1))
			}
			for _, k := range []int{2, 0, 1} {
				q[k].end(nil)
				q[k].answered(nil)
				r.is(4*k, zns.CondImpOpen, 0x1000)
			}
			r.reopen()
			for k := range q {
				r.is(4*k, zns.CondClosed, 0x1000)
				r.holds(4*k, 0, 0x1000, byte(k+1))
			}
		}},
		{"2026: a reset zone reads zeros", func(r *rig) {
			r.ok(r.write(2, 0, 0x30000, 7))
			r.ok(r.manage(zns.OpReset, 2))
			r.holds(2, 0, 0x40000, 0)
			r.ok(r.write(2, 0, 0x1000, 8))
			r.holds(2, 0x1000, 0x40000, 0)
			r.reopen()
			r.holds(2, 0, 0x1000, 8)
			r.holds(2, 0x1000, 0x40000, 0)
			r.ok(r.manage(zns.OpFinish, 2))
			r.holds(2, 0x1000, 0x40000, 0)
		}},
		{"2026: bad entries are refused by zone and value", func(r *rig) {
			for zone, entry := range map[uint64]uint64{2: 4 * 64 * mib, 5: 5*64*mib + 1, 7: 1<<59 | 7*64*mib} {
				at := int64(r.im.Header().Zoned.MetaOffset) + int64(zone)*8
				r.refusesEntry("zone "+string(rune('0'+zone)), at, entry)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.f(newRig(t, founding())) })
	}
}
