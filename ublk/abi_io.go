package ublk

import (
	"structs"
	"unsafe"
)

// The I/O half of the ABI: include/uapi/linux/ublk_cmd.h and blkzoned.h.

// I/O commands (cmd_op of a URING_CMD on /dev/ublkcN).
const (
	ioFetchReq          = 0xc0107520 // UBLK_U_IO_FETCH_REQ
	ioCommitAndFetchReq = 0xc0107521 // UBLK_U_IO_COMMIT_AND_FETCH_REQ
)

// Results of an I/O command.
const (
	ioResOK    = 0   // UBLK_IO_RES_OK
	ioResAbort = -19 // UBLK_IO_RES_ABORT: the tag is finished
)

// ioCmd is struct ublksrv_io_cmd. Addr is also zone_append_lba, or the index of a
// registered buffer.
type ioCmd struct {
	_      structs.HostLayout
	QID    uint16
	Tag    uint16
	Result int32
	Addr   uint64
}

// ioDesc is struct ublksrv_io_desc: what the kernel wants of a tag. NrSectors
// is also nr_zones.
type ioDesc struct {
	_           structs.HostLayout
	OpFlags     uint32
	NrSectors   uint32
	StartSector sector
	Addr        uint64
}

// blkZone is struct blk_zone: an entry of a zone report.
type blkZone struct {
	_        structs.HostLayout
	Start    sector
	Len      sector
	WP       sector
	Type     uint8
	Cond     uint8
	NonSeq   uint8
	Reset    uint8
	_        [4]byte
	Capacity sector
	_        [24]byte
}

const (
	ioDescSize  = 24
	blkZoneSize = 64
)

var (
	_ = [1]int{}[unsafe.Sizeof(ioCmd{})-16]
	_ = [1]int{}[unsafe.Sizeof(ioDesc{})-ioDescSize]
	_ = [1]int{}[unsafe.Sizeof(blkZone{})-blkZoneSize]
	_ = [1]int{}[unsafe.Offsetof(blkZone{}.Capacity)-32]
)

// Operations: ioDesc.OpFlags, bits 0 to 7.
const (
	opRead         = 0  // UBLK_IO_OP_READ
	opWrite        = 1  // UBLK_IO_OP_WRITE
	opFlush        = 2  // UBLK_IO_OP_FLUSH
	opDiscard      = 3  // UBLK_IO_OP_DISCARD
	opWriteZeroes  = 5  // UBLK_IO_OP_WRITE_ZEROES
	opZoneOpen     = 10 // UBLK_IO_OP_ZONE_OPEN
	opZoneClose    = 11 // UBLK_IO_OP_ZONE_CLOSE
	opZoneFinish   = 12 // UBLK_IO_OP_ZONE_FINISH
	opZoneAppend   = 13 // UBLK_IO_OP_ZONE_APPEND
	opZoneResetAll = 14 // UBLK_IO_OP_ZONE_RESET_ALL
	opZoneReset    = 15 // UBLK_IO_OP_ZONE_RESET
	opReportZones  = 18 // UBLK_IO_OP_REPORT_ZONES
	opMask         = 0xff
)

// Bits of ioDesc.OpFlags as they stand.
const (
	flagFUA        = 1 << 13 // UBLK_IO_F_FUA
	flagNeedRegBuf = 1 << 17 // UBLK_IO_F_NEED_REG_BUF: the buffer could not be registered
)

// autoBufFallback is UBLK_AUTO_BUF_REG_FALLBACK in a fetch's struct
// ublk_auto_buf_reg: the index in bits 0 to 15, the flags in bits 16 to 23.
const autoBufFallback = 1 << 16

// The descriptors of a queue are mapped read-only from /dev/ublkcN at
// UBLKSRV_CMD_BUF_OFFSET plus the queue's share, which is as large as the
// deepest queue needs.
const (
	maxQueueDepth = 4096 // UBLK_MAX_QUEUE_DEPTH
	maxNrQueues   = 4096 // UBLK_MAX_NR_QUEUES
	descShare     = (maxQueueDepth*ioDescSize + 4095) &^ 4095
)

// The data of a request is read and written at a position of /dev/ublkcN that
// names queue, tag and byte.
const (
	ioBufOffset = 0x80000000         // UBLKSRV_IO_BUF_OFFSET
	ioBufBits   = 25                 // UBLK_IO_BUF_BITS: 32 MiB per request
	tagOff      = ioBufBits          // UBLK_TAG_OFF
	tagBits     = 16                 // UBLK_TAG_BITS
	qidOff      = tagOff + tagBits   // UBLK_QID_OFF
	maxIOBuf    = 1 << ioBufBits     // what user copy can address
	copyBase    = int64(ioBufOffset) // of queue 0, tag 0
)

// copyPos is the position of a request's first byte.
func copyPos(qid, tag uint16) int64 {
	return copyBase + int64(qid)<<qidOff + int64(tag)<<tagOff
}

// sector is the kernel's unit: 512 bytes, as a position or a count.
type sector uint64

const (
	sectorShift = 9
	// noSector is what the kernel calls an invalid write pointer.
	noSector = ^sector(0)
)

// sectorsOf converts bytes, a multiple of 512.
func sectorsOf(bytes uint64) sector { return sector(bytes >> sectorShift) }

func (s sector) bytes() uint64 { return uint64(s) << sectorShift }
