package ublk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/zns"
)

// The user's side of a zone report, include/uapi/linux/blkzoned.h: what any
// program sees of a zoned block device.
const (
	blkReportZone   = 0xc0101282 // BLKREPORTZONE
	blkGetNrZones   = 0x80041285 // BLKGETNRZONES
	reportHeaderLen = 16         // struct blk_zone_report without zones
	reportEntryLen  = 64         // struct blk_zone
	reportBatch     = 4096       // zones asked for at a time, as blkzone does
)

// ReportZones asks the kernel for the zones of the block device at path. Write
// pointers that the kernel leaves undefined are filled in as zns.Zone says.
func ReportZones(path string) ([]zns.Zone, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var nr uint32
	if err := ioctl(f, blkGetNrZones, unsafe.Pointer(&nr)); err != nil {
		if errors.Is(err, unix.ENOTTY) {
			return nil, fmt.Errorf("%s is not a block device", path)
		}
		return nil, fmt.Errorf("number of zones of %s: %w", path, err)
	}
	if nr == 0 {
		return nil, fmt.Errorf("%s is not a zoned block device", path)
	}
	zones := make([]zns.Zone, 0, nr)
	buf := make([]byte, reportHeaderLen+reportBatch*reportEntryLen)
	for next := uint64(0); uint32(len(zones)) < nr; {
		binary.NativeEndian.PutUint64(buf[0:], next)
		binary.NativeEndian.PutUint32(buf[8:], reportBatch)
		if err := ioctl(f, blkReportZone, unsafe.Pointer(&buf[0])); err != nil {
			return nil, fmt.Errorf("report zones of %s: %w", path, err)
		}
		n := binary.NativeEndian.Uint32(buf[8:])
		if n == 0 || n > reportBatch {
			return nil, fmt.Errorf("report zones of %s from sector %d: the kernel returned %d zones", path, next, n)
		}
		for i := range int(n) {
			z := decodeZone(buf[reportHeaderLen+i*reportEntryLen:])
			zones = append(zones, z)
			next = (z.Start + z.Len) / zns.SectorSize
		}
	}
	return zones, nil
}

// decodeZone reads a struct blk_zone.
func decodeZone(b []byte) zns.Zone {
	u64 := func(off int) uint64 { return binary.NativeEndian.Uint64(b[off:]) * zns.SectorSize }
	z := zns.Zone{
		Start: u64(0), Len: u64(8), WP: u64(16), Capacity: u64(32),
		Type: zns.Type(b[24]), Cond: zns.Cond(b[25]),
	}
	switch z.Cond {
	case zns.CondNotWP, zns.CondReadOnly, zns.CondOffline:
		z.WP = z.Start
	case zns.CondFull:
		z.WP = z.Start + z.Capacity
	}
	return z
}

func ioctl(f *os.File, req uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), req, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}
