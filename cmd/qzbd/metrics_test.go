package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// fixed is a collector of one snapshot.
type fixed struct {
	collector
	s *snapshot
}

func (f fixed) Collect(out chan<- prometheus.Metric) { f.s.collect(out) }

func TestMetricsAreWellFormed(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(fixed{s: someSnapshot(1000, time.Minute)}, buildInfo())
	problems, err := testutil.GatherAndLint(reg)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if len(families) != len(metrics)+1 {
		t.Errorf("%d of %d metrics are collected", len(families)-1, len(metrics))
	}
}

func TestMetricsSayWhatTheSnapshotSays(t *testing.T) {
	s := someSnapshot(1000, time.Minute)
	s.File.Failure = "the disk is gone"
	reg := prometheus.NewRegistry()
	reg.MustRegister(fixed{s: s})
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	got := rec.Body.String()
	for _, want := range []string{
		`qzbd_requests_total{device="/dev/ublkb7",op="write"} 1000`,
		`qzbd_request_bytes_total{device="/dev/ublkb7",op="write"} 4.096e+06`,
		`qzbd_request_errors_total{device="/dev/ublkb7",errno="ENOSPC",op="write"} 10`,
		`qzbd_requests_in_flight{device="/dev/ublkb7",op="write"} 3`,
		`qzbd_request_duration_seconds_bucket{device="/dev/ublkb7",op="write",le="0.0003"} 0`,
		`qzbd_request_duration_seconds_bucket{device="/dev/ublkb7",op="write",le="0.001"} 1000`,
		`qzbd_request_duration_seconds_bucket{device="/dev/ublkb7",op="write",le="+Inf"} 1000`,
		`qzbd_request_duration_seconds_sum{device="/dev/ublkb7",op="write"} 1`,
		`qzbd_requests_total{device="/dev/ublkb7",op="read"} 0`,
		`qzbd_zones{condition="empty",device="/dev/ublkb7"} 5`,
		`qzbd_open_zones_limit{device="/dev/ublkb7"} 6`,
		`qzbd_flush_rounds_total{device="/dev/ublkb7"} 250`,
		`qzbd_image_allocated_bytes{device="/dev/ublkb7"} 3.145728e+06`,
		`qzbd_image_failed{device="/dev/ublkb7"} 1`,
		`qzbd_device_info{device="/dev/ublkb7",image="/srv/a.qcow2"} 1`,
	} {
		if !slices.Contains(strings.Split(got, "\n"), want) {
			t.Errorf("there is no line %s", want)
		}
	}
}

func TestTheReadmeNamesEveryMetric(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range metrics {
		_, name, _ := strings.Cut(m.desc.String(), `fqName: "`)
		name, _, _ = strings.Cut(name, `"`)
		if !strings.Contains(string(b), "`"+name+"`") {
			t.Errorf("%s is not documented", name)
		}
	}
}

func TestWhereMetricsCanBeRead(t *testing.T) {
	for value, want := range map[string]metricsAddr{
		"":               {},
		"9543":           {"tcp", "127.0.0.1:9543"},
		":9543":          {"tcp", "127.0.0.1:9543"},
		"0.0.0.0:9543":   {"tcp", "0.0.0.0:9543"},
		"[::1]:9543":     {"tcp", "[::1]:9543"},
		"localhost:80":   {"tcp", "localhost:80"},
		"unix:/run/a":    {"unix", "/run/a"},
		"unix:/run/a:80": {"unix", "/run/a:80"},
	} {
		if got, err := parseMetrics(value); err != nil || got != want {
			t.Errorf("%q: %v, %v", value, got, err)
		}
	}
	for _, value := range []string{"0", ":0", ":", "port", "host:", "::1:9543", "65536", "-1", "unix:", "unix:a", "unix:/" + strings.Repeat("a", 100)} {
		if got, err := parseMetrics(value); err == nil {
			t.Errorf("%q: %v", value, got)
		}
	}
}

// hello stands in for the metrics.
var hello = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })

// read gets the metrics at an address.
func (a metricsAddr) read(t *testing.T) (string, error) {
	t.Helper()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, a.network, a.address)
	}}}
	defer c.CloseIdleConnections()
	r, err := c.Get("http://qzbd/metrics")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}

// freePort is one that nobody listens on just now.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

func TestATakenAddressIsAnErrorOnlyForANewDevice(t *testing.T) {
	dir, err := os.MkdirTemp("", "qzbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, value := range []string{freePort(t), "unix:" + filepath.Join(dir, "metrics")} {
		first, err := startMetrics(value, hello, zap.NewNop(), false)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := first.addr.read(t); err != nil || s != "hello" {
			t.Errorf("%s: %q, %v", value, s, err)
		}
		if _, err := startMetrics(value, hello, zap.NewNop(), false); err == nil || !strings.Contains(err.Error(), "--metrics "+value) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s is taken twice: %v", value, err)
		}
		core, logs := observer.New(zap.InfoLevel)
		next, err := startMetrics(value, hello, zap.New(core), true)
		if err != nil {
			t.Fatal(err)
		}
		if logs.Len() != 1 {
			t.Errorf("%s: %v", value, logs.All())
		}
		first.close()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if s, err := next.addr.read(t); err == nil && s == "hello" {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("%s: %v", value, err)
			}
		}
		next.close()
		if _, err := next.addr.read(t); err == nil {
			t.Errorf("%s answers after its end", value)
		}
	}
	// What is no socket is left alone; what a dead server has left is replaced.
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := startMetrics("unix:"+file, hello, zap.NewNop(), false); err == nil {
		t.Error("a file was replaced")
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
	stale, err := listenUnix(filepath.Join(dir, "stale"))
	if err != nil {
		t.Fatal(err)
	}
	stale.Close()
	m, err := startMetrics("unix:"+filepath.Join(dir, "stale"), hello, zap.NewNop(), false)
	if err != nil {
		t.Fatal(err)
	}
	m.close()
}

func TestTheControlSocketHasMetricsToo(t *testing.T) {
	_, c := control(t, func(s *controlServer) { s.Handle("GET /metrics", newMetrics(new(source))) })
	got, err := metricsAddr{"unix", c.path}.read(t)
	if err != nil || !strings.Contains(got, "qzbd_build_info{") || !strings.Contains(got, "process_start_time_seconds") || strings.Contains(got, "qzbd_zones") {
		t.Errorf("%v: %s", err, got)
	}
}
