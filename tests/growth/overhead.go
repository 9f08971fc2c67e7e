package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// filling is an image that is written: so much data in all, the same in each of
// so many zones.
type filling struct {
	zones    uint32
	zoneSize uint64
	data     int64
}

var fillings = []filling{
	{64, 16 * mib, gib},  // full
	{64, 64 * mib, gib},  // a quarter
	{64, 256 * mib, gib}, // a sixteenth
}

// fileCost is how long an image has become, and what it takes on its disk.
type fileCost struct{ length, space int64 }

// overhead is what there is beside n bytes of data, as a share of them.
func overhead(size, n int64) float64 { return float64(size-n) / float64(n) }

// measureFile fills an image, a piece for each zone in turns, and closes it.
func measureFile(path string, f filling, write writer) (c fileCost, err error) {
	if err := create(path, f.zones, f.zoneSize); err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	d, err := open(path)
	if err != nil {
		return c, err
	}
	piece := make([]byte, mib)
	for i := range piece {
		piece[i] = 0xa5
	}
	for range f.data / int64(f.zones) / mib {
		for zone := range f.zones {
			if err := write(d, zone, piece); err != nil {
				return c, errors.Join(err, d.close())
			}
		}
	}
	if err := d.close(); err != nil {
		return c, err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return c, err
	}
	return fileCost{st.Size, st.Blocks * 512}, nil
}

func overheadTable(dir string, _ int) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)
	fmt.Fprintf(w, "\n| data\t| zones\t| of\t| space of the file, bytes\t| overhead\t|\n|---\t|---\t|---\t|---\t|---\t|\n")
	for _, f := range fillings {
		c, err := measureFile(filepath.Join(dir, "image"), f, (*device).write)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "| 1G\t| %d\t| %dM\t| %d\t| %.3f %%\t|\n", f.zones, f.zoneSize/mib, c.space, 100*overhead(c.space, f.data))
	}
	return w.Flush()
}
