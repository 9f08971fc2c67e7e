package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

// someSnapshot is of a server that has counted writes of 4 KiB, each of them a
// millisecond long.
func someSnapshot(writes int, taken time.Duration) *snapshot {
	began := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	s := &snapshot{Device: "/dev/ublkb7", Image: "/srv/a.qcow2", PID: 42, Version: "1", Began: began, Taken: began.Add(taken)}
	s.Queues = (&ublk.Device{}).Stats()
	for i := range s.Queues.Operations {
		if o := &s.Queues.Operations[i]; o.Name == "write" {
			for range writes {
				o.Latency.Add(time.Millisecond)
			}
			o.Requests, o.Bytes, o.InFlight, o.Unmapped = uint64(writes), uint64(writes)<<12, 3, uint64(writes)/10
			o.Errors[1].Requests = uint64(writes) / 100
		}
	}
	s.Zones = zns.Stats{Conds: map[zns.Cond]uint32{zns.CondEmpty: 5, zns.CondFull: 2, zns.CondImpOpen: 1}, Open: 1, Active: 1, MaxOpen: 6}
	s.File = qcow2.Stats{
		Allocated: 3 << 20, TableReads: uint64(writes) / 20,
		Rounds: qcow2.RoundStats{Rounds: uint64(writes) / 4, Flushes: uint64(writes) / 2, Time: time.Duration(writes) * time.Millisecond, Longest: time.Second},
	}
	return s
}

func (r *statsReport) operation(t *testing.T, name string) operationReport {
	t.Helper()
	for _, o := range r.Ops {
		if o.Name == name {
			return o
		}
	}
	t.Fatalf("there is no operation %s", name)
	return operationReport{}
}

func TestAReportIsAboutItsInterval(t *testing.T) {
	for _, c := range []struct {
		old      *snapshot
		requests uint64
		seconds  float64
	}{
		{nil, 1000, 20},
		{someSnapshot(600, 10*time.Second), 400, 10},
	} {
		r := newStatsReport(c.old, someSnapshot(1000, 20*time.Second))
		w := r.operation(t, "write")
		if w.Requests != c.requests || w.Bytes != c.requests<<12 || w.Errors != c.requests/100 || w.InFlight != 3 {
			t.Errorf("%+v", w)
		}
		if r.Interval != c.seconds || w.IOPS != float64(c.requests)/c.seconds || w.Rate != w.IOPS*4096 {
			t.Errorf("in %v seconds: %+v", r.Interval, w)
		}
		if l := w.Latency; l.Mean != 0.001 || l.P50 < 0.00097 || l.Max > 0.00103 || l.P999 != l.P50 {
			t.Errorf("%+v", l)
		}
		if len(w.ByErrno) != 1 || w.ByErrno[0] != (errnoReport{"ENOSPC", c.requests / 100}) {
			t.Errorf("%+v", w.ByErrno)
		}
		if m := r.Mappings; m.Misses != c.requests/10 || m.Hits != c.requests-m.Misses || m.TableReads != c.requests/20 {
			t.Errorf("%+v", m)
		}
		if n := r.Rounds; n.Rounds != c.requests/4 || n.Flushes != c.requests/2 || n.Mean != 0.004 || n.Longest != 1 {
			t.Errorf("%+v", n)
		}
		if r.Zones.Empty != 5 || r.Zones.Full != 2 || r.Zones.MaxOpen != 6 || r.Space.Allocated != 3<<20 {
			t.Errorf("%+v %+v", r.Zones, r.Space)
		}
	}
}

func TestAReportForAHumanShowsWhatHappened(t *testing.T) {
	var b strings.Builder
	now := someSnapshot(1000, 20*time.Second)
	now.File.Failure = "the disk is gone"
	if err := newStatsReport(nil, now).print(&b); err != nil {
		t.Fatal(err)
	}
	out := b.String()
	for _, want := range []string{
		"/dev/ublkb7  20s", "1000  50.0  3.91M     200K", "write: 10 times ENOSPC", "zones: 5 empty, 1 implicit-open, 2 full; 1 of 6 open, 1 active",
		"rounds: 250 for 500 flushes", "mappings: 900 hits, 100 misses, 50 table reads", "space: 3.00M allocated", "failed: the disk is gone",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("it lacks %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "append") {
		t.Errorf("what nobody has asked for is shown:\n%s", out)
	}
}

func TestNumbersForHumansHaveThreeDigits(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 999: "999", 1000: "0.98K", 1 << 20: "1.00M", 12345678: "11.8M", 1 << 40: "1.00T", 200 << 30: "200G"} {
		if got := size(n); got != want {
			t.Errorf("%v bytes: %s, want %s", n, got, want)
		}
	}
	for s, want := range map[float64]string{0: "0s", 0.000000123: "123ns", 0.0012345: "1.23ms", 1.23456: "1.23s", 12.3456: "12.3s", 123.456: "2m3s"} {
		if got := seconds(s).String(); got != want {
			t.Errorf("%v seconds: %s, want %s", s, got, want)
		}
	}
}

// asked serves snapshots one after the other, and then the last one for ever.
func asked(t *testing.T, list ...*snapshot) *controlClient {
	_, c := control(t, func(s *controlServer) {
		s.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
			json.NewEncoder(w).Encode(list[0])
			if len(list) > 1 {
				list = list[1:]
			}
		})
	})
	return c
}

func TestWatchingReportsIntervalsAndBeginsAnewWithAnotherServer(t *testing.T) {
	second := someSnapshot(10, time.Second)
	second.PID = 43
	third := someSnapshot(30, 2*time.Second)
	third.PID = 43
	var out, errs bytes.Buffer
	w := &statsWatch{s: &state{Device: "/dev/ublkb7"}, out: &out, errs: &errs, json: true}
	for _, s := range []*snapshot{someSnapshot(100, time.Second), someSnapshot(150, 2*time.Second), second, third} {
		if err := w.report(s); err != nil {
			t.Fatal(err)
		}
	}
	var got []uint64
	for line := range strings.Lines(out.String()) {
		r := new(statsReport)
		if err := json.Unmarshal([]byte(line), r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		got = append(got, r.operation(t, "write").Requests)
	}
	if len(got) != 2 || got[0] != 50 || got[1] != 20 {
		t.Errorf("intervals with %v writes", got)
	}
	if n := strings.Count(errs.String(), "counters begin anew"); n != 1 {
		t.Errorf("%s", errs.String())
	}
}

func TestASnapshotSurvivesTheControlSocket(t *testing.T) {
	want := someSnapshot(1234, time.Minute)
	c := asked(t, want)
	got := new(snapshot)
	if err := c.call(context.Background(), "GET", "/stats", nil, got); err != nil {
		t.Fatal(err)
	}
	a, _ := json.Marshal(newStatsReport(nil, want))
	b, _ := json.Marshal(newStatsReport(nil, got))
	if !bytes.Equal(a, b) {
		t.Errorf("sent\n%s\ngot\n%s", a, b)
	}
}

func TestThereAreNoStatisticsBeforeTheDevice(t *testing.T) {
	_, c := control(t, func(s *controlServer) { s.HandleFunc("GET /stats", new(source).serveStats) })
	c.refuses(t, t.Context(), "/stats", "try again")
}
