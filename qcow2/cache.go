package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	// DefaultCacheBytes is the size of the L2 cache. With clusters of 64K it
	// maps 256 GiB at once.
	DefaultCacheBytes = 32 << 20

	// L2 tables are cached in slices of at most this many bytes: with large
	// clusters a whole table per request would be mostly unused.
	maxSliceBytes = 4 << 10

	cacheWays = 8 // slices that share a place in the cache
)

// slice is a piece of an L2 table in memory.
type slice struct {
	idx  int64
	used atomic.Uint32 // since the clock hand was here last
	ent  []uint64      // atomic access only
}

func (s *slice) at(i int64) L2Entry { return L2Entry(atomic.LoadUint64(&s.ent[i])) }

// sliceLoad is a slice being read from the file.
type sliceLoad struct {
	done  chan struct{} // closed when s or err is set
	s     *slice
	err   error
	stale bool // entries have been written since the read began
}

// cache holds slices of L2 tables. Looking one up takes no lock. Entries reach
// the page cache before they appear here, so that eviction loses nothing and
// nobody answers with a mapping that exists only in memory.
type cache struct {
	im    *Image
	sets  [][cacheWays]atomic.Pointer[slice]
	shift uint   // of the hash
	empty *slice // what every slice of a missing L2 table looks like
	reads atomic.Uint64
	bufs  sync.Pool // of *[]byte, as long as a slice, to read one

	mu      sync.Mutex // guards loading, hands and changes of sets; order: 5
	loading map[int64]*sliceLoad
	hands   []uint8
}

func (c *cache) init(im *Image, bytes int64) {
	n := max(bytes/(im.sliceLen*8)/cacheWays, 1)
	k := bits.Len64(uint64(n)) - 1
	c.im = im
	c.sets = make([][cacheWays]atomic.Pointer[slice], 1<<k)
	c.shift = uint(64 - k)
	c.empty = &slice{idx: -1, ent: make([]uint64, im.sliceLen)}
	c.loading = make(map[int64]*sliceLoad)
	c.hands = make([]uint8, 1<<k)
	c.bufs.New = func() any { buf := make([]byte, im.sliceLen*8); return &buf }
}

// set spreads slices evenly even where their numbers go in powers of two, as
// the first slices of zones do.
func (c *cache) set(idx int64) int { return int(uint64(idx) * 0x9e3779b97f4a7c15 >> c.shift) }

// find returns slice idx, or nil when it is not in memory.
func (c *cache) find(idx int64) *slice {
	set := &c.sets[c.set(idx)]
	for i := range set {
		if s := set[i].Load(); s != nil && s.idx == idx {
			if s.used.Load() == 0 {
				s.used.Store(1)
			}
			return s
		}
	}
	return nil
}

// get returns slice idx, reading it when it is not in memory. It blocks.
func (c *cache) get(idx int64) (*slice, error) {
	if s := c.find(idx); s != nil {
		return s, nil
	}
	if c.im.tableOf(idx).Offset() == 0 {
		return c.empty, nil
	}
	c.mu.Lock()
	if s := c.find(idx); s != nil {
		c.mu.Unlock()
		return s, nil
	}
	l := c.loading[idx]
	if l == nil {
		l = &sliceLoad{done: make(chan struct{})}
		c.loading[idx] = l
		c.mu.Unlock()
		c.load(idx, l)
	} else {
		c.mu.Unlock()
		<-l.done
	}
	return l.s, l.err
}

// load reads slice idx until nothing has been written to it meanwhile.
func (c *cache) load(idx int64, l *sliceLoad) {
	for {
		s, err := c.read(idx)
		c.mu.Lock()
		if l.stale && err == nil {
			l.stale = false
			c.mu.Unlock()
			continue
		}
		if err == nil {
			c.install(s)
		}
		delete(c.loading, idx)
		l.s, l.err = s, err
		c.mu.Unlock()
		close(l.done)
		return
	}
}

func (c *cache) read(idx int64) (*slice, error) {
	im := c.im
	p := c.bufs.Get().(*[]byte)
	defer c.bufs.Put(p)
	buf := *p
	c.reads.Add(1)
	at := im.tableOf(idx).Offset() + idx&(im.tableLen/im.sliceLen-1)*im.sliceLen*8
	if err := readPadded(im.f, buf, at); err != nil {
		return nil, fmt.Errorf("read L2 table at %#x: %w", at, err)
	}
	s := &slice{idx: idx, ent: make([]uint64, im.sliceLen)}
	for i := range s.ent {
		e := L2Entry(binary.BigEndian.Uint64(buf[i*8:]))
		if e != 0 {
			if err := im.checkEntry(idx*im.sliceLen+int64(i), e); err != nil {
				return nil, err
			}
		}
		s.ent[i] = uint64(e)
	}
	return s, nil
}

// install makes s visible in place of a slice that was not used lately. c.mu
// is held.
func (c *cache) install(s *slice) {
	k := c.set(s.idx)
	set, hand := &c.sets[k], &c.hands[k]
	for {
		way := &set[*hand%cacheWays]
		*hand++
		if old := way.Load(); old == nil || old.used.Swap(0) == 0 {
			s.used.Store(1)
			way.Store(s)
			return
		}
	}
}

// store takes over the entries of guest clusters g, g+1, … that have just been
// written to the page cache.
func (c *cache) store(g int64, vals []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(vals) > 0 {
		idx, i := g/c.im.sliceLen, g%c.im.sliceLen
		n := min(int64(len(vals)), c.im.sliceLen-i)
		if s := c.find(idx); s != nil {
			for k, v := range vals[:n] {
				atomic.StoreUint64(&s.ent[i+int64(k)], v)
			}
		}
		if l := c.loading[idx]; l != nil {
			l.stale = true
		}
		g, vals = g+n, vals[n:]
	}
}
