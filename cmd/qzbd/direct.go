package main

import (
	"errors"
	"fmt"

	"github.com/qzbd/qzbd/qcow2"
)

// useDirect makes the data of the image go past the page cache, or says why
// that is impossible. It changes nothing in the image.
func useDirect(o *attachOptions, f *qcow2.OSFile) (qcow2.Direct, error) {
	h, err := qcow2.ReadHeader(f)
	if err != nil {
		return qcow2.Direct{}, fmt.Errorf("%s: %w", o.image, err)
	}
	d, err := f.UseDirect()
	if errors.Is(err, qcow2.ErrNoDirect) {
		return d, fmt.Errorf("%w: attach it without --direct", err)
	}
	if err == nil {
		err = checkDirect(o.image, d, o.blockSize, h.ClusterSize())
	}
	return d, err
}

// checkDirect refuses what direct I/O on the image file could not do.
func checkDirect(image string, d qcow2.Direct, blockSize int, clusterSize int64) error {
	without := "attach it without --direct"
	if blockSize < 4096 && max(d.Offset, d.Memory) <= 4096 {
		without = "use --block-size 4096, or " + without
	}
	switch {
	case d.Offset > blockSize:
		return fmt.Errorf("%s: its file system does direct I/O in multiples of %d bytes and the device's blocks would be %d: %s", image, d.Offset, blockSize, without)
	case d.Memory > blockSize:
		return fmt.Errorf("%s: its file system does direct I/O with memory aligned to %d bytes and the device's blocks would be %d: %s", image, d.Memory, blockSize, without)
	case clusterSize%int64(d.Block) != 0:
		return fmt.Errorf("%s: its clusters of %d bytes are not whole blocks of its file system and the page cache (%d): attach it without --direct", image, clusterSize, d.Block)
	}
	return nil
}
