package ublk

import (
	"fmt"
	"math/bits"
	"unsafe"

	"github.com/qzbd/qzbd/zns"
)

// MaxZones is the largest number of zones of a device. The kernel reads a
// whole report in one request of at most 1 MiB; of a longer one Linux 6.12 to
// 7.3 mix up the entries, and 7.2 can crash.
const MaxZones = 16384

// Limits of the kernel.
const (
	maxZoneSize = 1 << 40 // chunk_sectors is 32 bits wide
	// minTransfer is a page: the smallest zone, and the step of MaxIO.
	minTransfer = 4096
	// maxWriteZeroes keeps the length of a write-zeroes in its 32-bit result.
	maxWriteZeroes = 1 << 30
	physicalShift  = 12
)

// check validates what the caller chose.
func (c Config) check(g zns.Geometry) error {
	switch {
	case c.ID < -1 || c.ID >= 1<<20:
		return fmt.Errorf("ublk: device id %d is impossible: use 0 to %d, or -1 for any", c.ID, 1<<20-1)
	case c.Queues < 1 || c.Queues > maxNrQueues:
		return fmt.Errorf("ublk: %d queues are impossible: use 1 to %d", c.Queues, maxNrQueues)
	case c.Depth < 1 || c.Depth > maxQueueDepth:
		return fmt.Errorf("ublk: a queue depth of %d is impossible: use 1 to %d", c.Depth, maxQueueDepth)
	case c.MaxIO < minTransfer || c.MaxIO > maxIOBuf || c.MaxIO%minTransfer != 0:
		return fmt.Errorf("ublk: a largest request of %d bytes is impossible: use a multiple of %d up to %d", c.MaxIO, minTransfer, maxIOBuf)
	case c.DataAlign < 1 || c.DataAlign > int(g.BlockSize):
		return fmt.Errorf("ublk: the data file takes multiples of %d bytes only and blocks are %d: use larger blocks, or no direct I/O", c.DataAlign, g.BlockSize)
	case c.DataFD < 0:
		return fmt.Errorf("ublk: the data file's descriptor is %d: open the file first", c.DataFD)
	}
	return nil
}

// deviceParams turns a geometry into what SET_PARAMS takes. Whatever the
// kernel would refuse there or, worse, at START_DEV is refused here (I13).
func deviceParams(c Config, g zns.Geometry) (params, error) {
	if err := c.check(g); err != nil {
		return params{}, err
	}
	if err := CheckGeometry(g); err != nil {
		return params{}, err
	}
	if need := (int(g.NrZones)*blkZoneSize + minTransfer - 1) &^ (minTransfer - 1); need > c.MaxIO {
		return params{}, fmt.Errorf("ublk: the report of %d zones takes %d bytes and must fit one request of at most %d: raise the largest request", g.NrZones, need, c.MaxIO)
	}
	p := params{
		Len:   uint32(unsafe.Sizeof(params{})),
		Types: paramBasic | paramDiscard | paramZoned,
		Basic: paramsBasic{
			// Not ROTATIONAL: Linux 7.2 would send one write at a time.
			Attrs:         attrVolatileCache | attrFUA,
			LogicalShift:  uint8(bits.TrailingZeros32(g.BlockSize)),
			PhysicalShift: physicalShift,
			// IOOptShift stays 0: 4096 makes btrfs split its appends.
			IOMinShift:   physicalShift,
			MaxSectors:   uint32(c.MaxIO >> sectorShift),
			ChunkSectors: uint32(g.ZoneSize >> sectorShift),
			DevSectors:   g.Size >> sectorShift,
		},
		// No discard: a zone is reset. The granularity must be there all
		// the same.
		Discard: paramsDiscard{
			Granularity:           1 << physicalShift,
			MaxWriteZeroesSectors: uint32(min(g.ZoneSize, maxWriteZeroes) >> sectorShift),
		},
		Zoned: paramsZoned{
			MaxZoneAppendSectors: uint32(min(g.MaxAppend, uint64(c.MaxIO), g.ZoneCapacity) &^ uint64(g.BlockSize-1) >> sectorShift),
		},
	}
	if c.ReadOnly {
		p.Basic.Attrs |= attrReadOnly
	}
	p.Zoned.MaxOpenZones, p.Zoned.MaxActiveZones = zoneLimits(g)
	return p, nil
}

// alignMemory has the kernel refuse direct I/O from memory that is not aligned to
// blocks, where data goes straight past the page cache: whatever disk is below gets
// that memory, and not every one is right about what it can do with other. A
// copying device takes any.
func (p *params) alignMemory(c Config, f Features) {
	if c.DataAlign > 1 && f.Has(zeroCopyFeatures) {
		p.Types |= paramDMAAlign
		p.DMA.Alignment = 1<<p.Basic.LogicalShift - 1
	}
}

// zoneLimits are the limits as the kernel wants them: 0 where there are no
// more sequential zones than that, and not more open than active ones.
func zoneLimits(g zns.Geometry) (open, active uint32) {
	open, active = g.MaxOpen, g.MaxActive
	seq := g.NrZones - g.Conventional
	if active >= seq {
		active = 0
	}
	if active != 0 && open > active {
		open = active
	}
	if open >= seq {
		open = 0
	}
	return open, active
}

