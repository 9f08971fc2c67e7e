package ublk

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/qzbd/qzbd/zns"
)

//go:generate sh testdata/generate.sh

// abi is what this package believes, by the names that testdata/abi.c prints.
var abi = map[string]uint64{
	"UBLK_U_CMD_GET_QUEUE_AFFINITY":  cmdGetQueueAffinity,
	"UBLK_U_CMD_GET_DEV_INFO":        cmdGetDevInfo,
	"UBLK_U_CMD_ADD_DEV":             cmdAddDev,
	"UBLK_U_CMD_DEL_DEV":             cmdDelDev,
	"UBLK_U_CMD_START_DEV":           cmdStartDev,
	"UBLK_U_CMD_STOP_DEV":            cmdStopDev,
	"UBLK_U_CMD_SET_PARAMS":          cmdSetParams,
	"UBLK_U_CMD_GET_PARAMS":          cmdGetParams,
	"UBLK_U_CMD_START_USER_RECOVERY": cmdStartUserRecovery,
	"UBLK_U_CMD_END_USER_RECOVERY":   cmdEndUserRecovery,
	"UBLK_U_CMD_GET_DEV_INFO2":       cmdGetDevInfo2,
	"UBLK_U_CMD_GET_FEATURES":        cmdGetFeatures,
	"UBLK_U_CMD_DEL_DEV_ASYNC":       cmdDelDevAsync,
	"UBLK_U_CMD_UPDATE_SIZE":         cmdUpdateSize,
	"UBLK_U_CMD_QUIESCE_DEV":         cmdQuiesceDev,
	"UBLK_U_CMD_TRY_STOP_DEV":        cmdTryStopDev,
	"UBLK_U_IO_FETCH_REQ":            ioFetchReq,
	"UBLK_U_IO_COMMIT_AND_FETCH_REQ": ioCommitAndFetchReq,
	"UBLK_IO_RES_OK":                 ioResOK,
	"-UBLK_IO_RES_ABORT":             -ioResAbort,

	"UBLK_F_SUPPORT_ZERO_COPY":      uint64(fSupportZeroCopy),
	"UBLK_F_URING_CMD_COMP_IN_TASK": uint64(fURingCmdCompInTask),
	"UBLK_F_NEED_GET_DATA":          uint64(fNeedGetData),
	"UBLK_F_USER_RECOVERY":          uint64(fUserRecovery),
	"UBLK_F_USER_RECOVERY_REISSUE":  uint64(fUserRecoveryReissue),
	"UBLK_F_UNPRIVILEGED_DEV":       uint64(fUnprivilegedDev),
	"UBLK_F_CMD_IOCTL_ENCODE":       uint64(fCmdIoctlEncode),
	"UBLK_F_USER_COPY":              uint64(fUserCopy),
	"UBLK_F_ZONED":                  uint64(fZoned),
	"UBLK_F_USER_RECOVERY_FAIL_IO":  uint64(fUserRecoveryFailIO),
	"UBLK_F_UPDATE_SIZE":            uint64(fUpdateSize),
	"UBLK_F_AUTO_BUF_REG":           uint64(fAutoBufReg),
	"UBLK_F_QUIESCE":                uint64(fQuiesce),
	"UBLK_F_PER_IO_DAEMON":          uint64(fPerIODaemon),
	"UBLK_F_BUF_REG_OFF_DAEMON":     uint64(fBufRegOffDaemon),
	"UBLK_F_BATCH_IO":               uint64(fBatchIO),
	"UBLK_F_INTEGRITY":              uint64(fIntegrity),
	"UBLK_F_SAFE_STOP_DEV":          uint64(fSafeStopDev),
	"UBLK_F_NO_AUTO_PART_SCAN":      uint64(fNoAutoPartScan),
	"UBLK_F_SHMEM_ZC":               uint64(fShmemZC),

	"UBLK_S_DEV_DEAD":     uint64(StateDead),
	"UBLK_S_DEV_LIVE":     uint64(StateLive),
	"UBLK_S_DEV_QUIESCED": uint64(StateQuiesced),
	"UBLK_S_DEV_FAIL_IO":  uint64(StateFailIO),

	"UBLK_PARAM_TYPE_BASIC":     paramBasic,
	"UBLK_PARAM_TYPE_DISCARD":   paramDiscard,
	"UBLK_PARAM_TYPE_DEVT":      paramDevt,
	"UBLK_PARAM_TYPE_ZONED":     paramZoned,
	"UBLK_PARAM_TYPE_DMA_ALIGN": paramDMAAlign,
	"UBLK_PARAM_TYPE_SEGMENT":   paramSegment,
	"UBLK_ATTR_READ_ONLY":       attrReadOnly,
	"UBLK_ATTR_ROTATIONAL":      attrRotational,
	"UBLK_ATTR_VOLATILE_CACHE":  attrVolatileCache,
	"UBLK_ATTR_FUA":             attrFUA,

	"UBLK_IO_OP_READ":            opRead,
	"UBLK_IO_OP_WRITE":           opWrite,
	"UBLK_IO_OP_FLUSH":           opFlush,
	"UBLK_IO_OP_DISCARD":         opDiscard,
	"UBLK_IO_OP_WRITE_ZEROES":    opWriteZeroes,
	"UBLK_IO_OP_ZONE_OPEN":       opZoneOpen,
	"UBLK_IO_OP_ZONE_CLOSE":      opZoneClose,
	"UBLK_IO_OP_ZONE_FINISH":     opZoneFinish,
	"UBLK_IO_OP_ZONE_APPEND":     opZoneAppend,
	"UBLK_IO_OP_ZONE_RESET_ALL":  opZoneResetAll,
	"UBLK_IO_OP_ZONE_RESET":      opZoneReset,
	"UBLK_IO_OP_REPORT_ZONES":    opReportZones,
	"UBLK_IO_F_FUA":              flagFUA,
	"UBLK_IO_F_NEED_REG_BUF":     flagNeedRegBuf,
	"UBLK_AUTO_BUF_REG_FALLBACK": autoBufFallback >> 16,

	"UBLK_MAX_QUEUE_DEPTH":   maxQueueDepth,
	"UBLK_MAX_NR_QUEUES":     maxNrQueues,
	"UBLKSRV_CMD_BUF_OFFSET": 0,
	"UBLKSRV_IO_BUF_OFFSET":  ioBufOffset,
	"UBLK_IO_BUF_BITS":       ioBufBits,
	"UBLK_TAG_OFF":           tagOff,
	"UBLK_TAG_BITS":          tagBits,
	"UBLK_QID_OFF":           qidOff,

	"sizeof(ublksrv_ctrl_cmd)":      uint64(unsafe.Sizeof(ctrlCmd{})),
	"ublksrv_ctrl_cmd.dev_id":       uint64(unsafe.Offsetof(ctrlCmd{}.DevID)),
	"ublksrv_ctrl_cmd.queue_id":     uint64(unsafe.Offsetof(ctrlCmd{}.QueueID)),
	"ublksrv_ctrl_cmd.len":          uint64(unsafe.Offsetof(ctrlCmd{}.Len)),
	"ublksrv_ctrl_cmd.addr":         uint64(unsafe.Offsetof(ctrlCmd{}.Addr)),
	"ublksrv_ctrl_cmd.data":         uint64(unsafe.Offsetof(ctrlCmd{}.Data)),
	"ublksrv_ctrl_cmd.dev_path_len": uint64(unsafe.Offsetof(ctrlCmd{}.DevPathLen)),

	"sizeof(ublksrv_ctrl_dev_info)":          uint64(unsafe.Sizeof(devInfo{})),
	"ublksrv_ctrl_dev_info.nr_hw_queues":     uint64(unsafe.Offsetof(devInfo{}.NrHWQueues)),
	"ublksrv_ctrl_dev_info.queue_depth":      uint64(unsafe.Offsetof(devInfo{}.QueueDepth)),
	"ublksrv_ctrl_dev_info.state":            uint64(unsafe.Offsetof(devInfo{}.State)),
	"ublksrv_ctrl_dev_info.max_io_buf_bytes": uint64(unsafe.Offsetof(devInfo{}.MaxIOBufBytes)),
	"ublksrv_ctrl_dev_info.dev_id":           uint64(unsafe.Offsetof(devInfo{}.DevID)),
	"ublksrv_ctrl_dev_info.ublksrv_pid":      uint64(unsafe.Offsetof(devInfo{}.SrvPID)),
	"ublksrv_ctrl_dev_info.flags":            uint64(unsafe.Offsetof(devInfo{}.Flags)),
	"ublksrv_ctrl_dev_info.ublksrv_flags":    uint64(unsafe.Offsetof(devInfo{}.SrvFlags)),
	"ublksrv_ctrl_dev_info.owner_uid":        uint64(unsafe.Offsetof(devInfo{}.OwnerUID)),
	"ublksrv_ctrl_dev_info.owner_gid":        uint64(unsafe.Offsetof(devInfo{}.OwnerGID)),

	"sizeof(ublksrv_io_desc)":      uint64(unsafe.Sizeof(ioDesc{})),
	"ublksrv_io_desc.op_flags":     uint64(unsafe.Offsetof(ioDesc{}.OpFlags)),
	"ublksrv_io_desc.nr_sectors":   uint64(unsafe.Offsetof(ioDesc{}.NrSectors)),
	"ublksrv_io_desc.nr_zones":     uint64(unsafe.Offsetof(ioDesc{}.NrSectors)),
	"ublksrv_io_desc.start_sector": uint64(unsafe.Offsetof(ioDesc{}.StartSector)),
	"ublksrv_io_desc.addr":         uint64(unsafe.Offsetof(ioDesc{}.Addr)),

	"sizeof(ublksrv_io_cmd)":         uint64(unsafe.Sizeof(ioCmd{})),
	"ublksrv_io_cmd.q_id":            uint64(unsafe.Offsetof(ioCmd{}.QID)),
	"ublksrv_io_cmd.tag":             uint64(unsafe.Offsetof(ioCmd{}.Tag)),
	"ublksrv_io_cmd.result":          uint64(unsafe.Offsetof(ioCmd{}.Result)),
	"ublksrv_io_cmd.addr":            uint64(unsafe.Offsetof(ioCmd{}.Addr)),
	"ublksrv_io_cmd.zone_append_lba": uint64(unsafe.Offsetof(ioCmd{}.Addr)),

	"sizeof(ublk_params)":                          uint64(unsafe.Sizeof(params{})),
	"ublk_params.len":                              uint64(unsafe.Offsetof(params{}.Len)),
	"ublk_params.types":                            uint64(unsafe.Offsetof(params{}.Types)),
	"ublk_params.devt":                             uint64(unsafe.Offsetof(params{}.Devt)),
	"ublk_params.integrity":                        uint64(unsafe.Offsetof(params{}.Integrity)),
	"ublk_params.dma.alignment":                    uint64(unsafe.Offsetof(params{}.DMA)),
	"ublk_params.basic.attrs":                      basicAt(unsafe.Offsetof(paramsBasic{}.Attrs)),
	"ublk_params.basic.logical_bs_shift":           basicAt(unsafe.Offsetof(paramsBasic{}.LogicalShift)),
	"ublk_params.basic.physical_bs_shift":          basicAt(unsafe.Offsetof(paramsBasic{}.PhysicalShift)),
	"ublk_params.basic.io_opt_shift":               basicAt(unsafe.Offsetof(paramsBasic{}.IOOptShift)),
	"ublk_params.basic.io_min_shift":               basicAt(unsafe.Offsetof(paramsBasic{}.IOMinShift)),
	"ublk_params.basic.max_sectors":                basicAt(unsafe.Offsetof(paramsBasic{}.MaxSectors)),
	"ublk_params.basic.chunk_sectors":              basicAt(unsafe.Offsetof(paramsBasic{}.ChunkSectors)),
	"ublk_params.basic.dev_sectors":                basicAt(unsafe.Offsetof(paramsBasic{}.DevSectors)),
	"ublk_params.basic.virt_boundary_mask":         basicAt(unsafe.Offsetof(paramsBasic{}.VirtBoundaryMask)),
	"ublk_params.discard.max_discard_sectors":      discardAt(unsafe.Offsetof(paramsDiscard{}.MaxDiscardSectors)),
	"ublk_params.discard.max_write_zeroes_sectors": discardAt(unsafe.Offsetof(paramsDiscard{}.MaxWriteZeroesSectors)),
	"ublk_params.discard.max_discard_segments":     discardAt(unsafe.Offsetof(paramsDiscard{}.MaxDiscardSegments)),
	"ublk_params.zoned.max_open_zones":             zonedAt(unsafe.Offsetof(paramsZoned{}.MaxOpenZones)),
	"ublk_params.zoned.max_active_zones":           zonedAt(unsafe.Offsetof(paramsZoned{}.MaxActiveZones)),
	"ublk_params.zoned.max_zone_append_sectors":    zonedAt(unsafe.Offsetof(paramsZoned{}.MaxZoneAppendSectors)),
	"ublk_params.seg.seg_boundary_mask":            segmentAt(unsafe.Offsetof(paramsSegment{}.BoundaryMask)),
	"ublk_params.seg.max_segment_size":             segmentAt(unsafe.Offsetof(paramsSegment{}.MaxSegmentSize)),
	"ublk_params.seg.max_segments":                 segmentAt(unsafe.Offsetof(paramsSegment{}.MaxSegments)),

	"sizeof(blk_zone)":  uint64(unsafe.Sizeof(blkZone{})),
	"blk_zone.start":    uint64(unsafe.Offsetof(blkZone{}.Start)),
	"blk_zone.len":      uint64(unsafe.Offsetof(blkZone{}.Len)),
	"blk_zone.wp":       uint64(unsafe.Offsetof(blkZone{}.WP)),
	"blk_zone.type":     uint64(unsafe.Offsetof(blkZone{}.Type)),
	"blk_zone.cond":     uint64(unsafe.Offsetof(blkZone{}.Cond)),
	"blk_zone.non_seq":  uint64(unsafe.Offsetof(blkZone{}.NonSeq)),
	"blk_zone.reset":    uint64(unsafe.Offsetof(blkZone{}.Reset)),
	"blk_zone.capacity": uint64(unsafe.Offsetof(blkZone{}.Capacity)),

	"BLK_ZONE_TYPE_CONVENTIONAL": uint64(zns.TypeConventional),
	"BLK_ZONE_TYPE_SEQWRITE_REQ": uint64(zns.TypeSeqWriteReq),
	"BLK_ZONE_COND_NOT_WP":       uint64(zns.CondNotWP),
	"BLK_ZONE_COND_EMPTY":        uint64(zns.CondEmpty),
	"BLK_ZONE_COND_IMP_OPEN":     uint64(zns.CondImpOpen),
	"BLK_ZONE_COND_EXP_OPEN":     uint64(zns.CondExpOpen),
	"BLK_ZONE_COND_CLOSED":       uint64(zns.CondClosed),
	"BLK_ZONE_COND_READONLY":     uint64(zns.CondReadOnly),
	"BLK_ZONE_COND_FULL":         uint64(zns.CondFull),
	"BLK_ZONE_COND_OFFLINE":      uint64(zns.CondOffline),
}

