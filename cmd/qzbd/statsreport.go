package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

// statsReport is what stats --json prints: what a server has done in an
// interval, and how its zones and its image are at the end of it.
type statsReport struct {
	Device   string            `json:"device"`
	Image    string            `json:"image"`
	PID      int               `json:"pid"`
	Version  string            `json:"version"`
	Began    time.Time         `json:"began"`
	Time     time.Time         `json:"time"`
	Interval float64           `json:"interval"` // seconds
	Failure  string            `json:"failure,omitempty"`
	Ops      []operationReport `json:"operations"`
	Zones    zonesReport       `json:"zones"`
	Rounds   roundsReport      `json:"rounds"`
	Syncs    syncsReport       `json:"syncs"`
	Mappings mappingsReport    `json:"mappings"`
	Space    spaceReport       `json:"space"`
}

type operationReport struct {
	Name     string        `json:"name"`
	Requests uint64        `json:"requests"`
	Bytes    uint64        `json:"bytes"`
	Errors   uint64        `json:"errors"`
	ByErrno  []errnoReport `json:"errors-by-errno,omitempty"`
	InFlight uint64        `json:"in-flight"`
	IOPS     float64       `json:"requests-per-second"`
	Rate     float64       `json:"bytes-per-second"`
	Latency  latencyReport `json:"latency"`
}

type errnoReport struct {
	Errno    string `json:"errno"`
	Requests uint64 `json:"requests"`
}

// latencyReport is in seconds.
type latencyReport struct {
	Mean float64 `json:"mean"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99.9"`
	Max  float64 `json:"max"`
}

type zonesReport struct {
	Conventional uint32 `json:"conventional"`
	Empty        uint32 `json:"empty"`
	ImplicitOpen uint32 `json:"implicit-open"`
	ExplicitOpen uint32 `json:"explicit-open"`
	Closed       uint32 `json:"closed"`
	Full         uint32 `json:"full"`
	ReadOnly     uint32 `json:"read-only"`
	Offline      uint32 `json:"offline"`
	Open         uint32 `json:"open"`
	Active       uint32 `json:"active"`
	MaxOpen      uint32 `json:"max-open"`
	MaxActive    uint32 `json:"max-active"`
}

type roundsReport struct {
	Rounds   uint64  `json:"count"`
	Flushes  uint64  `json:"flushes"`
	Unasked  uint64  `json:"unasked"`
	Failed   uint64  `json:"failed"`
	Pointers uint64  `json:"write-pointers"`
	Bytes    uint64  `json:"zonedmeta-bytes"`
	Mean     float64 `json:"mean"`    // seconds
	Longest  float64 `json:"longest"` // seconds, since Began
}

type syncsReport struct {
	Syncs  uint64  `json:"count"`
	Failed uint64  `json:"failed"`
	Mean   float64 `json:"mean"` // seconds
}

type mappingsReport struct {
	Hits       uint64 `json:"hits"`
	Misses     uint64 `json:"misses"`
	TableReads uint64 `json:"table-reads"`
}

type spaceReport struct {
	Allocated   int64 `json:"allocated"`
	Quarantined int64 `json:"quarantined"`
}

// newStatsReport reports what has happened from old to now; without old, since
// the server took the device. old is of the same server.
func newStatsReport(old, now *snapshot) *statsReport {
	if old == nil {
		old = &snapshot{Taken: now.Began}
		for range now.Queues.Operations {
			old.Queues.Operations = append(old.Queues.Operations, ublk.OperationStats{Latency: new(ublk.Histogram)})
		}
	}
	r := &statsReport{
		Device: now.Device, Image: now.Image, PID: now.PID, Version: now.Version,
		Began: now.Began.UTC(), Time: now.Taken.UTC(), Interval: now.Taken.Sub(old.Taken).Seconds(),
		Failure: now.File.Failure,
	}
	for i := range now.Queues.Operations {
		o := newOperationReport(&old.Queues.Operations[i], &now.Queues.Operations[i], r.Interval)
		r.Ops = append(r.Ops, o)
		switch o.Name {
		case "read", "write", "append":
			slow := now.Queues.Operations[i].Unmapped - old.Queues.Operations[i].Unmapped
			r.Mappings.Misses += slow
			r.Mappings.Hits += o.Requests - min(o.Requests, slow)
		}
	}
	z := now.Zones
	r.Zones = zonesReport{
		Conventional: z.Conds[zns.CondNotWP], Empty: z.Conds[zns.CondEmpty],
		ImplicitOpen: z.Conds[zns.CondImpOpen], ExplicitOpen: z.Conds[zns.CondExpOpen],
		Closed: z.Conds[zns.CondClosed], Full: z.Conds[zns.CondFull],
		ReadOnly: z.Conds[zns.CondReadOnly], Offline: z.Conds[zns.CondOffline],
		Open: z.Open, Active: z.Active, MaxOpen: z.MaxOpen, MaxActive: z.MaxActive,
	}
	a, b := &old.File.Rounds, &now.File.Rounds
	r.Rounds = roundsReport{
		Rounds: b.Rounds - a.Rounds, Flushes: b.Flushes - a.Flushes, Unasked: b.Unasked - a.Unasked,
		Failed: b.Failed - a.Failed, Pointers: b.Pointers - a.Pointers, Bytes: b.MetaBytes - a.MetaBytes,
		Mean: mean(b.Time-a.Time, b.Rounds-a.Rounds), Longest: b.Longest.Seconds(),
	}
	c, d := &old.File.Syncs, &now.File.Syncs
	r.Syncs = syncsReport{Syncs: d.Syncs - c.Syncs, Failed: d.Failed - c.Failed, Mean: mean(d.Time-c.Time, d.Syncs-c.Syncs)}
	r.Mappings.TableReads = now.File.TableReads - old.File.TableReads
	r.Space = spaceReport{now.File.Allocated, now.File.Quarantined}
	return r
}

