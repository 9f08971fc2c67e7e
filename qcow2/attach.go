package qcow2

import "fmt"

// header returns the header as it is in the file. What it points to must not
// be changed; putHeader replaces it.
func (im *Image) header() *Header { return im.hdr.Load() }

// Header returns the image's header.
func (im *Image) Header() Header { return *im.header() }

// putHeader makes those fields of h durable that change while an image is in
// use. They lie in the header's first sector, so that they change together
// (I7); whatever else is there stays as it was found. The token is held.
func (im *Image) putHeader(h *Header) error {
	if err := h.writeChanges(im.f); err != nil {
		return im.fail(err) // I8
	}
	im.setHeader(h)
	return nil
}

// writeChanges makes the header's fields that can change durable in the file.
func (h *Header) writeChanges(f File) error {
	var sector [sectorSize]byte
	if err := readPadded(f, sector[:], 0); err != nil {
		return fmt.Errorf("read the header: %w", err)
	}
	h.patch(sector[:])
	if err := f.WriteDurable(sector[:], 0); err != nil {
		return fmt.Errorf("write the header: %w", err)
	}
	return nil
}

// attach prepares the image for its first change: the dirty bit is durable
// before anything else is written (I5). The token is held.
func (im *Image) attach() error {
	switch {
	case im.readOnly:
		return ErrReadOnly
	case im.Failed() != nil:
		return im.Failed()
	case im.attached.Load():
		return nil
	}
	// A disk that cannot even be read has not lost anything.
	if err := readPadded(im.f, make([]byte, sectorSize), 0); err != nil {
		return fmt.Errorf("read the header: %w", err)
	}
	if err := im.reserveTables(); err != nil {
		return err
	}
	if h := *im.header(); !h.Dirty() || h.Autoclear != 0 {
		h.Incompatible |= incompatDirty
		h.Autoclear = 0 // whatever these features keep, we do not keep it up to date
		if err := im.putHeader(&h); err != nil {
			return err
		}
	}
	// A last cluster that was cut short is completed: extents end at clusters.
	size, err := im.f.Size()
	if err != nil {
		return err
	}
	if end := im.alloc.length() << im.clusterBits; size < end {
		if err := im.f.Truncate(end); err != nil {
			return fmt.Errorf("complete the image's last cluster: %w", err)
		}
	}
	im.attached.Store(true)
	im.writable.Store(true)
	if err := im.Failed(); err != nil {
		im.writable.Store(false)
		return err
	}
	return nil
}

// lock takes the token of whoever changes mappings. It is held across I/O,
// which is why it is no mutex.
func (im *Image) lock()   { im.token <- struct{}{} }
func (im *Image) unlock() { <-im.token }
