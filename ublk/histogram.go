package ublk

import (
	"encoding/json"
	"fmt"
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// A histogram's buckets are as wide as a sixteenth of what they begin with: what
// they hold is known to 1/32, about 3%, from a nanosecond to nine minutes. Longer
// durations are in the last bucket.
const (
	subBits    = 4
	subBuckets = 1 << subBits // per power of two
	longest    = 39           // the power of two nanoseconds where the last bucket ends
	buckets    = (longest - subBits + 1) * subBuckets
)

// bucketOf returns the bucket that holds d.
func bucketOf(d time.Duration) int {
	n := uint64(max(d, 0))
	if n < subBuckets {
		return int(n)
	}
	e := bits.Len64(n) - 1
	return min((e-subBits+1)*subBuckets+int(n>>(e-subBits))&(subBuckets-1), buckets-1)
}

// bucketRange returns the first duration in a bucket and how many there are.
func bucketRange(i int) (first, width time.Duration) {
	if i < subBuckets {
		return time.Duration(i), 1
	}
	shift := i/subBuckets - 1
	return time.Duration(subBuckets+i%subBuckets) << shift, 1 << shift
}

// middle is what a bucket's durations count as.
func middle(i int) time.Duration {
	first, width := bucketRange(i)
	return first + (width-1)/2
}

// Histogram says how many durations of which length there were. Its zero value
// is empty.
type Histogram struct {
	counts [buckets]uint64
	// Sum is all durations together.
	Sum time.Duration
}

// Add counts one more.
func (h *Histogram) Add(d time.Duration) {
	h.counts[bucketOf(d)]++
	h.Sum += max(d, 0)
}

// Merge adds what another one has counted.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.counts {
		h.counts[i] += n
	}
	h.Sum += o.Sum
}

// Since returns what h has counted since it was old.
func (h *Histogram) Since(old *Histogram) *Histogram {
	d := &Histogram{Sum: h.Sum - old.Sum}
	for i, n := range h.counts {
		d.counts[i] = n - old.counts[i]
	}
	return d
}

// Count returns how many durations there are.
func (h *Histogram) Count() (n uint64) {
	for _, c := range h.counts {
		n += c
	}
	return n
}

// AtMost returns how many durations are not longer than d, to the width of a
// bucket.
func (h *Histogram) AtMost(d time.Duration) (n uint64) {
	for i, c := range h.counts {
		if middle(i) > d {
			break
		}
		n += c
	}
	return n
}

// Mean returns the average, 0 of nothing.
func (h *Histogram) Mean() time.Duration {
	if n := h.Count(); n != 0 {
		return h.Sum / time.Duration(n)
	}
	return 0
}

// Quantile returns the duration that the share q of all do not exceed, 0 of
// nothing: 0.5 is the median, 1 the longest.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(q * float64(h.Count())))
	var n uint64
	for i, c := range h.counts {
		if n += c; c != 0 && n >= rank {
			return middle(i)
		}
	}
	return 0
}

// histogramJSON does not depend on which buckets there are.
type histogramJSON struct {
	Sum    int64       `json:"sum"`    // ns
	Counts [][2]uint64 `json:"counts"` // first duration of a bucket in ns, how many
}

// MarshalJSON writes only what is not empty.
func (h *Histogram) MarshalJSON() ([]byte, error) {
	j := histogramJSON{Sum: int64(h.Sum), Counts: [][2]uint64{}}
	for i, c := range h.counts {
		if c != 0 {
			first, _ := bucketRange(i)
			j.Counts = append(j.Counts, [2]uint64{uint64(first), c})
		}
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON has written.
func (h *Histogram) UnmarshalJSON(b []byte) error {
	var j histogramJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return fmt.Errorf("histogram: %w", err)
	}
	*h = Histogram{Sum: time.Duration(j.Sum)}
	for _, c := range j.Counts {
		h.counts[bucketOf(time.Duration(min(c[0], math.MaxInt64)))] += c[1]
	}
	return nil
}

// counter is written by one goroutine and read by any: a load and a store,
// which no other CPU contends for.
type counter struct{ v atomic.Uint64 }

func (c *counter) add(n uint64) { c.v.Store(c.v.Load() + n) }
func (c *counter) load() uint64 { return c.v.Load() }

// durations is a Histogram that one goroutine writes and any may read.
type durations struct {
	counts [buckets]counter
	sum    counter
}

func (d *durations) add(t time.Duration) {
	d.counts[bucketOf(t)].add(1)
	d.sum.add(uint64(max(t, 0)))
}

// read adds what has been counted to h.
func (d *durations) read(h *Histogram) {
	for i := range d.counts {
		h.counts[i] += d.counts[i].load()
	}
	h.Sum += time.Duration(d.sum.load())
}
