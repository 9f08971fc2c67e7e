package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
)

// sparseFile is a File in memory of which only the pages that were written
// take any, so that offsets may be as huge as a hostile image wants. It counts
// what is done to it, and ends what runs away: work is bounded by a count, not
// by a clock.
type sparseFile struct {
	mu      sync.Mutex
	base    map[int64]*sparsePage // shared with other files, never changed
	own     map[int64]*sparsePage // over base; nil: a hole
	size    int64
	reads   int64 // ReadAt calls
	bytes   int64 // read by them
	changes int64 // calls of whatever changes the file or its length
	allowed int64 // bytes that may be read, 0: no limit; each call counts for one page
	wrong   error // the first thing that nobody may do to a file
}

const sparsePageSize = 4096

type sparsePage [sparsePageSize]byte

var (
	errRunaway = errors.New("more was read than there is reason to")
	zeroPage   sparsePage
)

func newSparseFile() *sparseFile { return &sparseFile{own: map[int64]*sparsePage{}} }

// clone returns a file with the same contents. What f has becomes the base of
// both.
func (f *sparseFile) clone() *sparseFile {
	if len(f.own) != 0 {
		base := make(map[int64]*sparsePage, len(f.base)+len(f.own))
		for _, k := range f.stored() {
			base[k] = f.page(k)
		}
		f.base, f.own = base, map[int64]*sparsePage{}
	}
	g := newSparseFile()
	g.size, g.base = f.size, f.base
	return g
}

// page returns page k, nil for a hole.
func (f *sparseFile) page(k int64) *sparsePage {
	if p, ok := f.own[k]; ok {
		return p
	}
	return f.base[k]
}

// stored returns the numbers of the pages that take memory, in order.
func (f *sparseFile) stored() []int64 {
	var list []int64
	for k := range f.base {
		if f.page(k) != nil {
			list = append(list, k)
		}
	}
	for k, p := range f.own {
		if p != nil && f.base[k] == nil {
			list = append(list, k)
		}
	}
	slices.Sort(list)
	return list
}

// sane refuses what no image has reason for.
func (f *sparseFile) sane(op string, off, n int64) error {
	if off < 0 || n < 0 || off > maxFileBytes-n && !(op == "read" && off <= math.MaxInt64-n) {
		err := fmt.Errorf("%s of %d bytes at %d", op, n, off)
		if f.wrong == nil {
			f.wrong = err
		}
		return err
	}
	return nil
}

func (f *sparseFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.sane("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	f.reads++
	f.bytes += int64(len(p))
	if f.allowed != 0 && f.bytes+f.reads*sparsePageSize > f.allowed {
		f.wrong = errRunaway
		return 0, errRunaway
	}
	n := int(max(0, min(int64(len(p)), f.size-off)))
	clear(p[:n])
	for at := 0; at < n; {
		in := (off + int64(at)) % sparsePageSize
		k := min(n-at, int(sparsePageSize-in))
		if q := f.page((off + int64(at)) / sparsePageSize); q != nil {
			copy(p[at:at+k], q[in:])
		}
		at += k
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *sparseFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.sane("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	f.changes++
	f.put(p, off)
	return len(p), nil
}

func (f *sparseFile) put(p []byte, off int64) {
	f.size = max(f.size, off+int64(len(p)))
	for at := 0; at < len(p); {
		k, in := (off+int64(at))/sparsePageSize, (off+int64(at))%sparsePageSize
		n := min(len(p)-at, int(sparsePageSize-in))
		part := p[at : at+n]
		at += n
		old := f.page(k)
		if old == nil {
			if bytes.Equal(part, zeroPage[:n]) {
				continue
			}
			old = &zeroPage
		}
		q, ok := f.own[k]
		if !ok || q == nil {
			q = new(sparsePage)
			*q = *old
			f.own[k] = q
		}
		copy(q[in:], part)
	}
}

func (f *sparseFile) WriteDurable(p []byte, off int64) error {
	_, err := f.WriteAt(p, off)
	return err
}

func (f *sparseFile) Sync() error { return nil }

func (f *sparseFile) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.sane("truncate", size, 0); err != nil {
		return err
	}
	f.changes++
	if size < f.size {
		f.zero(size, f.size-size)
	}
	f.size = size
	return nil
}

func (f *sparseFile) Punch(off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.sane("punch", off, n); err != nil {
		return err
	}
	f.changes++
	f.zero(off, min(n, f.size-off))
	return nil
}

func (f *sparseFile) zero(off, n int64) {
	for _, k := range f.stored() {
		at, end := max(off, k*sparsePageSize), min(off+n, (k+1)*sparsePageSize)
		switch {
		case at >= end:
		case end-at == sparsePageSize:
			f.own[k] = nil
		default:
			size := f.size
			f.put(zeroPage[:end-at], at)
			f.size = size
		}
	}
}

func (f *sparseFile) Size() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size, nil
}

func (f *sparseFile) isHole(off, n int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := off / sparsePageSize; k*sparsePageSize < off+n; k++ {
		if f.page(k) != nil {
			return false
		}
	}
	return true
}

func (f *sparseFile) Close() error { return nil }

// differs says where two files differ, "" if nowhere.
func (f *sparseFile) differs(g *sparseFile) string {
	if f.size != g.size {
		return fmt.Sprintf("one is %d bytes long, the other %d", f.size, g.size)
	}
	for _, list := range [][]int64{f.stored(), g.stored()} {
		for _, k := range list {
			a, b := f.page(k), g.page(k)
			if a == nil {
				a = &zeroPage
			}
			if b == nil {
				b = &zeroPage
			}
			if *a != *b {
				i := 0
				for a[i] == b[i] {
					i++
				}
				return fmt.Sprintf("at %#x one has %#x, the other %#x", k*sparsePageSize+int64(i), a[i], b[i])
			}
		}
	}
	return ""
}
