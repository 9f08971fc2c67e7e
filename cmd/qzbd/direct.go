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
	const without = "attach it without --direct"
	if errors.Is(err, qcow2.ErrNoDirect) {
		return d, fmt.Errorf("%w: %s", err, without)
	}
	if err == nil {
		err = checkDirect(o.image, d, o.blockSize, h.ClusterSize(), without)
	}
	return d, err
}

// checkDirect refuses what direct I/O on the image file could not do; without
// says how to do without it.
func checkDirect(image string, d qcow2.Direct, blockSize int, clusterSize int64, without string) error {
	aligned := without
	if blockSize < 4096 && max(d.Offset, d.Memory) <= 4096 {
		aligned = "use --block-size 4096, or " + without
	}
	switch {
	case d.Offset > blockSize:
		return fmt.Errorf("%s: its file system does direct I/O in multiples of %d bytes and the device's blocks would be %d: %s", image, d.Offset, blockSize, aligned)
	case d.Memory > blockSize:
		return fmt.Errorf("%s: its file system does direct I/O with memory aligned to %d bytes and the device's blocks would be %d: %s", image, d.Memory, blockSize, aligned)
	case clusterSize%int64(d.Block) != 0:
		return fmt.Errorf("%s: its clusters of %d bytes are not whole blocks of its file system and the page cache (%d): %s", image, clusterSize, d.Block, without)
	}
	return nil
}
