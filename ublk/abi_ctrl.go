package ublk

import (
	"structs"
	"unsafe"
)

// The control half of the ABI: include/uapi/linux/ublk_cmd.h. Everything has
// the kernel's name in its comment; abi_test.go compares it with values
// compiled from the headers of several kernels.

// Control commands, ioctl-encoded (cmd_op of a URING_CMD on
// /dev/ublk-control).
const (
	cmdGetQueueAffinity  = 0x80207501 // UBLK_U_CMD_GET_QUEUE_AFFINITY
	cmdGetDevInfo        = 0x80207502 // UBLK_U_CMD_GET_DEV_INFO
	cmdAddDev            = 0xc0207504 // UBLK_U_CMD_ADD_DEV
	cmdDelDev            = 0xc0207505 // UBLK_U_CMD_DEL_DEV
	cmdStartDev          = 0xc0207506 // UBLK_U_CMD_START_DEV
	cmdStopDev           = 0xc0207507 // UBLK_U_CMD_STOP_DEV
	cmdSetParams         = 0xc0207508 // UBLK_U_CMD_SET_PARAMS
	cmdGetParams         = 0x80207509 // UBLK_U_CMD_GET_PARAMS
	cmdStartUserRecovery = 0xc0207510 // UBLK_U_CMD_START_USER_RECOVERY
	cmdEndUserRecovery   = 0xc0207511 // UBLK_U_CMD_END_USER_RECOVERY
	cmdGetDevInfo2       = 0x80207512 // UBLK_U_CMD_GET_DEV_INFO2
	cmdGetFeatures       = 0x80207513 // UBLK_U_CMD_GET_FEATURES
	cmdDelDevAsync       = 0x80207514 // UBLK_U_CMD_DEL_DEV_ASYNC
	cmdUpdateSize        = 0xc0207515 // UBLK_U_CMD_UPDATE_SIZE
	cmdQuiesceDev        = 0xc0207516 // UBLK_U_CMD_QUIESCE_DEV
	cmdTryStopDev        = 0xc0207517 // UBLK_U_CMD_TRY_STOP_DEV
)

// ctrlCmd is struct ublksrv_ctrl_cmd.
type ctrlCmd struct {
	_          structs.HostLayout
	DevID      uint32
	QueueID    uint16 // noQueue unless the command is for a queue
	Len        uint16 // of what Addr points to
	Addr       uint64
	Data       uint64
	DevPathLen uint16 // of the path that a buffer begins with, with its NUL
	_          uint16
	_          uint32
}

const (
	noQueue = 0xffff
	// newID as DevID asks the kernel to allocate one.
	newID = 0xffffffff
)

// devInfo is struct ublksrv_ctrl_dev_info.
type devInfo struct {
	_             structs.HostLayout
	NrHWQueues    uint16
	QueueDepth    uint16
	State         uint16
	_             uint16
	MaxIOBufBytes uint32
	DevID         uint32
	SrvPID        int32 // ublksrv_pid
	_             uint32
	Flags         uint64
	SrvFlags      uint64 // ublksrv_flags: ours, the driver only keeps it
	OwnerUID      uint32
	OwnerGID      uint32
	_             [2]uint64
}

// Device states (ublksrv_ctrl_dev_info.state).
const (
	StateDead     State = 0 // UBLK_S_DEV_DEAD: not started, or its server died
	StateLive     State = 1 // UBLK_S_DEV_LIVE
	StateQuiesced State = 2 // UBLK_S_DEV_QUIESCED: waits for a new server, requests wait too
	StateFailIO   State = 3 // UBLK_S_DEV_FAIL_IO: waits for a new server, requests fail
)

// Feature bits (ublksrv_ctrl_dev_info.flags, GET_FEATURES).
const (
	fSupportZeroCopy     Features = 1 << 0  // UBLK_F_SUPPORT_ZERO_COPY
	fURingCmdCompInTask  Features = 1 << 1  // UBLK_F_URING_CMD_COMP_IN_TASK
	fNeedGetData         Features = 1 << 2  // UBLK_F_NEED_GET_DATA
	fUserRecovery        Features = 1 << 3  // UBLK_F_USER_RECOVERY
	fUserRecoveryReissue Features = 1 << 4  // UBLK_F_USER_RECOVERY_REISSUE
	fUnprivilegedDev     Features = 1 << 5  // UBLK_F_UNPRIVILEGED_DEV
	fCmdIoctlEncode      Features = 1 << 6  // UBLK_F_CMD_IOCTL_ENCODE
	fUserCopy            Features = 1 << 7  // UBLK_F_USER_COPY
	fZoned               Features = 1 << 8  // UBLK_F_ZONED
	fUserRecoveryFailIO  Features = 1 << 9  // UBLK_F_USER_RECOVERY_FAIL_IO
	fUpdateSize          Features = 1 << 10 // UBLK_F_UPDATE_SIZE
	fAutoBufReg          Features = 1 << 11 // UBLK_F_AUTO_BUF_REG
	fQuiesce             Features = 1 << 12 // UBLK_F_QUIESCE
	fPerIODaemon         Features = 1 << 13 // UBLK_F_PER_IO_DAEMON
	fBufRegOffDaemon     Features = 1 << 14 // UBLK_F_BUF_REG_OFF_DAEMON
	fBatchIO             Features = 1 << 15 // UBLK_F_BATCH_IO
	fIntegrity           Features = 1 << 16 // UBLK_F_INTEGRITY
	fSafeStopDev         Features = 1 << 17 // UBLK_F_SAFE_STOP_DEV
	fNoAutoPartScan      Features = 1 << 18 // UBLK_F_NO_AUTO_PART_SCAN
	fShmemZC             Features = 1 << 19 // UBLK_F_SHMEM_ZC
)

