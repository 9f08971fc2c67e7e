package main

import (
	"fmt"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

// geometry is the image's zones as the device shows them. wps are the write
// pointers.
func geometry(h *qcow2.Header, wps []uint64, o *attachOptions) (zns.Geometry, error) {
	z, blockSize := h.Zoned, uint32(o.blockSize)
	size := h.Size
	if short := size % z.ZoneSize; short != 0 {
		if !o.dropShortZone {
			return zns.Geometry{}, fmt.Errorf("the last of its %d zones is short (%d of %d bytes), which no Linux kernel serves: attach it without that zone with --drop-short-zone; info, zones and check work on the file", z.NrZones, short, z.ZoneSize)
		}
		if err := dropLastZone(h, &z, wps[z.NrZones-1]); err != nil {
			return zns.Geometry{}, err
		}
		size -= short
	}
	maxAppend := z.MaxAppend &^ (blockSize - 1)
	switch {
	case z.MaxAppend == 0: // no limit of its own: the device's largest request
		maxAppend = ublk.DefaultMaxIO
	case maxAppend == 0:
		return zns.Geometry{}, fmt.Errorf("zone.max_append_bytes %d is less than a block of %d: attach it with --block-size 512", z.MaxAppend, blockSize)
	}
	for i, wp := range wps[:z.NrZones] {
		if wp%uint64(blockSize) != 0 && wp < h.ZoneStart(uint32(i))+z.ZoneCapacity {
			return zns.Geometry{}, fmt.Errorf("the write pointer of zone %d, %#x, is not at a multiple of %d: attach it with --block-size 512", i, wp, blockSize)
		}
	}
	return zns.Geometry{
		Size: size, ZoneSize: z.ZoneSize, ZoneCapacity: z.ZoneCapacity,
		NrZones: z.NrZones, Conventional: z.Conventional,
		MaxOpen: z.MaxOpen, MaxActive: z.MaxActive, MaxAppend: uint64(maxAppend),
		BlockSize: blockSize,
	}, nil
}

// dropLastZone takes the short last zone, whose write pointer is wp, out of z.
// The image keeps it as it is: where it is neither empty nor full it counts as
// active (I15), so that the device may have one active zone less.
func dropLastZone(h *qcow2.Header, z *qcow2.Zoned, wp uint64) error {
	z.NrZones--
	if z.NrZones <= z.Conventional {
		return fmt.Errorf("without its short last zone no sequential zone is left, and a zoned device needs one: it has %d zones, %d of them conventional", h.Zoned.NrZones, z.Conventional)
	}
	start := h.ZoneStart(z.NrZones)
	if z.MaxActive == 0 || wp == start || wp >= start+h.ZoneCapacity(z.NrZones) {
		return nil
	}
	if z.MaxActive == 1 {
		return fmt.Errorf("its short last zone is neither empty nor full and max_active_zones is 1: without that zone no other could be written")
	}
	z.MaxActive--
	z.MaxOpen = min(z.MaxOpen, z.MaxActive)
	return nil
}
