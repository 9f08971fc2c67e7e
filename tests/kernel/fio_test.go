//go:build kernel

package kernel

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// fioJob is what we look at of fio's JSON.
type fioJob struct {
	Name        string `json:"jobname"`
	Error       int    `json:"error"`
	Read, Write struct {
		Bytes    int64 `json:"io_bytes"`
		Requests int64 `json:"total_ios"`
	}
}

// fio writes and reads everything back, comparing checksums. It returns what
// each job did, in the order of the jobs.
func (d *device) fio(args ...string) []fioJob {
	h := d.im.h
	h.t.Helper()
	jobs := d.fioBy(h.run, append(verified, args...)...)
	readBack(h.t, jobs)
	return jobs
}

// verified makes fio read back what it writes and compare checksums.
var verified = []string{"--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randseed=4711"}

func readBack(t *testing.T, jobs []fioJob) {
	t.Helper()
	for _, j := range jobs {
		if j.Read.Bytes < j.Write.Bytes {
			t.Errorf("fio job %s verified %d of %d bytes", j.Name, j.Read.Bytes, j.Write.Bytes)
		}
	}
}

// fioBy runs the machine's own fio (by h.run) or the newer one (by h.tool).
func (d *device) fioBy(run func(string, ...string) string, args ...string) []fioJob {
	d.im.h.t.Helper()
	return d.im.h.fio(run, append([]string{"--filename=" + d.node}, args...)...)
}

// fio is fioBy for jobs that name their devices themselves.
func (h *host) fio(run func(string, ...string) string, args ...string) []fioJob {
	h.t.Helper()
	file := filepath.Join(h.dir, "fio.json") // hundreds of lines: not for a test's log
	run("fio", append([]string{
		"--output-format=json", "--output=" + file, "--direct=1",
	}, args...)...)
	out, err := os.ReadFile(file)
	if err != nil {
		h.t.Fatal(err)
	}
	var result struct{ Jobs []fioJob }
	if err := json.Unmarshal(out, &result); err != nil {
		h.t.Fatalf("fio: %v in %s", err, out)
	}
	if len(result.Jobs) == 0 {
		h.t.Fatalf("fio ran no job: %s", out)
	}
	for _, j := range result.Jobs {
		if j.Error != 0 {
			h.t.Errorf("fio job %s: error %d", j.Name, j.Error)
		}
	}
	return result.Jobs
}

// engines are those of which each sees every kind of load here or in the mix.
var engines = []string{"libaio", "io_uring"}

func TestFioFillsZonesInSequence(t *testing.T) {
	for _, engine := range ways(t, 0, engines) {
		t.Run(engine, func(t *testing.T) {
			h := begin(t)
			d := h.create("a.qcow2", "size=384M,zone.size=32M,zone.capacity=24M,zone.max_open_zones=6,zone.max_active_zones=8").attach()
			jobs := d.fio("--name=seq", "--zonemode=zbd", "--ioengine="+engine, "--iodepth=8", "--rw=write", "--bs=64k", "--size=64M")
			if n := jobs[0].Write.Bytes; n != 48<<20 {
				t.Errorf("%d bytes written, want two zones of 24M", n)
			}
			d.open().are(full, full, empty)
		})
	}
}

// Two jobs share a device with two queues, each within its own zones; the
// number of zones they write at a time is at the device's limit. Without a
// limit for each job, one would now and then take all zones and the other end
// without a single write.
func TestFioWritesManyZonesFromSeveralQueues(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", "size=256M,zone.size=16M,zone.capacity=12M,zone.max_open_zones=6,zone.max_active_zones=6").
		attach("--queues", queues())
	jobs := d.fio("--zonemode=zbd", "--ioengine=io_uring", "--iodepth=16", "--rw=randwrite", "--bsrange=4k-128k", "--blockalign=4k",
		"--max_open_zones=6", "--job_max_open_zones=3", "--size=128M", "--io_size=24M",
		"--name=low", "--offset=0", "--name=high", "--offset=128M")
	if len(jobs) != 2 {
		t.Fatalf("%d jobs", len(jobs))
	}
	for _, j := range jobs {
		if j.Write.Bytes < 24<<20 {
			t.Errorf("job %s wrote %d bytes", j.Name, j.Write.Bytes)
		}
	}
}

// A second pass over a full device resets every zone on its way.
func TestFioFillsTheDeviceAndWrapsWithResets(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=64M,zone.size=8M,zone.capacity=6M,zone.max_open_zones=5,zone.max_active_zones=6")
	d := im.attach("--queues", queues())
	const data = 8 * zcap
	jobs := d.fio("--name=wrap", "--zonemode=zbd", "--ioengine=libaio", "--iodepth=8", "--rw=write", "--bs=64k", "--size=100%", "--loops=2")
	if n := jobs[0].Write.Bytes; n != 2*data {
		t.Errorf("%d bytes written, want every zone twice, %d", n, 2*data)
	}
	for i, z := range d.open().zones() {
		if z.cond != full {
			t.Errorf("zone %d is %v", i, z.cond)
		}
	}
	// Also in any order of blocks and zones.
	jobs = d.fio("--name=again", "--zonemode=zbd", "--ioengine=libaio", "--iodepth=16", "--rw=randwrite", "--bsrange=4k-128k", "--blockalign=4k",
		"--max_open_zones=5", "--size=100%", "--io_size=24M")
	if n := jobs[0].Write.Bytes; n < data*9/20 {
		t.Errorf("%d bytes written, want about %d", n, data/2)
	}
}

// Conventional zones are for fio what they are for all: blocks without rules.
func TestFioOverwritesConventionalZones(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", "size=128M,zone.size=8M,zone.conventional_zones=8").attach("--queues", queues())
	d.fio("--ioengine=io_uring", "--iodepth=16", "--rw=randwrite", "--bs=4k", "--size=32M", "--io_size=8M",
		"--name=low", "--offset=0", "--name=high", "--offset=32M")
	d.open().are(notWP, notWP, notWP, notWP, notWP, notWP, notWP, notWP, empty)
}
