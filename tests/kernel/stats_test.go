//go:build kernel

package kernel

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stats is what we look at of qzbd stats --json.
type stats struct {
	PID        int
	Failure    string
	Operations []struct {
		Name     string
		Requests int64
		Bytes    int64
		Errors   int64
		InFlight int64 `json:"in-flight"`
		Latency  map[string]float64
	}
	Zones  map[string]int
	Rounds struct {
		Count, Flushes int64
	}
	Space struct{ Allocated int64 }
}

func (d *device) stats() stats {
	d.im.h.t.Helper()
	var s stats
	if err := json.Unmarshal([]byte(d.im.h.run(qzbd, "stats", "--json", d.node)), &s); err != nil {
		d.im.h.t.Fatal(err)
	}
	return s
}

// of is an operation: its requests, bytes and errors.
func (s stats) of(name string) [3]int64 {
	for _, o := range s.Operations {
		if o.Name == name {
			return [3]int64{o.Requests, o.Bytes, o.Errors}
		}
	}
	return [3]int64{-1, -1, -1}
}

// since is what has come on top of that.
func (s stats) since(old stats, name string) [3]int64 {
	a, b := old.of(name), s.of(name)
	return [3]int64{b[0] - a[0], b[1] - a[1], b[2] - a[2]}
}

func TestStatisticsCountEveryRequest(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", mixed+",zone.max_active_zones=3").attach("--queues", queues())
	k := d.open()
	before := d.stats()
	k.write(1, 0, 4096)
	k.write(1, 2*zlen, 8192)
	k.write(1, 2*zlen+8192, 65536)
	k.refuse(unix.EIO, 3*zlen+4096, 4096)
	k.zones()
	k.read(2*zlen, 4096)
	k.read(0, 512)
	k.must(blkOpenZone, k.zone(3))
	k.must(blkCloseZone, k.zone(3))
	k.must(blkFinishZone, k.zone(4))
	k.must(blkResetZone, k.zone(4))
	k.sync()
	after := d.stats()
	for name, want := range map[string][3]int64{
		"write": {4, 4096 + 8192 + 65536, 1}, "open": {1}, "close": {1}, "finish": {1}, "reset": {1}, "append": {}, "flush": {1},
	} {
		if got := after.since(before, name); got != want {
			t.Errorf("%s: requests, bytes and errors are %v, want %v", name, got, want)
		}
	}
	// Others may look at the device, too.
	if got := after.since(before, "read"); got[0] < 2 || got[1] < 4096+512 || got[2] != 0 {
		t.Errorf("read: %v", got)
	}
	if after.of("report")[0] <= before.of("report")[0] {
		t.Error("no report is counted")
	}
	if after.Rounds.Flushes-before.Rounds.Flushes != 1 || after.Space.Allocated <= before.Space.Allocated {
		t.Errorf("after a flush: %+v %+v, before: %+v %+v", after.Rounds, after.Space, before.Rounds, before.Space)
	}
	for _, o := range after.Operations {
		if l := o.Latency; o.Requests > 0 && (l["p50"] <= 0 || l["max"] < l["p99"] || l["p99"] < l["p50"]) {
			t.Errorf("%s: latencies %v", o.Name, l)
		}
		if o.InFlight != 0 {
			t.Errorf("%s: %d in flight", o.Name, o.InFlight)
		}
	}
}

func TestStatisticsAgreeWithFio(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", small).attach("--queues", queues())
	before := d.stats()
	jobs := d.fioBy(h.run, "--name=alone", "--ioengine=psync", "--zonemode=zbd", "--rw=write", "--bs=16k", "--size=16m")
	after := d.stats()
	if got, want := after.since(before, "write"), [3]int64{jobs[0].Write.Requests, jobs[0].Write.Bytes, 0}; got != want {
		t.Errorf("writes of one process: %v, fio says %v", got, want)
	}
	before = after
	jobs = d.fioBy(h.run, "--name=several", "--ioengine=libaio", "--zonemode=zbd", "--rw=randrw", "--bs=4k",
		"--iodepth=8", "--numjobs=2", "--size=8m", "--offset=32m", "--offset_increment=32m", "--max_open_zones=4", "--fsync=50")
	after = d.stats()
	var read, written, requests int64
	for _, j := range jobs {
		read, written, requests = read+j.Read.Bytes, written+j.Write.Bytes, requests+j.Write.Requests
	}
	// The kernel merges writes, and others may read.
	if got := after.since(before, "write"); got[1] != written || got[0] > requests || got[0] < 1 || got[2] != 0 {
		t.Errorf("writes of several: %v, fio says %d in %d requests", got, written, requests)
	}
	if got := after.since(before, "read"); got[1] < read || got[2] != 0 {
		t.Errorf("reads of several: %v, fio says %d", got, read)
	}
	if got := after.since(before, "flush"); got[0] < 1 || after.Rounds.Flushes-before.Rounds.Flushes != got[0] || after.Rounds.Count == before.Rounds.Count {
		t.Errorf("flushes: %v, rounds %+v after %+v", got, after.Rounds, before.Rounds)
	}
}