// CheckGeometry validates what the kernel demands of a zoned device as a whole,
// as Start does, too.
func CheckGeometry(g zns.Geometry) error {
	switch {
	case g.BlockSize != 512 && g.BlockSize != 4096:
		return fmt.Errorf("ublk: a block size of %d is impossible: use 512 or 4096", g.BlockSize)
	case g.ZoneSize == 0 || g.ZoneSize&(g.ZoneSize-1) != 0:
		return fmt.Errorf("ublk: the zone size of %d bytes is not a power of two: such an image cannot be a Linux block device", g.ZoneSize)
	case g.ZoneSize < minTransfer || g.ZoneSize > maxZoneSize:
		return fmt.Errorf("ublk: the zone size of %d bytes is impossible: the kernel takes %d to %d", g.ZoneSize, minTransfer, int64(maxZoneSize))
	case g.NrZones == 0:
		return fmt.Errorf("ublk: the device of %d bytes has no whole zone of %d: use a larger image", g.Size, g.ZoneSize)
	case g.NrZones > MaxZones:
		return fmt.Errorf("ublk: %d zones are more than the kernel reports safely: use at most %d, with larger zones", g.NrZones, MaxZones)
	case g.Size != uint64(g.NrZones)*g.ZoneSize:
		return fmt.Errorf("ublk: the device of %d bytes is not %d whole zones of %d: the last zone must not be short", g.Size, g.NrZones, g.ZoneSize)
	case g.Conventional >= g.NrZones:
		return fmt.Errorf("ublk: %d of %d zones are conventional: at least one must be sequential", g.Conventional, g.NrZones)
	case g.ZoneCapacity == 0 || g.ZoneCapacity > g.ZoneSize:
		return fmt.Errorf("ublk: the zone capacity of %d bytes is impossible: use 1 to the zone size of %d", g.ZoneCapacity, g.ZoneSize)
	case g.ZoneCapacity%uint64(g.BlockSize) != 0:
		return fmt.Errorf("ublk: the zone capacity of %d bytes is not a multiple of the block size %d: use a block size of 512", g.ZoneCapacity, g.BlockSize)
	case g.MaxAppend < uint64(g.BlockSize):
		return fmt.Errorf("ublk: the zone append limit of %d bytes is less than a block of %d: the kernel demands zone append", g.MaxAppend, g.BlockSize)
	}
	return nil
}

// checkZones validates every zone of the report that the kernel will ask for
// (blk_revalidate_disk_zones).
func checkZones(g zns.Geometry, zone func(uint32) zns.Zone) error {
	for i := range g.NrZones {
		if err := checkZone(g, i, zone(i)); err != nil {
			return fmt.Errorf("ublk: zone %d: %w: repair the image", i, err)
		}
	}
	return nil
}

func checkZone(g zns.Geometry, i uint32, z zns.Zone) error {
	capacity := g.ZoneCapacity
	wantType := zns.TypeSeqWriteReq
	if i < g.Conventional {
		capacity, wantType = g.ZoneSize, zns.TypeConventional
	}
	switch {
	case z.Start != uint64(i)*g.ZoneSize:
		return fmt.Errorf("it starts at byte %d instead of %d", z.Start, uint64(i)*g.ZoneSize)
	case z.Len != g.ZoneSize:
		return fmt.Errorf("its length is %d instead of %d", z.Len, g.ZoneSize)
	case z.Type != wantType:
		return fmt.Errorf("its type is %d instead of %d", z.Type, wantType)
	case z.Capacity != capacity:
		return fmt.Errorf("its capacity is %d instead of %d", z.Capacity, capacity)
	}
	end := z.Start + z.Capacity
	switch z.Cond {
	case zns.CondNotWP:
		if z.Type != zns.TypeConventional {
			return fmt.Errorf("it is sequential and in condition %v", z.Cond)
		}
		return nil
	case zns.CondEmpty, zns.CondImpOpen, zns.CondExpOpen, zns.CondClosed, zns.CondReadOnly, zns.CondFull, zns.CondOffline:
		if z.Type == zns.TypeConventional {
			return fmt.Errorf("it is conventional and in condition %v", z.Cond)
		}
	default:
		return fmt.Errorf("its condition %v is unknown", z.Cond)
	}
	switch {
	case z.Cond == zns.CondReadOnly, z.Cond == zns.CondOffline:
		return nil // the report shows no write pointer
	case z.WP < z.Start || z.WP > end:
		return fmt.Errorf("its write pointer %d lies outside %d to %d", z.WP, z.Start, end)
	case z.WP%uint64(g.BlockSize) != 0:
		return fmt.Errorf("its write pointer %d is not a multiple of the block size %d", z.WP, g.BlockSize)
	case z.Cond == zns.CondEmpty && z.WP != z.Start:
		return fmt.Errorf("it is empty with its write pointer at %d", z.WP)
	case z.Cond == zns.CondFull && z.WP != end:
		return fmt.Errorf("it is full with its write pointer at %d", z.WP)
	}
	return nil
}
