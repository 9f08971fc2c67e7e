package qcow2

import (
	"encoding/binary"
	"fmt"
)

// refcounts is the refcount table. While the image is attached the dirty bit is
// set and refcounts on disk mean nothing (I5), so nothing here is ordered
// against anything but the table's own move. The holder of the token uses it.
type refcounts struct {
	order     uint32  // a refcount is 1<<order bits
	blockBits uint32  // log2 of the refcounts in a block
	table     []int64 // offsets of the blocks, 0: all free
}

// setRefs sets the refcounts of the clusters of r, whose blocks exist, to v. An
// error has failed the image.
func (im *Image) setRefs(r run, v uint64) error {
	for r.n > 0 {
		k := r.start >> im.ref.blockBits
		i := r.start & (1<<im.ref.blockBits - 1)
		n := min(r.n, 1<<im.ref.blockBits-i)
		if k < int64(len(im.ref.table)) && im.ref.table[k] != 0 {
			if err := im.setBlock(im.ref.table[k], i, n, v); err != nil {
				return err
			}
		} else if v != 0 {
			return im.fail(fmt.Errorf("image is corrupt: no refcount block for cluster %d", r.start))
		}
		r.start, r.n = r.start+n, r.n-n
	}
	return nil
}

// setBlock sets n refcounts from number i of the block at off.
func (im *Image) setBlock(off, i, n int64, v uint64) error {
	from, to := i<<im.ref.order>>3, ((i+n)<<im.ref.order+7)>>3
	buf := im.buffer(to - from)
	if im.ref.order < 3 { // the bytes at the ends are shared with others
		if err := readPadded(im.f, buf, off+from); err != nil {
			return im.fail(fmt.Errorf("read refcounts: %w", err))
		}
	}
	base := from << 3 >> im.ref.order
	for k := i; k < i+n; k++ {
		setRefcount(buf, im.ref.order, int(k-base), v)
	}
	if _, err := im.f.WriteAt(buf, off+from); err != nil {
		return im.fail(fmt.Errorf("write refcounts: %w", err))
	}
	return nil
}

// dropRef takes one reference from cluster c and reports whether it was the
// last one.
func (im *Image) dropRef(c int64) (last bool, err error) {
	k, i := c>>im.ref.blockBits, c&(1<<im.ref.blockBits-1)
	if k >= int64(len(im.ref.table)) || im.ref.table[k] == 0 {
		return false, nil
	}
	from := i << im.ref.order >> 3
	var buf [8]byte
	b := buf[:max(1, 1<<im.ref.order>>3)]
	if err := readPadded(im.f, b, im.ref.table[k]+from); err != nil {
		return false, im.fail(fmt.Errorf("read refcounts: %w", err))
	}
	v := refcountAt(b, im.ref.order, int(i-from<<3>>im.ref.order))
	if v == 0 {
		return false, nil
	}
	return v == 1, im.setRefs(run{c, 1}, v-1)
}

