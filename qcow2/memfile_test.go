package qcow2

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
)

var errCut = errors.New("the power is off")

// memFile is a File with a page cache over a disk, in memory. A cut leaves per
// sector of 512 bytes what was synced last or any version since.
type memFile struct {
	mu     sync.Mutex
	cache  []byte
	base   map[int64][]byte   // sectors with unsynced versions: the durable one
	newer  map[int64][][]byte // the versions since, in order
	sizes  []int64            // durable length, lengths since
	ops    int                // writes of all kinds, syncs
	syncs  int
	durs   int // durable writes
	dead   bool
	onOp   func(op string, off, n int64) error // before the operation
	offAt  int                                 // the power goes off in this operation, 0: never
	maxLen int64
}

func newMemFile() *memFile {
	return &memFile{base: map[int64][]byte{}, newer: map[int64][][]byte{}, sizes: []int64{0}}
}

// begin counts an operation. last reports that the power goes off in it.
func (f *memFile) begin(op string, off, n int64) (last bool, err error) {
	if f.dead {
		return false, errCut
	}
	if f.onOp != nil {
		if err := f.onOp(op, off, n); err != nil {
			return false, err
		}
	}
	f.ops++
	if f.ops == f.offAt {
		f.dead = true
		return true, nil
	}
	return false, nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return 0, errCut
	}
	if off >= int64(len(f.cache)) {
		return 0, io.EOF
	}
	n := copy(p, f.cache[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, err := f.begin("write", off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	f.put(p, off)
	if last {
		return 0, errCut
	}
	return len(p), nil
}

func (f *memFile) WriteDurable(p []byte, off int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, err := f.begin("durable", off, int64(len(p)))
	if err != nil {
		return err
	}
	f.durs++
	f.put(p, off)
	if last {
		return errCut
	}
	for s := off / 512; s*512 < off+int64(len(p)); s++ {
		delete(f.base, s)
		delete(f.newer, s)
	}
	return nil
}

func (f *memFile) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, err := f.begin("sync", 0, 0)
	if err != nil {
		return err
	}
	f.syncs++
	if last {
		return errCut
	}
	clear(f.base)
	clear(f.newer)
	f.sizes = []int64{int64(len(f.cache))}
	return nil
}

func (f *memFile) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, err := f.begin("truncate", size, 0)
	if err != nil {
		return err
	}
	if f.maxLen != 0 && size > f.maxLen {
		return errors.New("no space left")
	}
	if old := int64(len(f.cache)); size < old {
		f.zero(size, old-size)
	}
	f.resize(size)
	if last {
		return errCut
	}
	return nil
}

func (f *memFile) Punch(off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	last, err := f.begin("punch", off, n)
	if err != nil {
		return err
	}
	f.zero(off, min(n, int64(len(f.cache))-off))
	if last {
		return errCut
	}
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return 0, errCut
	}
	return int64(len(f.cache)), nil
}

func (f *memFile) Close() error { return nil }

func (f *memFile) resize(size int64) {
	if old := int64(len(f.cache)); size <= old {
		f.cache = f.cache[:size]
	} else if size <= int64(cap(f.cache)) {
		f.cache = f.cache[:size]
		clear(f.cache[old:])
	} else {
		c := make([]byte, size, size+size/2)
		copy(c, f.cache)
		f.cache = c
	}
	f.sizes = append(f.sizes, size)
}

func (f *memFile) zero(off, n int64) {
	var zeros [512]byte
	for n > 0 {
		k := min(n, 512-off%512)
		if f.base[off/512] != nil || !bytes.Equal(f.cache[off:off+k], zeros[:k]) {
			f.put(zeros[:k], off)
		}
		off, n = off+k, n-k
	}
}

// put writes to the cache and keeps each version of each sector.
func (f *memFile) put(p []byte, off int64) {
	if end := off + int64(len(p)); end > int64(len(f.cache)) {
		f.resize(end)
	}
	for s := off / 512; s*512 < off+int64(len(p)); s++ {
		if f.base[s] == nil {
			f.base[s] = f.sector(s)
		}
		lo, hi := max(off, s*512), min(off+int64(len(p)), s*512+512)
		copy(f.cache[lo:hi], p[lo-off:hi-off])
		f.newer[s] = append(f.newer[s], f.sector(s))
	}
}

func (f *memFile) sector(s int64) []byte {
	b := make([]byte, 512)
	if s*512 < int64(len(f.cache)) {
		copy(b, f.cache[s*512:])
	}
	return b
}

// cut returns what the disk has when the power goes off now. rnd nil loses
// everything that was not synced.
func (f *memFile) cut(rnd *rand.Rand) *memFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	size := f.sizes[0]
	all := -1
	if rnd != nil {
		size = f.sizes[rnd.IntN(len(f.sizes))]
		all = rnd.IntN(4) // 0 loses everything, 1 keeps everything
	}
	d := append([]byte(nil), f.cache...)
	if int64(len(d)) < size {
		d = append(d, make([]byte, size-int64(len(d)))...)
	}
	for s, base := range f.base {
		v := base
		if k := len(f.newer[s]); rnd != nil && all != 0 {
			if all == 1 {
				v = f.newer[s][k-1]
			} else if i := rnd.IntN(k + 1); i > 0 {
				v = f.newer[s][i-1]
			}
		}
		if s*512 < int64(len(d)) {
			copy(d[s*512:], v)
		}
	}
	g := newMemFile()
	g.cache = d[:size]
	g.sizes = []int64{size}
	return g
}

// kill returns the file as a successor of a killed process finds it.
func (f *memFile) kill() *memFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
	g := newMemFile()
	g.cache, g.base, g.newer, g.sizes = f.cache, f.base, f.newer, f.sizes
	return g
}
