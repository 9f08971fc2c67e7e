package ublk

import (
	"encoding/json"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// within says that a duration is known as well as a bucket knows it.
func within(got, want time.Duration) bool {
	return math.Abs(float64(got-want)) <= float64(want)/32
}

func TestBucketsFollowEachOther(t *testing.T) {
	at := time.Duration(0)
	for i := range buckets {
		first, width := bucketRange(i)
		if first != at {
			t.Fatalf("bucket %d begins at %d, not %d", i, first, at)
		}
		for _, d := range []time.Duration{first, first + width - 1, middle(i)} {
			if bucketOf(d) != i {
				t.Fatalf("%d is in bucket %d, not %d", d, bucketOf(d), i)
			}
		}
		at += width
	}
	if at != 1<<longest || at < 9*time.Minute {
		t.Errorf("the last bucket ends at %v", at)
	}
	for d, want := range map[time.Duration]int{-1: 0, math.MinInt64: 0, math.MaxInt64: buckets - 1, 1 << longest: buckets - 1} {
		if got := bucketOf(d); got != want {
			t.Errorf("%d is in bucket %d, not %d", d, got, want)
		}
	}
}

func TestQuantilesAreWithinThreePercent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// As many short as long ones.
		durations := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) time.Duration {
			return time.Duration(rapid.Uint64Range(0, 1<<rapid.IntRange(0, longest).Draw(t, "bits")-1).Draw(t, "ns"))
		}), 1, 300).Draw(t, "durations")
		var h Histogram
		var sum time.Duration
		for _, d := range durations {
			h.Add(d)
			sum += d
		}
		slices.Sort(durations)
		for _, q := range []float64{0, 0.001, 0.5, 0.9, 0.99, 0.999, 1} {
			rank := max(int(math.Ceil(q*float64(len(durations)))), 1)
			if got, want := h.Quantile(q), durations[rank-1]; !within(got, want) {
				t.Fatalf("quantile %v is %d, should be %d", q, got, want)
			}
		}
		if h.Count() != uint64(len(durations)) || h.Sum != sum || h.Mean() != sum/time.Duration(len(durations)) {
			t.Fatalf("%d durations of %v together, mean %v", h.Count(), h.Sum, h.Mean())
		}
		limit := rapid.SampledFrom(durations).Draw(t, "limit")
		below := 0 // as sure as it can be said
		atMost := 0
		for _, d := range durations {
			if d < limit-limit/16 {
				below++
			}
			if d <= limit+limit/16 {
				atMost++
			}
		}
		if n := int(h.AtMost(limit)); n < below || n > atMost {
			t.Fatalf("%d durations up to %v, should be %d to %d", n, limit, below, atMost)
		}
	})
}

func TestHistogramsAddUpAndSurviveJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		several := rapid.SliceOf(rapid.Int64Range(0, math.MaxInt64/1000))
		var first, second Histogram
		for _, d := range several.Draw(t, "first") {
			first.Add(time.Duration(d))
		}
		for _, d := range several.Draw(t, "second") {
			second.Add(time.Duration(d))
		}
		both := first
		both.Merge(&second)
		if *both.Since(&first) != second {
			t.Fatal("what came since is not what came")
		}
		b, err := json.Marshal(&both)
		if err != nil {
			t.Fatal(err)
		}
		var read Histogram
		if err := json.Unmarshal(b, &read); err != nil || read != both {
			t.Fatalf("%s was read as something else (%v)", b, err)
		}
	})
	if (&Histogram{}).Quantile(0.5) != 0 || (&Histogram{}).Mean() != 0 {
		t.Error("nothing has a length")
	}
}

func TestCountersSayWhatAHistogramSays(t *testing.T) {
	var d durations
	var want, got Histogram
	for _, n := range []time.Duration{-5, 0, 1, 17, time.Millisecond, time.Hour} {
		d.add(n)
		want.Add(n)
	}
	d.read(&got)
	if got != want {
		t.Errorf("%v instead of %v", got, want)
	}
}
