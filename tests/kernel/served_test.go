//go:build kernel

package kernel

import (
	"context"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

// served is a device whose server is the test itself, so that it can do to the
// zones and to their data what no user can.
type served struct {
	*device
	image *qcow2.Image
	zones *zns.Device
	block *ublk.Device

	// failEnd, if set, is the outcome of data that was moved well.
	failEnd atomic.Pointer[func(*zns.Request) error]
	// failMedia, if set, is what the image answers instead of working.
	failMedia atomic.Pointer[func(what string) error]
	begun     atomic.Int64 // writes that have reached the server
	stopped   bool
}

// serveHere serves the image, until the end of the test at the latest.
func (im *image) serveHere(queues int) *served {
	h := im.h
	h.t.Helper()
	file, err := os.OpenFile(im.path, os.O_RDWR, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	s := &served{device: &device{im: im, gone: true}}
	s.image, err = qcow2.Open(qcow2.NewOSFile(file), qcow2.Options{SyncInterval: time.Second})
	if err != nil {
		h.t.Fatal(err)
	}
	s.zones, err = zns.New(geometryOf(s.image), failingMedia{s.image, s})
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), moment)
	defer cancel()
	s.block, err = ublk.Start(ctx, ublk.Config{ID: -1, DataFD: int(file.Fd()), Queues: queues}, failingTarget{s.zones, s})
	if err != nil {
		h.t.Fatal(err)
	}
	s.node = s.block.Path()
	h.t.Cleanup(s.stop)
	return s
}

