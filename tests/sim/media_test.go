package sim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/qzbd/qzbd/zns"
)

// plain is a zns.Media in memory, and the file that it speaks of: each zone
// lies where it has its place on the device.
type plain struct {
	g zns.Geometry

	mu     sync.Mutex
	bytes  []byte
	staged []uint64
	synced []uint64
}

func newPlain(g zns.Geometry) *plain {
	p := &plain{g: g, bytes: make([]byte, g.Size)}
	for i := range uint64(g.NrZones) {
		p.staged = append(p.staged, i*g.ZoneSize)
		p.synced = append(p.synced, i*g.ZoneSize)
	}
	return p
}

func (p *plain) Map(dst []zns.Extent, off, n uint64, _ bool) ([]zns.Extent, bool) {
	return append(dst, zns.Extent{Off: int64(off), Len: int64(n)}), true
}

func (p *plain) MapSlow(dst []zns.Extent, off, n uint64, write bool) ([]zns.Extent, error) {
	dst, _ = p.Map(dst, off, n, write)
	return dst, nil
}

func (p *plain) Zero(off, n uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.bytes[off : off+n])
	return nil
}

func (p *plain) Pointer(zone uint32) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.staged[zone]
}

func (p *plain) Stage(zone uint32, wp uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if wp <= p.staged[zone] {
		panic(fmt.Sprintf("zone %d: staged %#x after %#x", zone, wp, p.staged[zone]))
	}
	p.staged[zone] = wp
}

func (p *plain) Round() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	copy(p.synced, p.staged)
	return nil
}

// Reset leaves garbage where the zones were.
func (p *plain) Reset(zones []uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range zones {
		start := uint64(i) * p.g.ZoneSize
		p.staged[i], p.synced[i] = start, start
		for k := range p.g.ZoneSize {
			p.bytes[start+k] = 0xee
		}
	}
	return nil
}

func (p *plain) Finish(zone uint32, wp uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if wp != p.staged[zone] {
		panic(fmt.Sprintf("zone %d: finish from %#x, staged %#x", zone, wp, p.staged[zone]))
	}
	end := uint64(zone)*p.g.ZoneSize + p.g.ZoneCapacity
	clear(p.bytes[wp:end])
	p.staged[zone] = end
	return nil
}

func (p *plain) ReadAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return copy(b, p.bytes[off:]), nil
}

func (p *plain) WriteAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return copy(p.bytes[off:], b), nil
}

// rough is a media and a file, both slow in virtual time and both failing now
// and then.
type rough struct {
	zns.Media
	file zns.ExtentIO
	sync bool // rounds may fail as well

	mu  sync.Mutex
	rng *rand.Rand
	off bool // nothing fails any more
}

func (m *rough) n(n int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rng.IntN(n)
}

func (m *rough) pause() { time.Sleep(time.Duration(1 + m.n(1_000_000))) }

// fails says whether to fail, once in so many times.
func (m *rough) fails(once int) bool { return m.n(once) == 0 && !m.calm() }

func (m *rough) calm() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.off
}

func (m *rough) beCalm() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off = true
}

func (m *rough) Map(dst []zns.Extent, off, n uint64, write bool) ([]zns.Extent, bool) {
	if m.n(3) == 0 {
		return dst, false
	}
	return m.Media.Map(dst, off, n, write)
}

func (m *rough) MapSlow(dst []zns.Extent, off, n uint64, write bool) ([]zns.Extent, error) {
	m.pause()
	if write && m.fails(10) {
		return dst, errSpace
	}
	dst, err := m.Media.MapSlow(dst, off, n, write)
	m.pause()
	return dst, err
}

// Zero may fail when everything is done already.
func (m *rough) Zero(off, n uint64) error {
	m.pause()
	if m.n(2) == 0 && m.fails(5) {
		return errData
	}
	err := m.Media.Zero(off, n)
	m.pause()
	if err == nil && m.fails(10) {
		return errData
	}
	return err
}

func (m *rough) Round() error {
	m.pause()
	if m.sync && m.fails(10) {
		return errSync
	}
	err := m.Media.Round()
	m.pause()
	return err
}

func (m *rough) Reset(zones []uint32) error {
	m.pause()
	if m.fails(6) {
		return errData
	}
	err := m.Media.Reset(zones)
	m.pause()
	return err
}

func (m *rough) Finish(zone uint32, wp uint64) error {
	m.pause()
	if m.fails(4) {
		return errData
	}
	err := m.Media.Finish(zone, wp)
	m.pause()
	return err
}

func (m *rough) ReadAt(b []byte, off int64) (int, error) {
	m.pause()
	n, err := m.file.ReadAt(b, off)
	if err == io.EOF {
		clear(b[n:])
		n, err = len(b), nil
	}
	return n, err
}

// WriteAt may fail when nothing, a part or everything is written.
func (m *rough) WriteAt(b []byte, off int64) (int, error) {
	m.pause()
	if !m.fails(8) {
		n, err := m.file.WriteAt(b, off)
		m.pause()
		return n, err
	}
	n := m.n(len(b)/512+1) * 512
	if _, err := m.file.WriteAt(b[:n], off); err != nil {
		return 0, err
	}
	m.pause()
	return n, errData
}
