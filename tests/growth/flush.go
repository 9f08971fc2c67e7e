package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// dirtyZones is a flush: so many zones of a device have been written since the
// last one, one in every apart.
type dirtyZones struct{ zones, dirty, apart uint32 }

var flushes = []dirtyZones{
	{1024, 1, 1}, {16384, 1, 1},
	{1024, 1000, 1}, {16384, 1000, 1},
	{16384, 1000, 16},
}

// flushCost is what one flush costs.
type flushCost struct {
	durable
	cpu time.Duration // the least, user and system
}

// measureFlush flushes so often. Zones are small: what is mapped for them is not
// what is measured.
func measureFlush(path string, f dirtyZones, times int, write writer) (c flushCost, err error) {
	if err := create(path, f.zones, mib); err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	d, err := open(path)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	sector := make([]byte, 512)
	for i := range times + 1 { // the first one finds the tables to be made
		for zone := range f.dirty {
			if err := write(d, zone*f.apart, sector); err != nil {
				return c, err
			}
		}
		before, begun := d.file.durable, cpu()
		if err := d.flush(); err != nil {
			return c, err
		}
		took := cpu() - begun
		switch {
		case i == 0:
			continue
		case i == 1 || took < c.cpu:
			c.cpu = took
		}
		c.durable = durable{d.file.syncs - before.syncs, d.file.writes - before.writes, d.file.bytes - before.bytes}
	}
	return c, nil
}

// cpu returns the CPU time of this process.
func cpu() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err) // it has no errors but of its arguments
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func flushTable(dir string, rounds int) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "\n| dirty zones\t| of\t| one in\t| syncs\t| durable writes\t| bytes\t| CPU, µs\t|\n|---\t|---\t|---\t|---\t|---\t|---\t|---\t|\n")
	for _, f := range flushes {
		c, err := measureFlush(filepath.Join(dir, "image"), f, 20*rounds, (*device).write)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "| %d\t| %d\t| %d\t| %d\t| %d\t| %d\t| %.0f\t|\n", f.dirty, f.zones, f.apart, c.syncs, c.writes, c.bytes, c.cpu.Seconds()*1e6)
	}
	return w.Flush()
}
