package qcow2

import "fmt"

// Close makes everything durable, gives back what is not used, clears the
// dirty bit and closes the file. Nothing else is in progress. A failed image
// stays dirty, and its failure is returned.
func (im *Image) Close() error {
	var err error
	if !im.readOnly {
		err = im.detachImage()
		im.syncer.stop()
	}
	if e := im.f.Close(); err == nil {
		err = e
	}
	return err
}

// Abandon ends what Open has started and leaves everything as it is, as if the
// process had been killed; the file stays open. It is for tests.
func (im *Image) Abandon() {
	if !im.readOnly {
		im.syncer.stop()
	}
}

// detachImage brings the image into the state that a clean one has.
func (im *Image) detachImage() error {
	// 1. The pointers are durable.
	if err := im.Round(); err != nil {
		return err
	}
	if !im.header().Dirty() {
		return nil // never changed
	}
	im.lock()
	defer im.unlock()
	// 2. What was mapped ahead is given back.
	for zone := range im.nrZones {
		if !im.ahead.has(int64(zone)) || im.conventional(zone) {
			continue
		}
		if err := im.detach(im.clusterUp(im.Pointer(zone)), im.lastCluster(zone)); err != nil {
			return im.fail(err)
		}
	}
	im.syncer.stop() // and with it the rounds that move clusters
	if err := im.Failed(); err != nil {
		return err
	}
	// 3. Whatever refcounts and mappings say is durable (I5), and no durable
	//    entry refers to what is free.
	if err := im.f.Sync(); err != nil {
		return im.fail(fmt.Errorf("close: %w", err)) // I8
	}
	// 4. The space of free clusters goes back. Whether that is durable does
	//    not matter, and an error only costs space.
	end, err := im.trim()
	if err != nil {
		return err
	}
	_ = im.f.Truncate(end << im.clusterBits)
	// 5. The bit goes last.
	h := *im.header()
	h.Incompatible &^= incompatDirty
	if err := im.putHeader(&h); err != nil {
		return err
	}
	im.attached.Store(false)
	im.writable.Store(false)
	if err := im.f.Sync(); err != nil {
		return im.fail(fmt.Errorf("close: %w", err))
	}
	return nil
}

// trim punches what has been freed and returns the number of clusters up to the
// last one in use.
func (im *Image) trim() (int64, error) {
	a := &im.alloc
	a.mu.Lock()
	var free runSet
	ok := true
	for _, rs := range [...][]run{a.clean.runs, a.unclean.runs, a.freed, a.punched} {
		for _, r := range rs {
			ok = ok && free.add(r)
		}
	}
	for _, r := range a.homes {
		ok = ok && free.add(r)
	}
	freed := mergeRuns(a.freed)
	a.mu.Unlock()
	if !ok {
		return 0, im.fail(fmt.Errorf("image is corrupt: clusters were in use twice"))
	}
	end := a.length()
	if k := len(free.runs) - 1; k >= 0 && free.runs[k].end() == end {
		end = free.runs[k].start
	}
	for _, r := range freed {
		if r.end() <= end {
			_ = im.punch([]run{r})
		}
	}
	return end, nil
}
