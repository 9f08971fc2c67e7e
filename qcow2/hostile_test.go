package qcow2

import (
	"encoding/binary"
	"strings"
	"testing"
)

// A few kilobytes of a sparse file can name tables for days of reading, and
// offsets at the end of what a number holds.

func TestAFileBeyondTheReachOfEntriesIsRefused(t *testing.T) {
	f := newSparseFile()
	build(t, f, small)
	for _, size := range []int64{maxFileBytes + 1, 1<<63 - 1} {
		f.size = size
		_, err := Open(f, Options{})
		if err == nil || !strings.Contains(err.Error(), "bytes long: entries can refer to the first 72057594037927936 only") {
			t.Errorf("%d: %v", size, err)
		}
	}
	f.size = maxFileBytes
	im := open(t, f, Options{})
	for at := im.zoneStart(1); at < im.zoneEnd(1); at += 4096 { // there is room below
		must(t, put(im, fill(4096, 1), at))
	}
	must(t, im.Close())
	wantClean(t, f)
}

func TestAFileDoesNotGrowBeyondTheReachOfEntries(t *testing.T) {
	f := newSparseFile()
	build(t, f, small)
	im := open(t, f, Options{})
	im.alloc.fileEnd.Store(maxFileBytes>>im.clusterBits - 2)
	if err := im.extend(3); err == nil || !strings.Contains(err.Error(), "must not get longer") {
		t.Error(err)
	}
	must(t, im.extend(1))
	must(t, im.extend(1))
	if err := im.extend(1); err == nil || im.Failed() != nil {
		t.Error(err, im.Failed())
	}
	im.Abandon()
}

func TestTablesThatAreHolesAreNotRead(t *testing.T) {
	s := spec{clusterBits: 21, refOrder: 4, size: 1 << 40, zoneSize: 1 << 30}
	f := newSparseFile()
	build(t, f, s)
	h, err := ReadHeader(f)
	must(t, err)
	const tables = 1 << 14 // 32 GiB of them
	at := (f.size + h.ClusterSize()) &^ (h.ClusterSize() - 1)
	l1 := make([]byte, 8*tables)
	for i := range tables {
		binary.BigEndian.PutUint64(l1[8*i:], uint64(at+int64(i)<<h.ClusterBits)|flagCopied)
	}
	f.put(l1, h.L1Offset)
	f.put(binary.BigEndian.AppendUint32(nil, tables), offL1Size)
	f.size = at + tables<<h.ClusterBits
	count := func(what string, fn func() error) {
		f.reads, f.bytes = 0, 0
		if err := fn(); err != nil && !strings.Contains(err.Error(), "calls") && !strings.Contains(err.Error(), "call the cluster") {
			t.Errorf("%s: %v", what, err)
		}
		if f.bytes > 64<<20 {
			t.Errorf("%s reads %d bytes", what, f.bytes)
		}
	}
	count("check", func() error { _, err := Check(f, nil); return err })
	count("info", func() error { _, err := ReadInfo(f); return err })
	count("open", func() error { _, err := Open(f, Options{}); return err }) // their refcounts are 0
}

// Every entry's cluster has its refcount in another block than the one before.
func TestCheckReadsLittleOfEachRefcountBlock(t *testing.T) {
	s := spec{clusterBits: 21, refOrder: 6, size: 1 << 40, zoneSize: 1 << 30}
	f := newSparseFile()
	build(t, f, s)
	h, err := ReadHeader(f)
	must(t, err)
	const blocks, entries = 32, 4096
	at, per := f.size, h.refBlockEntries()
	for k := int64(1); k < blocks; k++ {
		f.put(binary.BigEndian.AppendUint64(nil, uint64(at)), h.RefTableOffset+8*k)
		f.put([]byte{1}, at+h.ClusterSize()-1) // no hole
		at += h.ClusterSize()
	}
	f.put(binary.BigEndian.AppendUint64(nil, uint64(at)|flagCopied), h.L1Offset)
	for i := range int64(entries) {
		c := (i%(blocks-1)+1)*per + 100 + i
		f.put(binary.BigEndian.AppendUint64(nil, uint64(c)<<h.ClusterBits|flagCopied), at+8*i)
	}
	f.size = blocks * per << h.ClusterBits
	f.reads, f.bytes = 0, 0
	r, err := Check(f, nil)
	must(t, err)
	if r.Corruptions < entries || f.bytes > 256<<20 {
		t.Errorf("%d corruptions found by reading %d bytes", r.Corruptions, f.bytes)
	}
}

// The refcount table of a full device would be larger than any may be; the image
// is nearly empty.
func TestARefcountTableGrowsAsFarAsItMay(t *testing.T) {
	f := newSparseFile()
	build(t, f, spec{clusterBits: 9, refOrder: 6, size: 100 << 30, zoneSize: 1 << 30})
	f.put(binary.BigEndian.AppendUint64(nil, incompatZoned|incompatDirty), offIncompatible) // build's table is too short
	im := open(t, f, Options{})
	must(t, put(im, fill(512, 1), im.zoneStart(1)))
	im.Stage(1, im.zoneStart(1)+512)
	if n := int64(im.Header().RefTableClusters) << im.clusterBits; n != maxRefTableBytes {
		t.Errorf("the refcount table has %d bytes", n)
	}
	must(t, im.Close())
	wantClean(t, f)
}

// A table so far behind everything that it cannot count itself is moved, and
// none gets longer than a header may say.
func TestARebuildMovesATableThatCannotStay(t *testing.T) {
	f := newSparseFile()
	build(t, f, spec{clusterBits: 9, refOrder: 6, size: 1 << 20, zoneSize: 64 << 10})
	h, err := ReadHeader(f)
	must(t, err)
	f.put(binary.BigEndian.AppendUint64(nil, h.Incompatible|incompatDirty), offIncompatible)
	f.size = 64 << 30
	f.put(binary.BigEndian.AppendUint64(nil, uint64(f.size)-512), offRefTableOffset)
	im := open(t, f, Options{})
	must(t, put(im, fill(512, 1), im.zoneStart(1)))
	must(t, im.Close())
	wantClean(t, f)
	if f.size > 1<<20 {
		t.Errorf("the file has %d bytes", f.size)
	}
}
