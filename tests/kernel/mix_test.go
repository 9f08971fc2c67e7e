//go:build kernel

package kernel

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// The device of the mix: 4 conventional zones, then 28 sequential ones with
// capacity for mixSpace bytes, of which fio may have 6 open.
const (
	mixImage    = "size=128M,zone.size=4M,zone.capacity=3M,zone.conventional_zones=4,zone.max_open_zones=6,zone.max_active_zones=8"
	mixSpace    = 28 * 3 << 20
	mixSequence = "--offset=16M --size=112M" // the sequential zones
)

// mixRow is something that fio does to the device of the mix. It begins with
// no sequential zone written.
type mixRow struct {
	name     string
	half     bool // half of the space is written before
	verified bool // what is written is read back; needs disjoint jobs and no resets
	args     string
	see      func(*device, []fioJob)
}

var mix = []mixRow{
	{"reads and writes at random", true, true,
		"--rw=randrw --rwmixread=40 --bsrange=4k-128k --blockalign=4k --io_size=16M --iodepth=16 --job_max_open_zones=3" +
			" --size=56M --name=low --offset=16M --name=high --offset=72M", bothWays},
	{"reads above the write pointer", true, false,
		"--rw=randread --read_beyond_wp=1 --bsrange=4k-128k --blockalign=4k --io_size=16M --iodepth=8 --name=above " + mixSequence, readOnly},
	{"zeros above the write pointer", false, false,
		"--rw=randread --read_beyond_wp=1 --bs=64k --io_size=16M --iodepth=8 --verify=pattern --verify_pattern=0x00 --verify_fatal=1 --name=zeros " + mixSequence, readOnly},
	{"conventional and sequential zones", false, true,
		"--rw=randwrite --bsrange=4k-64k --blockalign=4k --io_size=24M --iodepth=16 --max_open_zones=6 --name=all --offset=0 --size=128M", wroteAll},
	{"as many open zones as there may be", false, true,
		"--rw=randwrite --bs=16k --io_size=24M --iodepth=32 --max_open_zones=6 --name=limit " + mixSequence, wroteAll},
	{"resets when half is full", true, false,
		"--rw=randwrite --bs=128k --io_size=96M --iodepth=8 --max_open_zones=6 --zone_reset_threshold=0.5 --zone_reset_frequency=0.5 --name=threshold " + mixSequence, leftSpace},
	{"jobs that share their zones", true, false,
		"--rw=randrw --rwmixread=30 --bsrange=4k-128k --blockalign=4k --io_size=16M --iodepth=8 --numjobs=4 --job_max_open_zones=1 --max_open_zones=6 --name=shared " + mixSequence, bothWays},
}

// attaching lists the ways in which the mix is done.
var attaching = []struct {
	name  string
	flags []string
}{
	{"through the page cache", nil},
	{"direct", []string{"--direct"}},
}

func TestFioMix(t *testing.T) {
	for i, row := range mix {
		for j, way := range ways(t, i, attaching) {
			t.Run(row.name+" "+way.name, func(t *testing.T) {
				h := begin(t)
				h.onExt4()
				d := h.create("a.qcow2", mixImage).attach(append(way.flags, "--queues", queues())...)
				row.do(d, engines[(i/2+j)%len(engines)], rand.Uint32())
			})
		}
	}
}

// do runs the row.
func (r mixRow) do(d *device, engine string, seed uint32) {
	h := d.im.h
	h.t.Helper()
	if r.half {
		d.fioBy(h.tool, "--zonemode=zbd", "--rw=write", "--bs=1M", "--name=half", "--offset=16M", "--size=112M",
			fmt.Sprint("--io_size=", mixSpace/2))
	}
	args := []string{"--zonemode=zbd", "--ioengine=" + engine, fmt.Sprint("--randseed=", seed)}
	if r.verified {
		args = append(args, "--verify=crc32c", "--do_verify=1", "--verify_fatal=1")
	}
	jobs := d.fioBy(h.tool, append(args, strings.Fields(r.args)...)...)
	if r.verified {
		readBack(h.t, jobs)
	}
	r.see(d, jobs)
	h.t.Logf("%s, %s, seed %d: %d bytes read, %d written", r.name, engine, seed, sum(jobs, false), sum(jobs, true))
}

func sum(jobs []fioJob, written bool) (n int64) {
	for _, j := range jobs {
		if written {
			n += j.Write.Bytes
		} else {
			n += j.Read.Bytes
		}
	}
	return n
}

// bothWays asks for some of both: how much of each a job among others gets is
// fio's choice.
func bothWays(d *device, jobs []fioJob) {
	if r, w := sum(jobs, false), sum(jobs, true); r < 1<<20 || w < 1<<20 {
		d.im.h.t.Errorf("%d bytes read and %d written, want some of both", r, w)
	}
}

func readOnly(d *device, jobs []fioJob) {
	if r, w := sum(jobs, false), sum(jobs, true); r < 15<<20 || w != 0 {
		d.im.h.t.Errorf("%d bytes read and %d written, want at least %d and none", r, w, 15<<20)
	}
}

func wroteAll(d *device, jobs []fioJob) {
	if w := sum(jobs, true); w < 20<<20 {
		d.im.h.t.Errorf("%d bytes written, want at least %d", w, 20<<20)
	}
}

// leftSpace says that fio has written more than there is room for, and still
// no more than a bit above the half is.
func leftSpace(d *device, jobs []fioJob) {
	if w := sum(jobs, true); w < 95<<20 {
		d.im.h.t.Errorf("%d bytes written, want at least %d", w, 95<<20)
	}
	if n := countWritten(d); n > mixSpace*3/4 {
		d.im.h.t.Errorf("%d bytes are in the zones, want about half of %d", n, mixSpace)
	}
}
