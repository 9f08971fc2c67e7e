package qcow2

import (
	"errors"
	"strings"
	"testing"
)

// FuzzOpen changes a sound image, opens it for writing and uses it. It is
// refused and left as it is, or whatever is done then does what it should, and
// to nothing else.
func FuzzOpen(f *testing.F) {
	eachBase(func(i byte, _ *baseImage) {
		f.Add(i, []byte{}, []byte{0, 0, 9, 1, 3, 4, 3, 0, 0, 4, 1, 0, 5, 3, 0, 2, 0, 9, 6, 0, 0, 0, 4, 3, 7, 0, 0, 0, 2, 5})
	})
	f.Fuzz(func(t *testing.T, base byte, changes, ops []byte) {
		b := baseOf(base)
		useMutated(t, b.mutate(changes), ops)
	})
}

// useMutated opens an image that may be hostile, and if it is accepted uses it.
func useMutated(t *testing.T, f *sparseFile, ops tape) {
	h, rep := offline(t, f.clone())
	want := lookReadOnly(t, f.clone())
	r := &rig{t, work(f)}

	twin := f.clone()
	var im, im2 *Image
	var err, err2 error
	r.on("Open", f, func() { im, err = Open(f, Options{CacheBytes: 1}) })
	r.on("Open", twin, func() { im2, err2 = Open(twin, Options{CacheBytes: 1}) })
	if (err == nil) != (err2 == nil) || err != nil && err.Error() != err2.Error() {
		t.Fatalf("two opens of the same image: %v, %v", err, err2)
	}
	if err != nil {
		if f.changes != 0 {
			t.Fatalf("refused, but changed: %v", err)
		}
		mayRefuse(t, err, h, rep)
		return
	}
	a, a2 := im.Allocated(), im2.Allocated()
	im2.Abandon()
	if d := f.differs(twin); d != "" || a != a2 {
		t.Fatalf("two opens of the same image: %d and %d bytes allocated; %s", a, a2, d)
	}
	if want == nil {
		// Above a write pointer of an image that was not closed anything may be
		// mapped: it has been dropped.
		if !rep.Dirty {
			t.Fatal("opened, but cannot be read")
		}
		want, err = newWatch(im).look(im)
		must(t, err)
	}
	u := &user{t: t, f: f, im: im, want: want, work: 4 * r.work}
	u.compare("after the open")
	r = &rig{t, u.work}
	for n := 0; len(ops) > 0 && n < 24; n++ {
		r.on("operation", f, func() { u.step(&ops) })
	}
	u.compare("before the close")
	u.reopen(u.im.Close)
	u.compare("after the close")
	must(t, u.im.Close())
	if f.wrong != nil {
		t.Fatal(f.wrong)
	}
	after, err := Check(f, nil)
	must(t, err)
	if after.Dirty || after.Corruptions > rep.Corruptions || !rep.Dirty && after.Leaks > rep.Leaks || rep.Dirty && after.Leaks+after.Corruptions != 0 {
		t.Fatalf("damaged by use:\n%+v\n%+v", rep, after)
	}
}

// lookReadOnly returns what an image contains, nil if it cannot be read.
func lookReadOnly(t *testing.T, f *sparseFile) *watch {
	r := &rig{t, work(f)}
	var im *Image
	var err error
	var seen *watch
	r.on("Open read-only", f, func() { im, err = Open(f, Options{CacheBytes: 1, ReadOnly: true}) })
	if err != nil {
		sentence(t, err)
	} else {
		r.work *= 4
		r.on("reading", f, func() { seen, err = newWatch(im).look(im) })
		if err != nil {
			sentence(t, err)
			seen = nil
		}
		if err := im.Reset([]uint32{0}); !errors.Is(err, ErrReadOnly) {
			t.Fatalf("reset of a read-only image: %v", err)
		}
		must(t, im.Close())
	}
	if f.changes != 0 {
		t.Fatal("a read-only image was changed")
	}
	return seen
}

// user works with an open image and knows what it must contain.
type user struct {
	t       *testing.T
	f       *sparseFile
	im      *Image
	want    *watch
	work    int64
	version byte
}

func (u *user) compare(when string) {
	u.t.Helper()
	seen, err := u.want.look(u.im)
	if err == nil {
		err = u.want.differs(seen)
	}
	if err != nil {
		u.t.Fatalf("%s: %v", when, err)
	}
}

// done sees to an error. Only a lack of room refuses a request in an image that
// was accepted, and nothing makes it fail: its file never does.
func (u *user) done(what string, err error) bool {
	u.t.Helper()
	if f := u.im.Failed(); f != nil {
		u.t.Fatalf("%s: %v", what, f)
	}
	if err != nil && !strings.Contains(err.Error(), "more than the") {
		u.t.Fatalf("%s: %v", what, err)
	}
	return err == nil
}

func (u *user) reopen(end func() error) {
	u.t.Helper()
	must(u.t, end())
	var err error
	if u.im, err = Open(u.f, Options{CacheBytes: 1}); err != nil {
		u.t.Fatalf("cannot be opened again: %v", err)
	}
}

// step does one thing.
func (u *user) step(in *tape) {
	u.t.Helper()
	kind, which, arg := in.byte(), in.byte(), in.byte()
	i := int(which) % len(u.want.zones)
	z := u.want.zones[i]
	im := u.im
	start, end, wp := im.zoneStart(z), im.zoneEnd(z), u.want.wps[i]
	conv := im.conventional(z)
	at := wp
	if conv {
		at = start + uint64(arg)*sectorSize*3%(end-start)
	}
	n := min(uint64(arg%32)+1, (end-at)/sectorSize)
	if kind%16 == 9 && n > 0 { // a lot
		n = min(uint64(arg)<<im.clusterBits/sectorSize+1, (end-at)/sectorSize)
	}
	switch kind % 16 {
	case 0, 1, 8:
		u.version++
		for k := range n {
			dev := at + k*sectorSize
			p := stamp(dev, u.version)
			if !u.done("write", put(im, p, dev)) {
				return
			}
			if u.want.wrote(dev, p); !conv {
				u.want.wps[i] = dev + sectorSize
				im.Stage(z, dev+sectorSize)
			}
		}
	case 2, 9:
		if n == 0 || !u.done("zero", im.Zero(at, n*sectorSize)) {
			return
		}
		u.want.zeroed(at, at+n*sectorSize)
		if !conv {
			u.want.wps[i] = at + n*sectorSize
			im.Stage(z, at+n*sectorSize)
		}
	case 3:
		u.done("round", im.Round())
	case 4:
		if !conv && u.done("reset", im.Reset([]uint32{z})) {
			u.want.wps[i] = start
			u.want.zeroed(start, start+im.zoneSize)
		}
	case 5:
		if !conv && wp < end && u.done("finish", im.Finish(z, wp)) {
			u.want.wps[i] = end
		}
	case 6:
		u.reopen(im.Close)
	case 7:
		must(u.t, im.Round())
		u.reopen(func() error { im.Abandon(); return nil })
	case 10: // mapped ahead, never written
		if n > 0 {
			_, err := im.MapSlow(nil, at, n*sectorSize, true)
			u.done("map", err)
		}
	default:
		u.compare("in use")
	}
}
