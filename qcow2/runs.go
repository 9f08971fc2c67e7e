package qcow2

import (
	"cmp"
	"slices"
)

// run is n consecutive clusters of the file from cluster start.
type run struct{ start, n int64 }

func (r run) end() int64 { return r.start + r.n }

// runSet is a set of clusters, kept as sorted runs that do not touch. It is
// not safe for concurrent use.
type runSet struct {
	runs  []run
	total int64 // clusters
}

// find returns the index of the first run that ends after cluster c.
func (s *runSet) find(c int64) int {
	i, _ := slices.BinarySearchFunc(s.runs, c, func(r run, c int64) int {
		if r.end() <= c {
			return -1
		}
		return 1
	})
	return i
}

// add puts r into the set. It returns false and changes nothing when a cluster
// of r is there already: somebody has freed it twice.
func (s *runSet) add(r run) bool {
	if r.n == 0 {
		return true
	}
	i := s.find(r.start)
	if i < len(s.runs) && s.runs[i].start < r.end() {
		return false
	}
	s.total += r.n
	left := i > 0 && s.runs[i-1].end() == r.start
	right := i < len(s.runs) && s.runs[i].start == r.end()
	switch {
	case left && right:
		s.runs[i-1].n += r.n + s.runs[i].n
		s.runs = slices.Delete(s.runs, i, i+1)
	case left:
		s.runs[i-1].n += r.n
	case right:
		s.runs[i].start, s.runs[i].n = r.start, s.runs[i].n+r.n
	default:
		s.runs = slices.Insert(s.runs, i, r)
	}
	return true
}

// takeAt takes up to n clusters that begin at cluster c.
func (s *runSet) takeAt(c, n int64) run {
	i := s.find(c)
	if i == len(s.runs) || s.runs[i].start > c {
		return run{}
	}
	r := s.runs[i]
	got := run{c, min(n, r.end()-c)}
	head, tail := run{r.start, c - r.start}, run{got.end(), r.end() - got.end()}
	s.total -= got.n
	switch {
	case head.n == 0 && tail.n == 0:
		s.runs = slices.Delete(s.runs, i, i+1)
	case head.n == 0:
		s.runs[i] = tail
	case tail.n == 0:
		s.runs[i] = head
	default:
		s.runs[i] = head
		s.runs = slices.Insert(s.runs, i+1, tail)
	}
	return got
}

// best returns the shortest run of at least n clusters, the first of equals.
func (s *runSet) best(n int64) (r run, ok bool) {
	for _, c := range s.runs {
		if c.n >= n && (!ok || c.n < r.n) {
			r, ok = c, true
			if c.n == n {
				break
			}
		}
	}
	return r, ok
}

// largest returns the longest run, the first of equals.
func (s *runSet) largest() (r run) {
	for _, c := range s.runs {
		if c.n > r.n {
			r = c
		}
	}
	return r
}

// overlaps reports whether a cluster of r is in the set.
func (s *runSet) overlaps(r run) bool {
	i := s.find(r.start)
	return r.n != 0 && i < len(s.runs) && s.runs[i].start < r.end()
}

// appendRun adds cluster c to runs, to the last one where it continues it.
func appendRun(runs []run, r run) []run {
	if k := len(runs) - 1; k >= 0 && runs[k].end() == r.start {
		runs[k].n += r.n
		return runs
	}
	return append(runs, r)
}

// mergeRuns sorts runs and joins neighbours.
func mergeRuns(runs []run) []run {
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.start, b.start) })
	out := runs[:0]
	for _, r := range runs {
		out = appendRun(out, r)
	}
	return out
}

func sumRuns(runs []run) (n int64) {
	for _, r := range runs {
		n += r.n
	}
	return n
}

// bitmap is a set of small integers.
type bitmap []uint64

func newBitmap(n int64) bitmap { return make(bitmap, (n+63)/64) }

func (b bitmap) has(i int64) bool { return b[i>>6]&(1<<(i&63)) != 0 }
func (b bitmap) set(i int64)      { b[i>>6] |= 1 << (i & 63) }
func (b bitmap) unset(i int64)    { b[i>>6] &^= 1 << (i & 63) }