// stop is an orderly detach.
func (s *served) stop() {
	if s.stopped {
		return
	}
	s.stopped = true
	t := s.im.h.t
	if err := s.block.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := s.image.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// failData sets the outcome of data that was moved well; nil lets it be.
func (s *served) failData(f func(*zns.Request) error) {
	if f == nil {
		s.failEnd.Store(nil)
		return
	}
	s.failEnd.Store(&f)
}

// failImage sets what the image answers instead of working.
func (s *served) failImage(f func(what string) error) {
	if f == nil {
		s.failMedia.Store(nil)
		return
	}
	s.failMedia.Store(&f)
}

// failingTarget is a ublk.Target.
type failingTarget struct {
	*zns.Device
	s *served
}

func (f failingTarget) Begin(r *zns.Request) zns.Step {
	if r.Op == zns.OpWrite {
		f.s.begun.Add(1)
	}
	return f.Device.Begin(r)
}

func (f failingTarget) End(r *zns.Request, err error) zns.Step {
	if fail := f.s.failEnd.Load(); fail != nil && err == nil && r.Op != zns.OpRead {
		err = (*fail)(r)
	}
	return f.Device.End(r, err)
}

// failingMedia is a zns.Media.
type failingMedia struct {
	*qcow2.Image
	s *served
}

func (m failingMedia) fails(what string) error {
	if fail := m.s.failMedia.Load(); fail != nil {
		return (*fail)(what)
	}
	return nil
}

func (m failingMedia) Map(dst []zns.Extent, off, n uint64, write bool) ([]zns.Extent, bool) {
	if write && m.s.failMedia.Load() != nil {
		return dst, false
	}
	return m.Image.Map(dst, off, n, write)
}

func (m failingMedia) MapSlow(dst []zns.Extent, off, n uint64, write bool) ([]zns.Extent, error) {
	if write {
		if err := m.fails("map"); err != nil {
			return dst, err
		}
	}
	return m.Image.MapSlow(dst, off, n, write)
}

func (m failingMedia) Zero(off, n uint64) error {
	if err := m.fails("zero"); err != nil {
		return err
	}
	return m.Image.Zero(off, n)
}

func (m failingMedia) Reset(zones []uint32) error {
	if err := m.fails("reset"); err != nil {
		return err
	}
	return m.Image.Reset(zones)
}

func (m failingMedia) Finish(zone uint32, wp uint64) error {
	if err := m.fails("finish"); err != nil {
		return err
	}
	return m.Image.Finish(zone, wp)
}

const (
	condRO  cond = 13
	condOff cond = 15
)

func TestReadOnlyAndOfflineZonesKeepTheirRules(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=64M,zone.size=8M,zone.capacity=6M,zone.max_open_zones=2,zone.max_active_zones=3")
	s := im.serveHere(1)
	k := s.open()
	const ro, off, other = 0, 1, 2
	for i := range int64(3) {
		k.write(1, i*zlen, 65536)
	}
	for i, c := range map[uint32]zns.Cond{ro: zns.CondReadOnly, off: zns.CondOffline} {
		if err := s.zones.SetCond(i, c); err != nil {
			t.Fatal(err)
		}
	}
	k.are(condRO, condOff, impOpen, empty)
	k.holds(1, ro*zlen, 65536)
	k.zeros(ro*zlen+65536, 65536)
	if n, err := k.tryRead(off*zlen, 4096); err == nil {
		t.Errorf("%d bytes of an offline zone were read", n)
	}
	zones := k.zones()
	for _, i := range []int{ro, off} {
		k.refuse(eio, zones[i].start+65536, 4096)
		k.refuse(eio, zones[i].start, 4096)
		if z := k.zone(i); z.capacity != zcap || z.length != zlen {
			t.Errorf("zone %d has length %#x and capacity %#x", i, z.length, z.capacity)
		}
		for name, op := range map[string]uint{"open": blkOpenZone, "close": blkCloseZone, "finish": blkFinishZone, "reset": blkResetZone} {
			if err := k.mgmt(op, zones[i].start, zlen); err == nil {
				t.Errorf("%s of zone %d, which is %v, succeeded", name, i, zones[i].cond)
			}
		}
	}
	k.are(condRO, condOff, impOpen, empty)
	// Neither counts against a limit any more.
	for i := int64(3); i < 5; i++ {
		k.write(1, i*zlen, 4096)
	}
	k.are(condRO, condOff, closed, impOpen, impOpen, empty)
	k.refuse(eoverflow, 5*zlen, 4096)
	// A reset of everything passes them by.
	if err := k.mgmt(blkResetZone, 0, 8*zlen); err != nil {
		t.Errorf("reset of the whole device: %v", err)
	}
	k.are(condRO, condOff, empty, empty, empty, empty)
	k.holds(1, ro*zlen, 65536)
	k.zeros(other*zlen, 65536)
	k.write(2, other*zlen, 4096)
	k.close()
	s.stop()

	// The conditions are not stored, what was written is.
	k = im.attach().open()
	k.are(closed, closed, closed, empty)
	for i := range int64(2) {
		k.isIn(int(i), closed, 65536)
		k.holds(1, i*zlen, 65536)
		k.write(1, i*zlen+65536, 4096)
	}
	k.holds(2, other*zlen, 4096)
}

// The kernel stops all writes to a zone in which one has failed until somebody
// asks how the zone is.
func TestAFailedWriteStopsItsZoneUntilAReport(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	s := im.serveHere(1)
	k := s.open()
	k.write(1, 0, 8192)
	k.write(1, zlen, 4096)
	for round := range 2 {
		s.failData(func(r *zns.Request) error {
			if r.Start < zlen {
				return unixEIO
			}
			return nil
		})
		at := int64(8192 + round*4096)
		k.refuse(eio, at, 4096) // its data is in the file, but not below the pointer
		s.failData(nil)
		before := s.begun.Load()
		k.refuse(eio, at, 4096)
		if n := s.begun.Load() - before; n != 0 {
			t.Errorf("%d writes have reached the server without a report", n)
		}
		k.write(1, zlen+4096+int64(round)*4096, 4096) // the neighbour does not care
		k.zeros(at, 8192)
		z := k.zone(0)
		if z.cond != impOpen || z.written() != at {
			t.Errorf("zone 0 is %v with %#x written, want %v with %#x", z.cond, z.written(), impOpen, at)
		}
		k.write(2, z.wp, 4096)
		k.holds(2, at, 4096)
	}
	// So with a reset or a finish instead of a report.
	s.failData(func(*zns.Request) error { return unixEIO })
	k.refuse(eio, 16384, 65536)
	k.refuse(eio, zlen+12288, 65536)
	k.refuse(eio, 2*zlen, 65536) // nothing was written before
	s.failData(nil)
	k.must(blkResetZone, zone{start: 0, length: zlen})
	k.write(3, 0, 4096)
	k.must(blkFinishZone, zone{start: zlen, length: zlen})
	k.are(impOpen, full, empty)
	k.write(3, 2*zlen, 4096)
	check := func(k *disk) {
		t.Helper()
		k.holds(3, 0, 4096)
		k.zeros(4096, 131072)
		k.holds(1, zlen, 12288)
		k.zeros(zlen+12288, 131072)
		k.holds(3, 2*zlen, 4096)
		k.zeros(2*zlen+4096, 131072)
	}
	check(k)
	k.close()
	s.stop()
	k = im.attach().open()
	k.are(closed, full, closed, empty)
	check(k)
}

func TestWhatTheImageRefusesChangesNothing(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=128M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=1,zone.max_open_zones=2")
	s := im.serveHere(1)
	k := s.open()
	k.write(1, zlen, 8192)
	k.must(blkOpenZone, zone{start: 2 * zlen, length: zlen})
	k.write(1, 3*zlen, 8192)
	k.are(notWP, closed, expOpen, impOpen, empty)
	var asked atomic.Int32
	s.failImage(func(what string) error {
		asked.Add(1)
		if what == "map" {
			return unixENOSPC
		}
		return unixEIO
	})
	k.refuse(unixENOSPC, 0, 4096)
	k.refuse(unixENOSPC, 3*zlen+8192, 4096)
	k.refuse(unixENOSPC, 2*zlen, 4096)
	for i := range int64(4) {
		if err := k.mgmt(blkFinishZone, (i+1)*zlen, zlen); err == nil {
			t.Errorf("zone %d was finished", i+1)
		}
		if i < 3 {
			if err := k.mgmt(blkResetZone, (i+1)*zlen, zlen); err == nil {
				t.Errorf("zone %d was reset", i+1)
			}
		}
	}
	if err := k.mgmt(blkResetZone, 0, 16*zlen); err == nil {
		t.Error("the whole device was reset")
	}
	if asked.Load() < 10 {
		t.Errorf("the image was asked %d times", asked.Load())
	}
	s.failImage(nil)
	// A finish that fails has opened the zone and closes it again; another one
	// may have been closed for it.
	k.are(notWP, closed, expOpen, closed, empty)
	k.isIn(1, closed, 8192)
	k.isIn(2, expOpen, 0)
	k.isIn(3, closed, 8192)
	for _, i := range []int64{1, 3} {
		k.write(1, i*zlen+8192, 4096)
		k.holds(1, i*zlen, 12288)
	}
	k.write(1, 0, 4096)
	k.must(blkFinishZone, zone{start: 2 * zlen, length: zlen})
	k.must(blkResetZone, zone{start: zlen, length: zlen})
	k.are(notWP, empty, full, impOpen, empty)
}