func basicAt(off uintptr) uint64   { return uint64(unsafe.Offsetof(params{}.Basic) + off) }
func discardAt(off uintptr) uint64 { return uint64(unsafe.Offsetof(params{}.Discard) + off) }
func zonedAt(off uintptr) uint64   { return uint64(unsafe.Offsetof(params{}.Zoned) + off) }
func segmentAt(off uintptr) uint64 { return uint64(unsafe.Offsetof(params{}.Segment) + off) }

// An older kernel has a shorter structure and takes what it knows of ours.
const paramsSizeOld = 112 // sizeof(struct ublk_params) in Linux 6.12

func TestTheABIIsTheKernels(t *testing.T) {
	tables, err := filepath.Glob("testdata/abi-*.txt")
	if err != nil || len(tables) < 2 {
		t.Fatalf("tables %v (%v), want those of Linux 6.12 and 7.2 at least", tables, err)
	}
	seen := map[string]bool{}
	for _, name := range tables {
		t.Run(filepath.Base(name), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			for _, line := range lines {
				var field string
				var want uint64
				if _, err := fmt.Sscan(line, &field, &want); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				seen[field] = true
				got, ok := abi[field]
				switch {
				case !ok:
					t.Errorf("%s is in the table and not in this package", field)
				case field == "sizeof(ublk_params)" && want == paramsSizeOld:
				case got != want:
					t.Errorf("%s is %d here, %d in the kernel", field, got, want)
				}
			}
		})
	}
	for field := range abi {
		if !seen[field] {
			t.Errorf("%s is in no table", field)
		}
	}
}

func TestDescriptorsOfEveryQueueHaveTheirPlace(t *testing.T) {
	if descShare != 98304 {
		t.Errorf("a queue's share is %d", descShare)
	}
	if got, want := copyPos(3, 5), int64(0x80000000)+3<<41+5<<25; got != want {
		t.Errorf("position %#x, want %#x", got, want)
	}
}
