package main

import (
	"path/filepath"
	"testing"
)

func image(t *testing.T) string { return filepath.Join(t.TempDir(), "image") }

func TestAZoneTakesFewBytes(t *testing.T) {
	few, err := measureAttach(image(t), counts[0])
	if err != nil {
		t.Fatal(err)
	}
	many, err := measureAttach(image(t), counts[len(counts)-1])
	if err != nil {
		t.Fatal(err)
	}
	if n := many.perZone(few); n > perZone {
		t.Errorf("%d zones: %.1f bytes for each beyond %d, want at most %d", many.Zones, n, few.Zones, perZone)
	}
}

// A device of many zones, of which few are used, takes what is used of the
// mapping tables besides.
func TestZonesThatAreNotUsedCostNothingMore(t *testing.T) {
	const (
		used  = 200
		slice = 4<<10 + 1<<10 // a piece of a table in memory, and what a zone in use takes besides
	)
	few, err := measureAttach(image(t), counts[0])
	if err != nil {
		t.Fatal(err)
	}
	path, zones := image(t), counts[len(counts)-1]
	if err := create(path, zones, zoneSize); err != nil {
		t.Fatal(err)
	}
	before := heap()
	d, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}()
	for i := range uint32(used) {
		if err := d.write(i*(zones/used), make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.flush(); err != nil {
		t.Fatal(err)
	}
	got := heap() - before + int64(len(d.journal))
	most := few.memory() + perZone*int64(zones-few.Zones) + used*slice
	t.Logf("%d zones, %d of them used: %d bytes; %d zones: %d bytes", zones, used, got, few.Zones, few.memory())
	if got > most {
		t.Errorf("%d bytes, want at most %d", got, most)
	}
}

func TestAFlushCostsWhatIsDirty(t *testing.T) {
	for _, f := range flushes {
		c, err := measureFlush(image(t), f, 1, withoutData)
		if err != nil {
			t.Fatal(err)
		}
		sectors := int64((f.dirty-1)*f.apart)/64 + 1
		if want := (durable{1, 1, sectors * 512}); c.durable != want {
			t.Errorf("%+v: %+v, want %+v", f, c.durable, want)
		}
	}
}

// What is not data of 1G in an image is next to nothing, but where the zones in
// use are so far apart that each has a mapping table for itself.
func TestAnImageIsItsData(t *testing.T) {
	for _, f := range fillings[:2] {
		c, err := measureFile(image(t), f, withoutData)
		if err != nil {
			t.Fatal(err)
		}
		if share := overhead(c.space+f.data, f.data); share > maxOverhead {
			t.Errorf("%d bytes in zones of %d: %d bytes beside them, %.3f %%, want at most %.1f %%", f.data, f.zoneSize, c.space, 100*share, 100*maxOverhead)
		}
		if full := f.data == int64(f.zones)*int64(f.zoneSize); full && overhead(c.length, f.data) > maxOverhead {
			t.Errorf("a full device of %d bytes is a file of %d", f.data, c.length)
		}
	}
}

// withoutData writes all of an image but the data.
func withoutData(d *device, zone uint32, piece []byte) error { return d.append(zone, nowhere{}, piece) }

// nowhere is a file that keeps nothing.
type nowhere struct{}

func (nowhere) ReadAt(p []byte, _ int64) (int, error)  { return len(p), nil }
func (nowhere) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