// ensureBlocks makes refcount blocks for all clusters of rs. What lacks space
// fails before anything has been changed.
func (im *Image) ensureBlocks(rs ...run) (err error) {
	var queue []int64
	for _, r := range rs {
		for k := r.start >> im.ref.blockBits; k<<im.ref.blockBits < r.end(); k++ {
			if k >= int64(len(im.ref.table)) || im.ref.table[k] == 0 {
				queue = append(queue, k)
			} else if err := im.reserveMeta(im.ref.table[k]); err != nil {
				return err
			}
		}
	}
	if len(queue) == 0 {
		return nil
	}

	// New blocks and a new table need refcounts themselves, which may need
	// further blocks: plan until nothing is missing.
	blocks := make(map[int64]int64) // number of the block: its cluster
	var table run
	defer func() {
		if err != nil {
			im.giveBack(table)
			for _, c := range blocks {
				im.giveBack(run{c, 1})
			}
		}
	}()
	for len(queue) > 0 {
		k := queue[0]
		queue = queue[1:]
		if blocks[k] != 0 {
			continue
		}
		if k < int64(len(im.ref.table)) && im.ref.table[k] != 0 {
			if err := im.reserveMeta(im.ref.table[k]); err != nil {
				return err
			}
			continue
		}
		if have := max(int64(len(im.ref.table)), table.n*im.cs/8); k >= have {
			// Enough for a full device, so that this happens once.
			want := (max(k+1, im.alloc.limit>>im.ref.blockBits+1)*9/8*8 + im.cs - 1) / im.cs
			want = min(want, maxRefTableBytes/im.cs)
			im.giveBack(table)
			table = run{}
			if k >= want*im.cs/8 {
				return fmt.Errorf("a refcount table of %d bytes is more than the %d that are supported", (k+1)*8, maxRefTableBytes)
			}
			if table, err = im.takeMeta(want); err != nil {
				return err
			}
			for t := table.start >> im.ref.blockBits; t<<im.ref.blockBits < table.end(); t++ {
				queue = append(queue, t)
			}
		}
		r, err := im.takeMeta(1)
		if err != nil {
			return err
		}
		blocks[k] = r.start
		queue = append(queue, r.start>>im.ref.blockBits)
	}

	if table.n != 0 {
		if err := im.moveTable(table, blocks); err != nil {
			return err
		}
	} else {
		for k, c := range blocks {
			var e [8]byte
			binary.BigEndian.PutUint64(e[:], uint64(c<<im.clusterBits))
			if _, err := im.f.WriteAt(e[:], im.header().RefTableOffset+k*8); err != nil {
				return im.fail(fmt.Errorf("write refcount table: %w", err))
			}
			im.ref.table[k] = c << im.clusterBits
		}
	}
	for _, c := range blocks {
		if err := im.setRefs(run{c, 1}, 1); err != nil {
			return err
		}
	}
	return im.setRefs(table, 1)
}

// moveTable writes the refcount table to the clusters of to, with new blocks.
func (im *Image) moveTable(to run, blocks map[int64]int64) error {
	h := *im.header()
	old := run{h.RefTableOffset >> im.clusterBits, int64(h.RefTableClusters)}
	table := make([]int64, to.n*im.cs/8)
	copy(table, im.ref.table)
	for k, c := range blocks {
		table[k] = c << im.clusterBits
	}
	buf := make([]byte, to.n*im.cs)
	for i, off := range table {
		binary.BigEndian.PutUint64(buf[i*8:], uint64(off))
	}
	// 1. The new table is durable before the header points to it; its new
	//    blocks have been durably zero since before they were taken.
	if _, err := im.f.WriteAt(buf, to.start<<im.clusterBits); err != nil {
		return im.fail(fmt.Errorf("write refcount table: %w", err))
	}
	if err := im.f.Sync(); err != nil {
		return im.fail(fmt.Errorf("sync refcount table: %w", err)) // I8
	}
	// 2. Offset and length change together, in the header's first sector (I7).
	h.RefTableOffset, h.RefTableClusters = to.start<<im.clusterBits, uint32(to.n)
	if err := im.putHeader(&h); err != nil {
		return err
	}
	im.ref.table = table
	// 3. Only now the old one is free.
	if err := im.setRefs(old, 0); err != nil {
		return err
	}
	im.quarantine([]run{old})
	return nil
}

// takeMeta takes n consecutive clusters for metadata. They are durably zero,
// and zeros are written to them once more so that a full file system shows
// itself here, where it refuses one request and fails nothing.
func (im *Image) takeMeta(n int64) (run, error) {
	r, err := im.acquire(n, 0)
	if err != nil {
		return run{}, err
	}
	if r.n < n {
		im.giveBack(r)
		if err := im.extend(n); err != nil {
			return run{}, err
		}
		r = im.takeClean(n, n)
	}
	zeros := make([]byte, min(r.n<<im.clusterBits, 1<<20))
	for at, end := r.start<<im.clusterBits, r.end()<<im.clusterBits; at < end; {
		k, err := im.f.WriteAt(zeros[:min(int64(len(zeros)), end-at)], at)
		if err != nil {
			im.giveBack(r)
			return run{}, fmt.Errorf("reserve metadata: %w", err)
		}
		at += int64(k)
	}
	for c := r.start; c < r.end(); c++ {
		_ = im.reserved.set(c)
	}
	return r, nil
}

// giveBack releases clusters that nothing refers to.
func (im *Image) giveBack(r run) {
	if err := im.alloc.release(r); err != nil {
		im.fail(err)
	}
}
