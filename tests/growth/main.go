// Command growth measures how the cost of a device grows with its zones, without
// a kernel device: what attaching takes, memory, a report, a flush, and what an
// image has beside its data. It prints one table per question.
//
// What must hold whatever the machine is in the tests of this package; times
// mean little on another machine.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30

	// zoneSize is that of a device as it is attached.
	zoneSize = 256 * mib

	// perZone is how many bytes a zone may take beyond what a device of few takes.
	perZone = 64
	// maxOverhead is how much an image may take beside its data, as a share of
	// that.
	maxOverhead = 0.001
)

// counts are the numbers of zones that are compared: the first one stands for
// what a device costs whatever it has, the last one is the most there can be.
var counts = [...]uint32{16, 1024, 16384}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "growth:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	dir := flag.String("dir", "/dev/shm", "`directory` for 1G of images, on a tmpfs")
	rounds := flag.Int("rounds", 5, "how often what is timed is measured")
	one := flag.Uint("attach", 0, "attach an image of so many `zones` and print what it costs as JSON, as this program asks itself")
	flag.Parse()
	if *rounds < 1 || flag.NArg() > 0 {
		return errors.New("-rounds must be at least 1, and there are no arguments")
	}
	if *one != 0 {
		c, err := measureAttach(filepath.Join(*dir, "image"), uint32(*one))
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(c)
	}
	tmp, err := os.MkdirTemp(*dir, "qzbd-growth-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	for _, table := range []func(dir string, rounds int) error{attachTable, flushTable, overheadTable} {
		if err := table(tmp, *rounds); err != nil {
			return err
		}
	}
	return nil
}

// alone measures in a process of its own, whose memory is that of the one device.
func alone(dir string, zones uint32) (c attachCost, err error) {
	self, err := os.Executable()
	if err != nil {
		return c, err
	}
	cmd := exec.Command(self, "-dir", dir, "-attach", fmt.Sprint(zones))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return c, fmt.Errorf("%d zones: %w", zones, err)
	}
	return c, json.Unmarshal(out, &c)
}
