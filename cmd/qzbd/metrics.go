package main

import (
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/qzbd/qzbd/zns"
)

// latencyBuckets are the upper bounds of the buckets of
// qzbd_request_duration_seconds. What the queues count is finer, so that the
// bounds are exact to 3%.
var latencyBuckets = [...]time.Duration{
	10 * time.Microsecond, 30 * time.Microsecond, 100 * time.Microsecond, 300 * time.Microsecond,
	time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond,
	100 * time.Millisecond, 300 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second, 30 * time.Second,
}

// newMetrics returns the handler of GET /metrics.
func newMetrics(s *source) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collector{s}, buildInfo(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// Two at once are enough for everybody who watches.
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
}

func buildInfo() prometheus.Collector {
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "qzbd_build_info", Help: "1; the labels say what serves the device.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()},
	})
	g.Set(1)
	return g
}

// metric is one that a snapshot has, with the labels that come after device.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func newMetric(kind prometheus.ValueType, name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc(name, help, append([]string{"device"}, labels...), nil), kind}
}

const (
	counted = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

var (
	metricDevice   = newMetric(gauge, "qzbd_device_info", "1; the labels say which image the device is made of.", "image")
	metricBegan    = newMetric(gauge, "qzbd_serving_since_seconds", "When this server took the device, in seconds since 1970. The counters began then.")
	metricRequests = newMetric(counted, "qzbd_requests_total", "Requests that were answered, also those with an error.", "op")
	metricBytes    = newMetric(counted, "qzbd_request_bytes_total", "Bytes of the requests that were answered without an error.", "op")
	metricErrors   = newMetric(counted, "qzbd_request_errors_total", "Requests that were answered with an error.", "op", "errno")
	metricInFlight = newMetric(gauge, "qzbd_requests_in_flight", "Requests that are being served.", "op")
	metricUnmapped = newMetric(counted, "qzbd_requests_unmapped_total", "Requests that waited until their place in the image was read or made.", "op")
	metricLatency  = newMetric(prometheus.UntypedValue, "qzbd_request_duration_seconds", "From the arrival of a request at the server to its answer.", "op")

	metricZones     = newMetric(gauge, "qzbd_zones", "Zones by condition.", "condition")
	metricOpen      = newMetric(gauge, "qzbd_open_zones", "Zones that are implicitly or explicitly open.")
	metricActive    = newMetric(gauge, "qzbd_active_zones", "Zones that are open or closed.")
	metricMaxOpen   = newMetric(gauge, "qzbd_open_zones_limit", "The most zones that can be open; 0 is no limit.")
	metricMaxActive = newMetric(gauge, "qzbd_active_zones_limit", "The most zones that can be active; 0 is no limit.")

	metricRounds      = newMetric(counted, "qzbd_flush_rounds_total", "Rounds, which make durable what was written before them.")
	metricFlushes     = newMetric(counted, "qzbd_flushes_total", "Flushes and FUA writes that rounds have served.")
	metricUnasked     = newMetric(counted, "qzbd_flush_rounds_unasked_total", "Rounds that no flush had asked for.")
	metricRoundFailed = newMetric(counted, "qzbd_flush_rounds_failed_total", "Rounds that failed.")
	metricRoundTime   = newMetric(counted, "qzbd_flush_rounds_seconds_total", "How long all rounds took together.")
	metricPointers    = newMetric(counted, "qzbd_flush_write_pointers_total", "Write pointers that rounds have written.")
	metricMetaBytes   = newMetric(counted, "qzbd_zonedmeta_written_bytes_total", "Bytes written for write pointers, by rounds and by resets.")
	metricSyncs       = newMetric(counted, "qzbd_image_syncs_total", "Calls of fdatasync for the image.")
	metricSyncFailed  = newMetric(counted, "qzbd_image_syncs_failed_total", "Calls of fdatasync that failed.")
	metricSyncTime    = newMetric(counted, "qzbd_image_syncs_seconds_total", "How long all calls of fdatasync took together.")
	metricTableReads  = newMetric(counted, "qzbd_image_table_reads_total", "Pieces of mapping tables that were not in memory and were read.")
	metricAllocated   = newMetric(gauge, "qzbd_image_allocated_bytes", "Bytes in use in the image.")
	metricQuarantined = newMetric(gauge, "qzbd_image_quarantined_bytes", "Bytes that resets have given up and that are not yet free.")
	metricFailed      = newMetric(gauge, "qzbd_image_failed", "1 if the image takes no more writes.")

	metrics = []metric{
		metricDevice, metricBegan, metricRequests, metricBytes, metricErrors, metricInFlight, metricUnmapped, metricLatency,
		metricZones, metricOpen, metricActive, metricMaxOpen, metricMaxActive,
		metricRounds, metricFlushes, metricUnasked, metricRoundFailed, metricRoundTime, metricPointers, metricMetaBytes,
		metricSyncs, metricSyncFailed, metricSyncTime, metricTableReads, metricAllocated, metricQuarantined, metricFailed,
	}
)

// collector turns snapshots into metrics. It keeps no numbers of its own.
type collector struct {
	*source
}

// Describe names all metrics.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range metrics {
		out <- m.desc
	}
}

