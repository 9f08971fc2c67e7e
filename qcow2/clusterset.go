package qcow2

import (
	"errors"
	"maps"
	"math/bits"
	"slices"
)

// clusterSet is a set of clusters that takes memory only for the parts of the
// file that have some.
type clusterSet struct {
	pages map[int64]*clusterPage
}

const (
	clusterPageBits = 12
	// maxClusterPages bounds the set to 256 MiB of memory: with clusters of the
	// usual size 128 TiB of file.
	maxClusterPages = 1 << 19
)

type clusterPage [1 << clusterPageBits / 64]uint64

var errTooSpread = errors.New("the image refers to too many places all over the file")

func (s *clusterSet) has(c int64) bool {
	p := s.pages[c>>clusterPageBits]
	return p != nil && p[c>>6&(1<<(clusterPageBits-6)-1)]&(1<<(c&63)) != 0
}

func (s *clusterSet) set(c int64) error {
	p := s.pages[c>>clusterPageBits]
	if p == nil {
		if len(s.pages) == maxClusterPages {
			return errTooSpread
		}
		if s.pages == nil {
			s.pages = make(map[int64]*clusterPage)
		}
		p = new(clusterPage)
		s.pages[c>>clusterPageBits] = p
	}
	p[c>>6&(1<<(clusterPageBits-6)-1)] |= 1 << (c & 63)
	return nil
}

func (s *clusterSet) unset(c int64) {
	if p := s.pages[c>>clusterPageBits]; p != nil {
		p[c>>6&(1<<(clusterPageBits-6)-1)] &^= 1 << (c & 63)
	}
}

// runs calls fn with the runs of clusters in the set, in order; runs do not
// reach across multiples of 64.
func (s *clusterSet) runs(fn func(run)) {
	for _, k := range slices.Sorted(maps.Keys(s.pages)) {
		for i, w := range s.pages[k] {
			for base := k<<clusterPageBits + int64(i)*64; w != 0; {
				skip := bits.TrailingZeros64(w)
				n := bits.TrailingZeros64(^(w >> skip))
				fn(run{base + int64(skip), int64(n)})
				if skip+n == 64 {
					break
				}
				w, base = w>>(skip+n), base+int64(skip+n)
			}
		}
	}
}

// gaps returns the runs of clusters below end that are not in the set, the
// first maxFreeRuns or so.
func (s *clusterSet) gaps(end int64) (free []run) {
	at := int64(0)
	s.runs(func(r run) {
		if n := min(r.start, end) - at; n > 0 && len(free) < maxFreeRuns {
			free = append(free, run{at, n})
		}
		at = max(at, r.end())
	})
	if at < end {
		free = append(free, run{at, end - at})
	}
	return free
}

// end returns the cluster behind the last one in the set.
func (s *clusterSet) end() (end int64) {
	s.runs(func(r run) { end = r.end() })
	return end
}
