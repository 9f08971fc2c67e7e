package zns

import (
	"fmt"
	"slices"
	"sync"
)

// memMedia is a Media in memory with clusters that are allocated, freed and
// reused like those of an image file. It panics when the Device breaks the
// contract. Everything that a test may want to disturb is a hook.
type memMedia struct {
	g       Geometry
	cluster uint64

	pause func(what string)       // at every blocking call, without a lock
	fail  func(what string) error // what blocking calls return instead of working
	slow  func() bool             // Map answers false although it could

	mu     sync.Mutex
	file   []byte
	table  map[uint64]int64 // device cluster -> byte offset in file
	owner  map[int64]uint64 // file offset of a cluster -> device cluster
	free   []int64
	wp     []uint64 // staged, absolute
	synced []uint64
	rounds int
	calls  map[string]int
}

func newMemMedia(g Geometry, cluster uint64) *memMedia {
	m := &memMedia{
		g: g, cluster: cluster,
		table: map[uint64]int64{}, owner: map[int64]uint64{}, calls: map[string]int{},
	}
	for i := range uint64(g.NrZones) {
		m.wp = append(m.wp, i*g.ZoneSize)
	}
	m.synced = slices.Clone(m.wp)
	return m
}

// enter does the disturbance of a blocking call.
func (m *memMedia) enter(what string) error {
	m.mu.Lock()
	m.calls[what]++
	pause, fail := m.pause, m.fail
	m.mu.Unlock()
	if pause != nil {
		pause(what)
	}
	if fail != nil {
		return fail(what)
	}
	return nil
}

func (m *memMedia) Map(dst []Extent, off, n uint64, write bool) ([]Extent, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.slow != nil && m.slow() {
		return dst, false
	}
	return m.mapLocked(dst, off, n, write)
}

func (m *memMedia) mapLocked(dst []Extent, off, n uint64, write bool) ([]Extent, bool) {
	if m.g.ZoneOf(off) != m.g.ZoneOf(off+n-1) {
		panic("Map crosses a zone")
	}
	ext := dst
	for n != 0 {
		in := off % m.cluster
		k := min(n, m.cluster-in)
		e := Extent{Off: Hole, Len: int64(k)}
		host, ok := m.table[off/m.cluster]
		if ok {
			e.Off = host + int64(in)
		} else if write {
			return dst, false
		}
		if last := len(ext) - 1; last >= len(dst) && adjacent(ext[last], e) {
			ext[last].Len += e.Len
		} else {
			ext = append(ext, e)
		}
		off += k
		n -= k
	}
	return ext, true
}

func adjacent(a, b Extent) bool {
	if a.Off == Hole || b.Off == Hole {
		return a.Off == b.Off
	}
	return a.Off+a.Len == b.Off
}

func (m *memMedia) MapSlow(dst []Extent, off, n uint64, write bool) ([]Extent, error) {
	if err := m.enter("map"); err != nil {
		return dst, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if write {
		for c := off / m.cluster; c <= (off+n-1)/m.cluster; c++ {
			if _, ok := m.table[c]; !ok {
				m.allocate(c)
			}
		}
	}
	ext, ok := m.mapLocked(dst, off, n, write)
	if !ok {
		panic("MapSlow left something out")
	}
	return ext, nil
}

func (m *memMedia) allocate(c uint64) {
	var host int64
	if k := len(m.free); k != 0 {
		host, m.free = m.free[k-1], m.free[:k-1]
		clear(m.file[host : host+int64(m.cluster)])
	} else {
		host = int64(len(m.file))
		m.file = append(m.file, make([]byte, m.cluster)...)
	}
	m.table[c], m.owner[host] = host, c
}

func (m *memMedia) Zero(off, n uint64) error {
	if err := m.enter("zero"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.zeroLocked(off, n)
	return nil
}

func (m *memMedia) zeroLocked(off, n uint64) {
	if n == 0 {
		return
	}
	ext, _ := m.mapLocked(nil, off, n, false)
	for _, e := range ext {
		if e.Off != Hole {
			clear(m.file[e.Off : e.Off+e.Len])
		}
	}
}

func (m *memMedia) Pointer(zone uint32) uint64 { return m.wp[zone] }

func (m *memMedia) Stage(zone uint32, wp uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	start := uint64(zone) * m.g.ZoneSize
	if wp <= m.wp[zone] || wp > start+m.g.ZoneCapacity || zone < m.g.Conventional {
		panic(fmt.Sprintf("zone %d: Stage %#x after %#x", zone, wp, m.wp[zone]))
	}
	m.wp[zone] = wp
}

func (m *memMedia) Round() error {
	m.mu.Lock()
	captured := slices.Clone(m.wp)
	m.mu.Unlock()
	if err := m.enter("round"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, wp := range captured {
		m.synced[i] = max(m.synced[i], wp)
	}
	m.rounds++
	return nil
}

func (m *memMedia) Reset(zones []uint32) error {
	if !slices.IsSorted(zones) || len(zones) == 0 {
		panic(fmt.Sprintf("Reset of %v", zones))
	}
	if err := m.enter("reset"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range zones {
		if i < m.g.Conventional {
			panic("Reset of a conventional zone")
		}
		m.wp[i] = uint64(i) * m.g.ZoneSize
		m.synced[i] = m.wp[i]
		m.drop(m.wp[i], m.wp[i]+m.g.ZoneSize)
	}
	return nil
}

// drop frees the clusters wholly in [from, to) and fills them with garbage.
func (m *memMedia) drop(from, to uint64) {
	for c := (from + m.cluster - 1) / m.cluster; c < to/m.cluster; c++ {
		host, ok := m.table[c]
		if !ok {
			continue
		}
		delete(m.table, c)
		delete(m.owner, host)
		for k := range m.cluster {
			m.file[uint64(host)+k] = 0xee
		}
		m.free = append(m.free, host)
	}
}

func (m *memMedia) Finish(zone uint32, wp uint64) error {
	if err := m.enter("finish"); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	start := uint64(zone) * m.g.ZoneSize
	if wp != m.wp[zone] {
		panic(fmt.Sprintf("zone %d: Finish from %#x, staged %#x", zone, wp, m.wp[zone]))
	}
	end := start + m.g.ZoneCapacity
	m.zeroLocked(wp, end-wp)
	m.wp[zone] = end
	return nil
}

// ReadAt and WriteAt are the image file. They check that the cluster under an
// I/O stays where it was, that is, that nothing was reset beneath it.
func (m *memMedia) ReadAt(p []byte, off int64) (int, error) {
	return len(p), m.io("read", off, len(p), func(b []byte) { copy(p, b) })
}

func (m *memMedia) WriteAt(p []byte, off int64) (int, error) {
	return len(p), m.io("write", off, len(p), func(b []byte) { copy(b, p) })
}

func (m *memMedia) io(what string, off int64, n int, move func([]byte)) error {
	before := m.owners(off, n)
	if err := m.enter(what); err != nil {
		return err
	}
	if !slices.Equal(before, m.owners(off, n)) {
		panic(what + " in flight while its clusters were freed")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	move(m.file[off : off+int64(n)])
	return nil
}

func (m *memMedia) owners(off int64, n int) (o []uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	size := int64(m.cluster)
	for h := off / size * size; h < off+int64(n); h += size {
		c, ok := m.owner[h]
		if !ok {
			panic("I/O to a free cluster")
		}
		o = append(o, c)
	}
	return o
}