func TestStatisticsAndBlkzoneAgreeOnConditions(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", mixed+",zone.max_open_zones=3").attach()
	k := d.open()
	k.write(1, 2*zlen, 4096)
	k.must(blkOpenZone, k.zone(3))
	k.write(1, 4*zlen, 4096)
	k.must(blkCloseZone, k.zone(4))
	k.must(blkFinishZone, k.zone(5))
	want := map[string]int{}
	for _, m := range regexp.MustCompile(`\((\w\w)\) \[type`).FindAllStringSubmatch(h.run("blkzone", "report", d.node), -1) {
		want[m[1]]++
	}
	got := d.stats().Zones
	for letters, name := range map[string]string{
		"nw": "conventional", "em": "empty", "oi": "implicit-open", "oe": "explicit-open", "cl": "closed", "fu": "full", "ro": "read-only", "of": "offline",
	} {
		if got[name] != want[letters] {
			t.Errorf("%d zones are %s, blkzone says %d", got[name], name, want[letters])
		}
	}
	if got["open"] != 2 || got["active"] != 3 || got["max-open"] != 3 || got["max-active"] != 0 {
		t.Errorf("%v", got)
	}
}

// metrics reads metrics at an address, by their names and labels as they are
// written.
func (h *host) metrics(network, address string) (map[string]float64, error) {
	h.t.Helper()
	c := http.Client{Timeout: moment, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
		DisableKeepAlives: true,
	}}
	r, err := c.Get("http://qzbd/metrics")
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %w\n%s", r.Status, err, b)
	}
	all := map[string]float64{}
	for line := range strings.Lines(string(b)) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			v, err := strconv.ParseFloat(strings.TrimSpace(line[i+1:]), 64)
			if err != nil {
				h.t.Errorf("%v: %s", err, line)
			}
			all[line[:i]] = v
		}
	}
	return all, nil
}

// port is one that nobody listens on.
func (h *host) port() string {
	h.t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	defer ln.Close()
	return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
}

// control is the socket of the device's server.
func (d *device) control() string {
	return filepath.Join("/run/qzbd", strings.TrimPrefix(d.node, "/dev/ublkb"), "control")
}

func TestEachDeviceHasItsMetrics(t *testing.T) {
	h := begin(t)
	port, sock := h.port(), "/run/qzbd-test.metrics"
	os.Remove(sock)
	first := h.create("a.qcow2", small).attach("--metrics", port)
	im := h.create("b.qcow2", small)
	says(t, h.refused(qzbd, "attach", "--metrics", ":"+port, im.path), "--metrics :"+port, "in use")
	says(t, h.refused(qzbd, "attach", "--metrics", "nowhere", im.path), "--metrics nowhere", "PORT")
	if l := h.list(); len(l) != 1 {
		t.Errorf("after refusals: %v", l)
	}
	second := im.attach("--metrics", "unix:"+sock)
	written := func(d *device, network, address string) float64 {
		t.Helper()
		m, err := h.metrics(network, address)
		if err != nil {
			t.Fatal(err)
		}
		if m[fmt.Sprintf(`qzbd_zones{condition="empty",device="%s"}`, d.node)] == 0 {
			t.Errorf("%s has other metrics: %v", d.node, m)
		}
		return m[fmt.Sprintf(`qzbd_request_bytes_total{device="%s",op="write"}`, d.node)]
	}
	for i, d := range []*device{first, second} {
		k := d.open()
		k.write(1, 0, 4096<<i)
		k.close()
	}
	if n := written(first, "tcp", "127.0.0.1:"+port); n != 4096 {
		t.Errorf("%v bytes written", n)
	}
	if n := written(second, "unix", sock); n != 8192 {
		t.Errorf("%v bytes written", n)
	}
	if n := written(second, "unix", second.control()); n != 8192 {
		t.Errorf("%v bytes written, says the control socket", n)
	}

	// A server that was killed has left what its successor replaces.
	second.killed()
	second.recovered()
	if n := written(second, "unix", sock); n != 0 {
		t.Errorf("%v bytes written since the recovery", n)
	}
	// An address that is taken keeps nobody from recovering.
	first.killed()
	ln, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	first.recovered()
	k := first.open()
	k.holds(1, 0, 4096)
	k.write(1, 4096, 4096)
	k.close()
	ln.Close()
	h.wait("the metrics can be read again", func() bool {
		_, err := h.metrics("tcp", "127.0.0.1:"+port)
		return err == nil
	})
	if n := written(first, "tcp", "127.0.0.1:"+port); n != 4096 {
		t.Errorf("%v bytes written since the recovery", n)
	}
	first.detach()
	second.detach()
	if _, err := os.Lstat(sock); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket of the metrics is still there: %v", err)
	}
}