func newOperationReport(old, now *ublk.OperationStats, interval float64) operationReport {
	h := now.Latency.Since(old.Latency)
	o := operationReport{
		Name: now.Name, Requests: h.Count(), Bytes: now.Bytes - old.Bytes, InFlight: now.InFlight,
		Latency: latencyReport{
			Mean: h.Mean().Seconds(), P50: h.Quantile(0.5).Seconds(), P90: h.Quantile(0.9).Seconds(),
			P99: h.Quantile(0.99).Seconds(), P999: h.Quantile(0.999).Seconds(), Max: h.Quantile(1).Seconds(),
		},
	}
	for i, e := range now.Errors {
		n := e.Requests
		if i < len(old.Errors) {
			n -= old.Errors[i].Requests
		}
		if n != 0 {
			o.Errors += n
			o.ByErrno = append(o.ByErrno, errnoReport{e.Errno, n})
		}
	}
	if interval > 0 {
		o.IOPS, o.Rate = float64(o.Requests)/interval, float64(o.Bytes)/interval
	}
	return o
}

// mean is in seconds.
func mean(sum time.Duration, n uint64) float64 {
	if n == 0 {
		return 0
	}
	return sum.Seconds() / float64(n)
}

// print writes a block for a human, without what did not happen.
func (r *statsReport) print(w io.Writer) error {
	local := r.Time.Local()
	if _, err := fmt.Fprintf(w, "%s  %s  %v\n", local.Format(time.DateTime), r.Device, seconds(r.Interval)); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	head := "operation\trequests\t/s\tbytes\tbytes/s\terrors\tin flight\tmean\tp50\tp90\tp99\tp99.9\tmax\t\n"
	for _, o := range r.Ops {
		if o.Requests == 0 && o.InFlight == 0 {
			continue
		}
		fmt.Fprint(t, head)
		head = ""
		l := o.Latency
		fmt.Fprintf(t, "%s\t%d\t%.1f\t%s\t%s\t%d\t%d\t%v\t%v\t%v\t%v\t%v\t%v\t\n", o.Name, o.Requests, o.IOPS, size(float64(o.Bytes)), size(o.Rate),
			o.Errors, o.InFlight, seconds(l.Mean), seconds(l.P50), seconds(l.P90), seconds(l.P99), seconds(l.P999), seconds(l.Max))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, o := range r.Ops {
		for _, e := range o.ByErrno {
			fmt.Fprintf(w, "%s: %d times %s\n", o.Name, e.Requests, e.Errno)
		}
	}
	fmt.Fprintf(w, "zones: %s\n", r.Zones)
	if n := r.Rounds; n.Rounds != 0 {
		fmt.Fprintf(w, "rounds: %d for %d flushes, %d unasked, %d failed, mean %v, longest ever %v, %d write pointers, %s of zonedmeta\n",
			n.Rounds, n.Flushes, n.Unasked, n.Failed, seconds(n.Mean), seconds(n.Longest), n.Pointers, size(float64(n.Bytes)))
	}
	if n := r.Syncs; n.Syncs != 0 {
		fmt.Fprintf(w, "syncs: %d, %d failed, mean %v\n", n.Syncs, n.Failed, seconds(n.Mean))
	}
	if n := r.Mappings; n != (mappingsReport{}) {
		fmt.Fprintf(w, "mappings: %d hits, %d misses, %d table reads\n", n.Hits, n.Misses, n.TableReads)
	}
	fmt.Fprintf(w, "space: %s allocated, %s in quarantine\n", size(float64(r.Space.Allocated)), size(float64(r.Space.Quarantined)))
	if r.Failure != "" {
		fmt.Fprintf(w, "failed: %s\n", r.Failure)
	}
	_, err := fmt.Fprintln(w)
	return err
}

func (z zonesReport) String() string {
	var parts []string
	for _, c := range []struct {
		n    uint32
		name string
	}{
		{z.Conventional, "conventional"}, {z.Empty, "empty"}, {z.ImplicitOpen, "implicit-open"}, {z.ExplicitOpen, "explicit-open"},
		{z.Closed, "closed"}, {z.Full, "full"}, {z.ReadOnly, "read-only"}, {z.Offline, "offline"},
	} {
		if c.n != 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.name))
		}
	}
	of := func(n, limit uint32) string {
		if limit == 0 {
			return fmt.Sprint(n)
		}
		return fmt.Sprintf("%d of %d", n, limit)
	}
	return fmt.Sprintf("%s; %s open, %s active", strings.Join(parts, ", "), of(z.Open, z.MaxOpen), of(z.Active, z.MaxActive))
}

// seconds is a duration with three digits, which is what there is to know.
func seconds(s float64) time.Duration {
	d := time.Duration(s * 1e9)
	for unit := time.Duration(10); d >= 100*unit; unit *= 10 {
		if d < 1000*unit {
			return d.Round(unit)
		}
	}
	return d
}

// size writes bytes with three digits and a unit of 1024.
func size(n float64) string {
	unit := ""
	for _, u := range []string{"K", "M", "G", "T", "P"} {
		if n < 1000 {
			break
		}
		n, unit = n/1024, u
	}
	switch {
	case unit == "" || n >= 100:
		return fmt.Sprintf("%.0f%s", n, unit)
	case n >= 10:
		return fmt.Sprintf("%.1f%s", n, unit)
	}
	return fmt.Sprintf("%.2f%s", n, unit)
}
