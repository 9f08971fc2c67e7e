package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Preallocation says how much of a fresh image is there before anything is
// written to the device. Zones are empty and everything reads as zeros in any
// case; what a zone's capacity leaves out is never mapped. A reset gives a
// zone's clusters back, and an image that was not closed loses what is mapped
// above the write pointers, so that preallocation is for the first use.
type Preallocation uint8

// The names are qemu-img's.
const (
	PreallocationOff      Preallocation = iota
	PreallocationMetadata               // everything is mapped, to holes
	PreallocationFalloc                 // to space that the file system has reserved
	PreallocationFull                   // to zeros that have been written
)

var preallocationNames = [...]string{"off", "metadata", "falloc", "full"}

func (p Preallocation) String() string { return preallocationNames[p] }

func parsePreallocation(s string) (Preallocation, error) {
	for i, name := range preallocationNames {
		if s == name {
			return Preallocation(i), nil
		}
	}
	return 0, errors.New("it must be " + strings.Join(preallocationNames[:], ", "))
}

const (
	zeroChunk    = 4 << 20   // of zeros written at once
	reserveChunk = 256 << 20 // reserved at once
	// Zeros are synced after that many bytes: what waits in memory makes
	// progress a lie and the last sync endless.
	syncChunk = 512 << 20
)

// reserver is a File that can reserve space for a range, whose holes read as
// zeros as before: fallocate.
type reserver interface {
	Reserve(off, n int64) error
}

// Reserve has the file system reserve the space for [off, off+n).
func (f *OSFile) Reserve(off, n int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, off, n)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return fmt.Errorf("%s: the file system cannot reserve space (%w): create the image with preallocation=full, or without", f.Name(), err)
		default:
			return fmt.Errorf("reserve %d bytes at %d in %s: %w", n, off, f.Name(), err)
		}
	}
}

// mappable is how many clusters of zone i can be written.
func (h *Header) mappable(i uint32) int64 {
	return h.roundUp(int64(h.ZoneCapacity(i))) >> h.ClusterBits
}

// allMappable is how many clusters of the device can be written.
func (h *Header) allMappable() (n int64) {
	for i := range h.Zoned.NrZones {
		n += h.mappable(i)
	}
	return n
}

// preallocate writes the L2 tables that map the device to the plan's data
// clusters, in order, and what those contain. The file has its length and is
// empty.
func (p *imagePlan) preallocate(f File, o CreateOptions) error {
	if p.tables == 0 {
		return nil
	}
	h := &p.header
	at, n := p.dataAt<<h.ClusterBits, p.data<<h.ClusterBits
	tables := p.tables << h.ClusterBits
	total := tables
	if o.Preallocation != PreallocationMetadata {
		total += n
	}
	done := int64(0)
	step := func(n int64) {
		if done += n; o.Progress != nil {
			o.Progress(done, total)
		}
	}
	step(0)
	var err error
	switch o.Preallocation {
	case PreallocationFalloc:
		err = reserve(f, at, n, step)
	case PreallocationFull:
		err = writeZeros(f, at, n, step)
	}
	if err != nil {
		return err
	}
	return p.writeL2(f, step)
}

func reserve(f File, at, n int64, step func(int64)) error {
	r, ok := f.(reserver)
	if !ok {
		return errors.New("this kind of file cannot reserve space")
	}
	for n > 0 {
		k := min(n, reserveChunk)
		if err := r.Reserve(at, k); err != nil {
			return err
		}
		step(k)
		at, n = at+k, n-k
	}
	return nil
}

func writeZeros(f File, at, n int64, step func(int64)) error {
	zeros := make([]byte, min(n, zeroChunk))
	for unsynced := int64(0); n > 0; {
		k, err := f.WriteAt(zeros[:min(n, zeroChunk)], at)
		if err != nil {
			return err
		}
		step(int64(k))
		at, n, unsynced = at+int64(k), n-int64(k), unsynced+int64(k)
		if unsynced >= syncChunk {
			if err := f.Sync(); err != nil {
				return err
			}
			unsynced = 0
		}
	}
	return nil
}

// writeL2 writes all L2 tables. They lie beside each other, so that the entries
// are one sequence.
func (p *imagePlan) writeL2(f File, step func(int64)) error {
	h := &p.header
	buf := make([]byte, 0, min(p.tables<<h.ClusterBits, zeroChunk))
	at := p.l2At << h.ClusterBits
	flush := func() error {
		if _, err := f.WriteAt(buf, at); err != nil {
			return err
		}
		at += int64(len(buf))
		step(int64(len(buf)))
		buf = buf[:0]
		return nil
	}
	next := p.dataAt
	put := func(n int64, mapped bool) error {
		for ; n > 0; n-- {
			entry := uint64(0)
			if mapped {
				entry = uint64(next<<h.ClusterBits) | flagCopied
				next++
			}
			if buf = binary.BigEndian.AppendUint64(buf, entry); len(buf) == cap(buf) {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return nil
	}
	left := p.tables * h.l2Entries()
	for i := range h.Zoned.NrZones {
		zone := h.roundUp(int64(h.ZoneLength(i))) >> h.ClusterBits
		used := h.mappable(i)
		if err := errors.Join(put(used, true), put(zone-used, false)); err != nil {
			return err
		}
		left -= zone
	}
	if err := put(left, false); err != nil { // the last table's rest
		return err
	}
	if len(buf) > 0 {
		return flush()
	}
	return nil
}

// l1Table returns the L1 table, in whole clusters.
func (p *imagePlan) l1Table() []byte {
	h := &p.header
	b := make([]byte, h.roundUp(int64(h.L1Size)*8)) // at most maxL1Bytes
	for t := range p.tables {
		binary.BigEndian.PutUint64(b[8*t:], uint64((p.l2At+t)<<h.ClusterBits)|flagCopied)
	}
	return b
}