// Kinds of parameters (ublk_params.types).
const (
	paramBasic    = 1 << 0 // UBLK_PARAM_TYPE_BASIC
	paramDiscard  = 1 << 1 // UBLK_PARAM_TYPE_DISCARD
	paramDevt     = 1 << 2 // UBLK_PARAM_TYPE_DEVT
	paramZoned    = 1 << 3 // UBLK_PARAM_TYPE_ZONED
	paramDMAAlign = 1 << 4 // UBLK_PARAM_TYPE_DMA_ALIGN
	paramSegment  = 1 << 5 // UBLK_PARAM_TYPE_SEGMENT
)

// Attributes of a device (ublk_param_basic.attrs).
const (
	attrReadOnly      = 1 << 0 // UBLK_ATTR_READ_ONLY
	attrRotational    = 1 << 1 // UBLK_ATTR_ROTATIONAL
	attrVolatileCache = 1 << 2 // UBLK_ATTR_VOLATILE_CACHE
	attrFUA           = 1 << 3 // UBLK_ATTR_FUA
)

// params is struct ublk_params as of Linux 7.2. An older kernel has less of it
// and takes what it knows.
type params struct {
	_         structs.HostLayout
	Len       uint32
	Types     uint32
	Basic     paramsBasic
	Discard   paramsDiscard
	Devt      paramsDevt
	Zoned     paramsZoned
	DMA       paramsDMA
	_         uint32
	Segment   paramsSegment
	Integrity [16]byte // struct ublk_param_integrity
}

// paramsBasic is struct ublk_param_basic.
type paramsBasic struct {
	_                structs.HostLayout
	Attrs            uint32
	LogicalShift     uint8
	PhysicalShift    uint8
	IOOptShift       uint8
	IOMinShift       uint8
	MaxSectors       uint32
	ChunkSectors     uint32
	DevSectors       uint64
	VirtBoundaryMask uint64
}

// paramsDiscard is struct ublk_param_discard.
type paramsDiscard struct {
	_                     structs.HostLayout
	Alignment             uint32
	Granularity           uint32
	MaxDiscardSectors     uint32
	MaxWriteZeroesSectors uint32
	MaxDiscardSegments    uint16
	_                     uint16
}

// paramsDevt is struct ublk_param_devt; the kernel fills it.
type paramsDevt struct {
	_                                      structs.HostLayout
	CharMajor, CharMinor, DiskMaj, DiskMin uint32
}

// paramsZoned is struct ublk_param_zoned.
type paramsZoned struct {
	_                    structs.HostLayout
	MaxOpenZones         uint32
	MaxActiveZones       uint32
	MaxZoneAppendSectors uint32
	_                    [20]byte
}

// paramsDMA is struct ublk_param_dma_align.
type paramsDMA struct {
	_         structs.HostLayout
	Alignment uint32
	_         uint32
}

// paramsSegment is struct ublk_param_segment.
type paramsSegment struct {
	_              structs.HostLayout
	BoundaryMask   uint64
	MaxSegmentSize uint32
	MaxSegments    uint16
	_              uint16
}

var (
	_ = [1]int{}[unsafe.Sizeof(ctrlCmd{})-32]
	_ = [1]int{}[unsafe.Sizeof(devInfo{})-64]
	_ = [1]int{}[unsafe.Sizeof(params{})-152]
	_ = [1]int{}[unsafe.Offsetof(params{}.Discard)-40]
	_ = [1]int{}[unsafe.Offsetof(params{}.Devt)-60]
	_ = [1]int{}[unsafe.Offsetof(params{}.Zoned)-76]
	_ = [1]int{}[unsafe.Offsetof(params{}.DMA)-108]
	_ = [1]int{}[unsafe.Offsetof(params{}.Segment)-120]
	_ = [1]int{}[unsafe.Offsetof(params{}.Integrity)-136]
)
