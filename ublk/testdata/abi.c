/*
 * Prints the values of the kernel's ublk interface that package ublk uses, one
 * "name value" per line, for the headers it is compiled against. See
 * abi_test.go for how to run it.
 */
#include <stddef.h>
#include <stdio.h>
#include <errno.h>
#include <linux/blkzoned.h>
#include <linux/ublk_cmd.h>

#define V(name) printf("%s %llu\n", #name, (unsigned long long)(name))
#define SIZE(type) printf("sizeof(%s) %zu\n", #type, sizeof(struct type))
#define AT(type, field) \
	printf("%s.%s %zu\n", #type, #field, offsetof(struct type, field))

int main(void)
{
	V(UBLK_U_CMD_GET_QUEUE_AFFINITY);
	V(UBLK_U_CMD_GET_DEV_INFO);
	V(UBLK_U_CMD_ADD_DEV);
	V(UBLK_U_CMD_DEL_DEV);
	V(UBLK_U_CMD_START_DEV);
	V(UBLK_U_CMD_STOP_DEV);
	V(UBLK_U_CMD_SET_PARAMS);
	V(UBLK_U_CMD_GET_PARAMS);
	V(UBLK_U_CMD_START_USER_RECOVERY);
	V(UBLK_U_CMD_END_USER_RECOVERY);
	V(UBLK_U_CMD_GET_DEV_INFO2);
	V(UBLK_U_CMD_GET_FEATURES);
	V(UBLK_U_CMD_DEL_DEV_ASYNC);
#ifdef UBLK_U_CMD_UPDATE_SIZE
	V(UBLK_U_CMD_UPDATE_SIZE);
#endif
#ifdef UBLK_U_CMD_QUIESCE_DEV
	V(UBLK_U_CMD_QUIESCE_DEV);
#endif
#ifdef UBLK_U_CMD_TRY_STOP_DEV
	V(UBLK_U_CMD_TRY_STOP_DEV);
#endif
	V(UBLK_U_IO_FETCH_REQ);
	V(UBLK_U_IO_COMMIT_AND_FETCH_REQ);
	V(UBLK_IO_RES_OK);
	V(-UBLK_IO_RES_ABORT);

	V(UBLK_F_SUPPORT_ZERO_COPY);
	V(UBLK_F_URING_CMD_COMP_IN_TASK);
	V(UBLK_F_NEED_GET_DATA);
	V(UBLK_F_USER_RECOVERY);
	V(UBLK_F_USER_RECOVERY_REISSUE);
	V(UBLK_F_UNPRIVILEGED_DEV);
	V(UBLK_F_CMD_IOCTL_ENCODE);
	V(UBLK_F_USER_COPY);
	V(UBLK_F_ZONED);
#ifdef UBLK_F_USER_RECOVERY_FAIL_IO
	V(UBLK_F_USER_RECOVERY_FAIL_IO);
#endif
#ifdef UBLK_F_UPDATE_SIZE
	V(UBLK_F_UPDATE_SIZE);
#endif
#ifdef UBLK_F_AUTO_BUF_REG
	V(UBLK_F_AUTO_BUF_REG);
#endif
#ifdef UBLK_F_QUIESCE
	V(UBLK_F_QUIESCE);
#endif
#ifdef UBLK_F_PER_IO_DAEMON
	V(UBLK_F_PER_IO_DAEMON);
#endif
#ifdef UBLK_F_BUF_REG_OFF_DAEMON
	V(UBLK_F_BUF_REG_OFF_DAEMON);
#endif
#ifdef UBLK_F_BATCH_IO
	V(UBLK_F_BATCH_IO);
#endif
#ifdef UBLK_F_INTEGRITY
	V(UBLK_F_INTEGRITY);
#endif
#ifdef UBLK_F_SAFE_STOP_DEV
	V(UBLK_F_SAFE_STOP_DEV);
#endif
#ifdef UBLK_F_NO_AUTO_PART_SCAN
	V(UBLK_F_NO_AUTO_PART_SCAN);
#endif
#ifdef UBLK_F_SHMEM_ZC
	V(UBLK_F_SHMEM_ZC);
#endif

	V(UBLK_S_DEV_DEAD);
	V(UBLK_S_DEV_LIVE);
	V(UBLK_S_DEV_QUIESCED);
#ifdef UBLK_S_DEV_FAIL_IO
	V(UBLK_S_DEV_FAIL_IO);
#endif

	V(UBLK_PARAM_TYPE_BASIC);
	V(UBLK_PARAM_TYPE_DISCARD);
	V(UBLK_PARAM_TYPE_DEVT);
	V(UBLK_PARAM_TYPE_ZONED);
#ifdef UBLK_PARAM_TYPE_DMA_ALIGN
	V(UBLK_PARAM_TYPE_DMA_ALIGN);
#endif
#ifdef UBLK_PARAM_TYPE_SEGMENT
	V(UBLK_PARAM_TYPE_SEGMENT);
#endif
	V(UBLK_ATTR_READ_ONLY);
	V(UBLK_ATTR_ROTATIONAL);
	V(UBLK_ATTR_VOLATILE_CACHE);
	V(UBLK_ATTR_FUA);

	V(UBLK_IO_OP_READ);
	V(UBLK_IO_OP_WRITE);
	V(UBLK_IO_OP_FLUSH);
	V(UBLK_IO_OP_DISCARD);
	V(UBLK_IO_OP_WRITE_ZEROES);
	V(UBLK_IO_OP_ZONE_OPEN);
	V(UBLK_IO_OP_ZONE_CLOSE);
	V(UBLK_IO_OP_ZONE_FINISH);
	V(UBLK_IO_OP_ZONE_APPEND);
	V(UBLK_IO_OP_ZONE_RESET_ALL);
	V(UBLK_IO_OP_ZONE_RESET);
	V(UBLK_IO_OP_REPORT_ZONES);
	V(UBLK_IO_F_FUA);
#ifdef UBLK_IO_F_NEED_REG_BUF
	V(UBLK_IO_F_NEED_REG_BUF);
	V(UBLK_AUTO_BUF_REG_FALLBACK);
#endif

	V(UBLK_MAX_QUEUE_DEPTH);
	V(UBLK_MAX_NR_QUEUES);
	V(UBLKSRV_CMD_BUF_OFFSET);
	V(UBLKSRV_IO_BUF_OFFSET);
	V(UBLK_IO_BUF_BITS);
	V(UBLK_TAG_OFF);
	V(UBLK_TAG_BITS);
	V(UBLK_QID_OFF);

	SIZE(ublksrv_ctrl_cmd);
	AT(ublksrv_ctrl_cmd, dev_id);
	AT(ublksrv_ctrl_cmd, queue_id);
	AT(ublksrv_ctrl_cmd, len);
	AT(ublksrv_ctrl_cmd, addr);
	AT(ublksrv_ctrl_cmd, data);
	AT(ublksrv_ctrl_cmd, dev_path_len);

	SIZE(ublksrv_ctrl_dev_info);
	AT(ublksrv_ctrl_dev_info, nr_hw_queues);
	AT(ublksrv_ctrl_dev_info, queue_depth);
	AT(ublksrv_ctrl_dev_info, state);
	AT(ublksrv_ctrl_dev_info, max_io_buf_bytes);
	AT(ublksrv_ctrl_dev_info, dev_id);
	AT(ublksrv_ctrl_dev_info, ublksrv_pid);
	AT(ublksrv_ctrl_dev_info, flags);
	AT(ublksrv_ctrl_dev_info, ublksrv_flags);
	AT(ublksrv_ctrl_dev_info, owner_uid);
	AT(ublksrv_ctrl_dev_info, owner_gid);

	SIZE(ublksrv_io_desc);
	AT(ublksrv_io_desc, op_flags);
	AT(ublksrv_io_desc, nr_sectors);
	AT(ublksrv_io_desc, nr_zones);
	AT(ublksrv_io_desc, start_sector);
	AT(ublksrv_io_desc, addr);

	SIZE(ublksrv_io_cmd);
	AT(ublksrv_io_cmd, q_id);
	AT(ublksrv_io_cmd, tag);
	AT(ublksrv_io_cmd, result);
	AT(ublksrv_io_cmd, addr);
	AT(ublksrv_io_cmd, zone_append_lba);

	SIZE(ublk_params);
	AT(ublk_params, len);
	AT(ublk_params, types);
	AT(ublk_params, basic.attrs);
	AT(ublk_params, basic.logical_bs_shift);
	AT(ublk_params, basic.physical_bs_shift);
	AT(ublk_params, basic.io_opt_shift);
	AT(ublk_params, basic.io_min_shift);
	AT(ublk_params, basic.max_sectors);
	AT(ublk_params, basic.chunk_sectors);
	AT(ublk_params, basic.dev_sectors);
	AT(ublk_params, basic.virt_boundary_mask);
	AT(ublk_params, discard.max_discard_sectors);
	AT(ublk_params, discard.max_write_zeroes_sectors);
	AT(ublk_params, discard.max_discard_segments);
	AT(ublk_params, devt);
	AT(ublk_params, zoned.max_open_zones);
	AT(ublk_params, zoned.max_active_zones);
	AT(ublk_params, zoned.max_zone_append_sectors);
#ifdef UBLK_PARAM_TYPE_DMA_ALIGN
	AT(ublk_params, dma.alignment);
#endif
#ifdef UBLK_PARAM_TYPE_SEGMENT
	AT(ublk_params, seg.seg_boundary_mask);
	AT(ublk_params, seg.max_segment_size);
	AT(ublk_params, seg.max_segments);
#endif
#ifdef UBLK_PARAM_TYPE_INTEGRITY
	AT(ublk_params, integrity);
#endif

	SIZE(blk_zone);
	AT(blk_zone, start);
	AT(blk_zone, len);
	AT(blk_zone, wp);
	AT(blk_zone, type);
	AT(blk_zone, cond);
	AT(blk_zone, non_seq);
	AT(blk_zone, reset);
	AT(blk_zone, capacity);
	V(BLK_ZONE_TYPE_CONVENTIONAL);
	V(BLK_ZONE_TYPE_SEQWRITE_REQ);
	V(BLK_ZONE_COND_NOT_WP);
	V(BLK_ZONE_COND_EMPTY);
	V(BLK_ZONE_COND_IMP_OPEN);
	V(BLK_ZONE_COND_EXP_OPEN);
	V(BLK_ZONE_COND_CLOSED);
	V(BLK_ZONE_COND_READONLY);
	V(BLK_ZONE_COND_FULL);
	V(BLK_ZONE_COND_OFFLINE);
	return 0;
}
