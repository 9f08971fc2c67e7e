package qcow2

import (
	"fmt"
	"iter"
	"maps"
	"slices"
)

// refMap counts the references to each cluster. It takes memory only for parts
// of the file that are referred to: a byte per cluster.
type refMap struct {
	pages map[int64]*refPage
}

const (
	refPageSize = 1 << 14 // clusters
	// maxRefPages bounds the counts to 224 MiB, and with as much garbage a
	// check's memory to less than 512: 14 TiB of clusters of the usual size.
	maxRefPages = 14 << 10

	maxRefs  = 1<<7 - 1 // counted references; the count stays there
	metadata = 1 << 7   // one of the references is not a data cluster's
)

type refPage [refPageSize]uint8

// add counts a reference. shared is true if metadata shares the cluster with
// anything else.
func (m *refMap) add(cluster int64, meta bool) (shared bool, err error) {
	page := m.pages[cluster/refPageSize]
	if page == nil {
		if len(m.pages) == maxRefPages {
			return false, fmt.Errorf("the image refers to more than %d clusters all over the file: too many to check", maxRefPages*refPageSize)
		}
		if m.pages == nil {
			m.pages = make(map[int64]*refPage)
		}
		page = new(refPage)
		m.pages[cluster/refPageSize] = page
	}
	v := &page[cluster%refPageSize]
	shared = *v&metadata != 0 || meta && *v != 0
	if *v&^metadata < maxRefs {
		*v++
	}
	if meta {
		*v |= metadata
	}
	return shared, nil
}

// count returns how many references a cluster has, maxRefs for that or more.
func (m *refMap) count(cluster int64) uint64 {
	page := m.pages[cluster/refPageSize]
	if page == nil {
		return 0
	}
	return uint64(page[cluster%refPageSize] &^ metadata)
}

// none reports whether no page holds counts of clusters [from, from+n).
func (m *refMap) none(from, n int64) bool {
	for p := from / refPageSize; p*refPageSize < from+n; p++ {
		if m.pages[p] != nil {
			return false
		}
	}
	return true
}

// all yields the clusters that have references, in order.
func (m *refMap) all() iter.Seq[int64] {
	return func(yield func(int64) bool) {
		for _, p := range slices.Sorted(maps.Keys(m.pages)) {
			for i, v := range m.pages[p] {
				if v != 0 && !yield(p*refPageSize+int64(i)) {
					return
				}
			}
		}
	}
}

// end returns the cluster behind the last one that has references.
func (m *refMap) end() (end int64) {
	for cluster := range m.all() {
		end = cluster + 1
	}
	return end
}
