package qcow2

import (
	"errors"
	"fmt"
	"slices"
)

// RepairMode says what Repair may change.
type RepairMode uint8

const (
	// RepairLeaks lowers refcounts above the number of references. No entry
	// comes to refer to anything else.
	RepairLeaks RepairMode = iota + 1
	// RepairAll counts all refcounts anew, in new structures where the old
	// ones cannot stay, sets the flags that follow from them, and drops
	// mappings above the write pointers where they contradict anything.
	RepairAll
)

// Repair checks an image and mends what the mode covers and what follows from
// the entries of its tables. An image that was not closed becomes what an open
// for writing makes of it, in both modes, and is then closed.
//
// No mode touches zonedmeta, an entry below a write pointer or in a conventional
// zone, or a cluster that such an entry refers to. Entries that cannot be
// followed or overlap there, compressed clusters and damaged pointers cannot be
// mended: an image that has them is left as it is.
//
// before is what was found; after is what a second check says, with the
// differences counted; it is before itself if nothing was changed. An error
// means that the repair could not be done or was interrupted. The image is then
// as it was or has its dirty bit set, and can be repaired again; nothing that a
// write pointer covers is lost at any time. progress may be nil; it is told of
// three passes, one after the other.
func Repair(f File, mode RepairMode, progress func(done, total int64)) (before, after *CheckReport, err error) {
	if err := settle(f, &Options{}); err != nil {
		return nil, nil, fmt.Errorf("repair: %w", err)
	}
	c, err := check(f, progress)
	if err != nil {
		return nil, nil, err
	}
	before = &c.rep
	var missing int64
	if !before.Dirty && before.Leaks != 0 && before.Corruptions == 0 {
		if missing, err = c.orphans(); err != nil {
			return before, nil, fmt.Errorf("repair: %w", err)
		}
	}
	switch {
	case c.badPointers:
		before.untouched("no repair knows what write pointers should be")
		return before, before, nil
	case missing != 0:
		before.untouched(fmt.Sprintf("%d clusters below write pointers have no place in the file, and leaked clusters hold data: it may be theirs, if a piece of a mapping table was lost", missing))
		return before, before, nil
	case before.Dirty, mode == RepairAll && before.Corruptions+before.Leaks != 0:
		err = rebuildFile(f, progress)
	case before.Leaks == 0:
		return before, before, nil
	case c.contradictions != 0:
		before.untouched("while entries contradict each other, leaked clusters may hold what is missing elsewhere")
		return before, before, nil
	default:
		if err = c.freeLeaks(); err != nil {
			err = fmt.Errorf("repair: %w", err)
		}
	}
	if errors.Is(err, errCorrupt) {
		before.untouched("a repair would lose data")
		return before, before, nil
	}
	if err != nil {
		return before, nil, err
	}
	if after, err = Check(f, progress); err != nil {
		return before, nil, fmt.Errorf("check again: %w", err)
	}
	after.CorruptionsFixed = max(before.Corruptions-after.Corruptions, 0)
	after.LeaksFixed = max(before.Leaks-after.Leaks, 0)
	return before, after, nil
}

// untouched says why nothing was repaired.
func (r *CheckReport) untouched(why string) {
	r.say("note: the image was left as it is: %s", why)
}

// rebuildFile is an open for writing that repairs, and an orderly close.
func rebuildFile(f File, progress func(done, total int64)) error {
	im, err := Open(f, Options{Progress: progress, repair: true})
	if err != nil {
		return err
	}
	err = im.detachImage()
	im.syncer.stop()
	return err
}

// rebuildClean rebuilds an image whose dirty bit is clear, but whose refcounts
// are damaged. What is mapped above the write pointers is legal there and stays,
// unless it is part of the damage.
func (im *Image) rebuildClean(progress func(done, total int64)) error {
	r := &rebuilder{im: im, keep: true}
	err := r.survey(progress)
	if errors.Is(err, errCorrupt) {
		r = &rebuilder{im: im}
		err = r.survey(progress)
	}
	if err != nil {
		return err
	}
	return r.rebuild()
}

// freeLeaks lowers refcounts to the references counted and gives back what
// nothing refers to. The references of the image are sound.
func (c *checker) freeLeaks() error {
	// 1. While refcounts and flags change, they mean nothing (I5).
	h := *c.h
	h.Incompatible |= incompatDirty
	h.Autoclear = 0
	if err := h.writeChanges(c.f); err != nil {
		return err
	}
	// 2. A refcount that becomes one makes the entry's flag true.
	if c.unflagged {
		if err := c.setFlags(); err != nil {
			return err
		}
	}
	// 3. Nothing in the file has referred to these clusters since before.
	if err := c.lowerRefcounts(); err != nil {
		return err
	}
	if end := c.refs.end() << h.ClusterBits; end < c.size {
		if err := c.f.Truncate(end); err != nil {
			return err
		}
	}
	if err := c.f.Sync(); err != nil {
		return err
	}
	// 4. The bit goes last.
	h.Incompatible &^= incompatDirty
	if err := h.writeChanges(c.f); err != nil {
		return err
	}
	return c.f.Sync()
}

// setFlags sets the flag of entries that lack it because their cluster's
// refcount is too high.
func (c *checker) setFlags() error {
	p := patcher{f: c.f}
	err := walk(c.f, c.h, false, func(x *ref) error {
		if x.kind != RefL2 && x.kind != RefData || x.entry&flagCopied != 0 {
			return nil
		}
		n, err := c.refcount(x.off >> c.h.ClusterBits)
		if err != nil || n < 2 {
			return err
		}
		return p.put(x.entryAt, x.entry|flagCopied)
	})
	if err != nil {
		return err
	}
	return p.flush()
}

// lowerRefcounts writes the refcounts that are above the number of references,
// and punches the clusters that have none.
func (c *checker) lowerRefcounts() error {
	var free run
	punch := func() { // the space is a gift: an error only costs it
		_ = c.f.Punch(free.start<<c.h.ClusterBits, free.n<<c.h.ClusterBits)
	}
	fileEnd := c.h.roundUp(c.size) >> c.h.ClusterBits
	err := c.eachBlock(func(i int64, block []byte) error {
		changed := false
		c.eachRefcount(i, block, func(cluster int64, k int) {
			refs := c.refs.count(cluster)
			if refcountAt(block, c.h.RefcountOrder, k) <= refs {
				return
			}
			setRefcount(block, c.h.RefcountOrder, k, refs)
			changed = true
			if refs != 0 || cluster >= fileEnd {
				return
			}
			if free.end() != cluster {
				punch()
				free = run{start: cluster}
			}
			free.n++
		})
		if !changed {
			return nil
		}
		_, err := c.f.WriteAt(block, c.refBlockAt(i))
		return err
	})
	if err == nil {
		punch()
	}
	return err
}

// ParseRepairMode reads qemu-img's names of repair modes.
func ParseRepairMode(s string) (RepairMode, error) {
	names := []string{"leaks", "all"}
	if i := slices.Index(names, s); i >= 0 {
		return RepairLeaks + RepairMode(i), nil
	}
	return 0, fmt.Errorf("there is no repair %q: choose leaks or all", s)
}
