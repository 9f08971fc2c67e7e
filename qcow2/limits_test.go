package qcow2

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// An image may have more mapping tables than anybody wants to wait for.
func TestADescriptionReadsOnlySoManyTables(t *testing.T) {
	f := openOS(t, lockFile(t))
	const cluster = 2 << 20
	must(t, Format(f, CreateOptions{Size: 1 << 50, ClusterSize: cluster, ZoneSize: 1 << 40, RefcountBits: 1}))
	h, err := ReadHeader(f)
	must(t, err)
	end, err := f.Size()
	must(t, err)
	// All tables are holes but the first, which has an entry.
	l1 := make([]byte, 0, 8*h.L1Size)
	for i := range int64(h.L1Size) {
		l1 = binary.BigEndian.AppendUint64(l1, uint64(end+i*cluster)|flagCopied)
	}
	must(t, f.Truncate(end+int64(h.L1Size)*cluster))
	_, err = f.WriteAt(l1, h.L1Offset)
	must(t, err)
	poke(t, f, end, uint64(h.L1Offset)|flagCopied)
	reads := &countingFile{OSFile: f}
	in, err := ReadInfo(reads)
	must(t, err)
	if !in.Partial || *in.Allocated != cluster || reads.n > 100 {
		t.Errorf("%+v after %d reads", in, reads.n)
	}
	if !strings.Contains(in.String(), "at least 2M (2097152 bytes): not all tables were read") {
		t.Error(in)
	}
	// A check does not read the holes either.
	reads.n = 0
	if _, err := Check(reads, nil); err != nil || reads.n > 100 {
		t.Errorf("a check took %d reads, %v", reads.n, err)
	}
}

// Free space can lie in more pieces than are worth remembering.
func TestFreeSpaceInPiecesTakesBoundedMemory(t *testing.T) {
	f := openOS(t, lockFile(t))
	must(t, Format(f, CreateOptions{Size: 8 << 30, ClusterSize: 512, ZoneSize: 64 << 20, RefcountBits: 1}))
	h, err := ReadHeader(f)
	must(t, err)
	at, err := f.Size()
	must(t, err)
	// Every other cluster is leaked, and what holds those refcounts has one.
	per := h.refBlockEntries()
	first := (at>>h.ClusterBits+per-1)/per + 1
	n := 2*int64(maxFreeRuns)/per + 8
	blocks := bytes.Repeat([]byte{0x55}, int(n)<<h.ClusterBits)
	for i := range n {
		poke := binary.BigEndian.AppendUint64(nil, uint64(at+i<<h.ClusterBits))
		_, err := f.WriteAt(poke, h.RefTableOffset+8*(first+i))
		must(t, err)
		own := at>>h.ClusterBits + i
		block := int64(peek(t, f, h.RefTableOffset+8*(own/per)))
		if block == 0 {
			t.Fatalf("no refcount block for cluster %d", own)
		}
		b := make([]byte, 1)
		must(t, readPadded(f, b, block+own%per/8))
		b[0] |= 1 << (own % 8)
		_, err = f.WriteAt(b, block+own%per/8)
		must(t, err)
	}
	_, err = f.WriteAt(blocks, at)
	must(t, err)
	must(t, f.Truncate((first+n)*per<<h.ClusterBits))
	im := open(t, f, Options{})
	if n := len(im.alloc.unclean.runs); n < maxFreeRuns || n > maxFreeRuns+int(per) {
		t.Errorf("%d pieces are remembered", n)
	}
	must(t, put(im, fill(512, 1), 64<<20))
	must(t, im.Close())
}