// showsFailure checks that the statistics tell of a failed image that flushes
// have met.
func (d *device) showsFailure() {
	h := d.im.h
	h.t.Helper()
	if s := d.stats(); s.Failure == "" || s.of("flush")[2] < 1 || s.of("read")[2] != 0 {
		h.t.Errorf("failure %q, flushes %v, reads %v", s.Failure, s.of("flush"), s.of("read"))
	}
	m, err := h.metrics("unix", d.control())
	if err != nil || m[fmt.Sprintf(`qzbd_image_failed{device="%s"}`, d.node)] != 1 {
		h.t.Errorf("%v: %v", err, m)
	}
}

// watched is a qzbd stats --watch --json that runs.
type watched struct {
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	stderr bytes.Buffer
}

func (d *device) watch() *watched {
	h := d.im.h
	h.t.Helper()
	w := &watched{cmd: exec.Command(qzbd, "stats", "--watch", "--interval", "50ms", "--json", d.node)}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	w.cmd.Stderr = &w.stderr
	if err := w.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { w.cmd.Process.Kill() })
	w.lines = bufio.NewScanner(out)
	return w
}

// until reads lines up to one that is right.
func (w *watched) until(t *testing.T, what string, ok func(stats) bool) {
	t.Helper()
	overdue := time.AfterFunc(moment, func() { w.cmd.Process.Kill() })
	defer overdue.Stop()
	for w.lines.Scan() {
		var s stats
		if err := json.Unmarshal(w.lines.Bytes(), &s); err != nil {
			t.Fatalf("%v: %s", err, w.lines.Text())
		}
		if ok(s) {
			return
		}
	}
	t.Fatalf("no report is %s\n%s", what, w.stderr.Bytes())
}

func TestWatchingGoesOnAfterARecoveryAndEndsWithTheDevice(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", small).attach()
	w := d.watch()
	first := d.server()
	w.until(t, "of the first server", func(s stats) bool { return s.PID == first })
	k := d.open()
	k.write(1, 0, 4096)
	w.until(t, "of an interval with a write", func(s stats) bool { return s.of("write") == [3]int64{1, 4096, 0} })
	w.until(t, "of an interval without one", func(s stats) bool { return s.of("write") == [3]int64{} })
	d.killed()
	d.recovered()
	second := d.server()
	w.until(t, "of the second server", func(s stats) bool { return s.PID == second })
	k.write(1, 4096, 8192)
	w.until(t, "of an interval with a write", func(s stats) bool { return s.of("write") == [3]int64{1, 8192, 0} })
	k.close()
	d.detach()
	for w.lines.Scan() {
	}
	if err := w.cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, w.stderr.Bytes())
	}
	says(t, w.stderr.String(), d.node+" has a new server", "counters begin anew", d.node+" is detached")
}

func TestNobodyOnTheControlSocketDisturbsAServer(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", small).attach()
	control := d.control()
	st, err := os.Lstat(control)
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", st, err)
	}
	for range 40 { // more than it takes
		conn, err := net.Dial("unix", control)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET /stats HTT")
	}
	k := d.open()
	k.write(1, 0, 65536)
	k.sync()
	k.holds(1, 0, 65536)
	h.wait("a client is answered beside them", func() bool { return h.try(qzbd, "stats", d.node).code == 0 })
	says(t, h.refused(qzbd, "stats", "/dev/null"), "not attached")

	// A server that is stopped is not waited for without an end.
	pid := d.server()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	says(t, h.refused(qzbd, "stats", d.node), "has not answered", fmt.Sprintf("kill -CONT %d", pid))
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	k.close()
	d.detach()
	if _, err := os.Lstat(control); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control socket is still there: %v", err)
	}
	says(t, h.refused(qzbd, "stats", d.node), "not attached")
}
