package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// attachCost is what a device costs that nobody has used yet.
type attachCost struct {
	Zones   uint32
	Attach  time.Duration // from an image file to a device
	Report  time.Duration // of all zones
	Heap    int64         // bytes that the device has of it
	Journal int64         // bytes
	RSS     int64         // bytes of the process
}

// memory is what there is of a device.
func (c attachCost) memory() int64 { return c.Heap + c.Journal }

// perZone is what a zone takes beyond what a device of few takes.
func (c attachCost) perZone(few attachCost) float64 {
	return float64(c.memory()-few.memory()) / float64(c.Zones-few.Zones)
}

// measureAttach attaches a new image at path, twice: what the program itself does
// for the first time shall take no memory of the device's.
func measureAttach(path string, zones uint32) (c attachCost, err error) {
	if err := create(path, zones, zoneSize); err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	begun := time.Now()
	d, err := open(path)
	c.Zones, c.Attach = zones, time.Since(begun)
	if err == nil {
		err = d.close()
	}
	if err != nil {
		return c, err
	}
	before := heap()
	if d, err = open(path); err != nil {
		return c, err
	}
	c.Heap, c.Journal = heap()-before, int64(len(d.journal))
	debug.FreeOSMemory()
	if c.RSS, err = rss(); err != nil {
		return c, errors.Join(err, d.close())
	}
	if c.Report, err = d.report(); err != nil {
		return c, errors.Join(err, d.close())
	}
	return c, d.close()
}

// heap returns how many bytes of the heap are in use.
func heap() int64 {
	runtime.GC()
	runtime.GC() // what the first one has ended is freed
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// rss returns the memory of this process, in bytes.
func rss() (int64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, line, _ := strings.Cut(string(status), "VmRSS:")
	line, _, _ = strings.Cut(line, "kB")
	kb, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	return kb << 10, err
}

// report times how the device answers for all zones, the mean of some times.
func (d *device) report() (time.Duration, error) {
	const times = 20
	n, begun := d.zones.Geometry().NrZones, time.Now()
	for range times {
		for i := range n {
			if z := d.zones.Zone(i); z.Len != zoneSize {
				return 0, fmt.Errorf("zone %d is reported as %+v", i, z)
			}
		}
	}
	return time.Since(begun) / times, nil
}

// attachTable prints the least of so many attaches: what else the machine or the
// Go runtime does only adds to it.
func attachTable(dir string, rounds int) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "| zones of 256M\t| attach, ms\t| report, µs\t| heap, KiB\t| journal, KiB\t| bytes per further zone\t| RSS of the process, MiB\t|\n|---\t|---\t|---\t|---\t|---\t|---\t|---\t|\n")
	var few attachCost
	for i, zones := range counts {
		c, err := alone(dir, zones)
		for range rounds - 1 {
			if err != nil {
				return err
			}
			var other attachCost
			other, err = alone(dir, zones)
			c.Attach, c.Report = min(c.Attach, other.Attach), min(c.Report, other.Report)
			c.Heap, c.RSS = min(c.Heap, other.Heap), min(c.RSS, other.RSS)
		}
		if err != nil {
			return err
		}
		further := "–"
		if i == 0 {
			few = c
		} else {
			further = fmt.Sprintf("%.1f", c.perZone(few))
		}
		fmt.Fprintf(w, "| %d\t| %.1f\t| %.1f\t| %d\t| %d\t| %s\t| %.1f\t|\n", zones, c.Attach.Seconds()*1e3, c.Report.Seconds()*1e6,
			c.Heap/kib, c.Journal/kib, further, float64(c.RSS)/mib)
	}
	return w.Flush()
}