// Collect takes a snapshot. Before there is a device there are no metrics.
func (c collector) Collect(out chan<- prometheus.Metric) {
	if s := c.snapshot(); s != nil {
		s.collect(out)
	}
}

func (s *snapshot) collect(out chan<- prometheus.Metric) {
	put := func(m metric, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, v, append([]string{s.Device}, labels...)...)
	}
	put(metricDevice, 1, s.Image)
	put(metricBegan, float64(s.Began.UnixNano())/1e9)
	for _, o := range s.Queues.Operations {
		put(metricRequests, float64(o.Requests), o.Name)
		put(metricBytes, float64(o.Bytes), o.Name)
		put(metricInFlight, float64(o.InFlight), o.Name)
		put(metricUnmapped, float64(o.Unmapped), o.Name)
		for _, e := range o.Errors {
			put(metricErrors, float64(e.Requests), o.Name, e.Errno)
		}
		folded := make(map[float64]uint64, len(latencyBuckets))
		for _, bound := range latencyBuckets {
			folded[bound.Seconds()] = o.Latency.AtMost(bound)
		}
		out <- prometheus.MustNewConstHistogram(metricLatency.desc, o.Requests, o.Latency.Sum.Seconds(), folded, s.Device, o.Name)
	}
	for _, cond := range zns.Conds {
		put(metricZones, float64(s.Zones.Conds[cond]), cond.String())
	}
	put(metricOpen, float64(s.Zones.Open))
	put(metricActive, float64(s.Zones.Active))
	put(metricMaxOpen, float64(s.Zones.MaxOpen))
	put(metricMaxActive, float64(s.Zones.MaxActive))

	r := &s.File.Rounds
	put(metricRounds, float64(r.Rounds))
	put(metricFlushes, float64(r.Flushes))
	put(metricUnasked, float64(r.Unasked))
	put(metricRoundFailed, float64(r.Failed))
	put(metricRoundTime, r.Time.Seconds())
	put(metricPointers, float64(r.Pointers))
	put(metricMetaBytes, float64(r.MetaBytes))
	put(metricSyncs, float64(s.File.Syncs.Syncs))
	put(metricSyncFailed, float64(s.File.Syncs.Failed))
	put(metricSyncTime, s.File.Syncs.Time.Seconds())
	put(metricTableReads, float64(s.File.TableReads))
	put(metricAllocated, float64(s.File.Allocated))
	put(metricQuarantined, float64(s.File.Quarantined))
	failed := 0.0
	if s.File.Failure != "" {
		failed = 1
	}
	put(metricFailed, failed)
}
