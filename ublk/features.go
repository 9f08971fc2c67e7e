package ublk

import (
	"fmt"
	"strings"
)

// Features are the feature bits of a driver or a device.
type Features uint64

// Has reports whether all of want are there.
func (f Features) Has(want Features) bool { return f&want == want }

// Feature is one row of FeatureTable.
type Feature struct {
	Bit      Features
	Name     string // as in the kernel's header, without UBLK_F_
	Since    string // the kernel version that brings it
	Required bool   // by Start
	Without  string // what a kernel that lacks it cannot do, "" if nothing is missed
}

// What is missed without a feature.
const (
	noDevice   = "there is no zoned device at all"
	noRecovery = "no device outlives its server: attach takes --no-recovery only"
	noZeroCopy = "data is copied once more, as with attach --no-zero-copy"
	noHandover = "no living process can hand a device to another one: qzbd upgrade works, because the process stays the same"
)

// FeatureTable lists the features there are, by bit.
var FeatureTable = []Feature{
	{fSupportZeroCopy, "SUPPORT_ZERO_COPY", "6.15", false, ""},
	{fURingCmdCompInTask, "URING_CMD_COMP_IN_TASK", "6.0", false, ""},
	{fNeedGetData, "NEED_GET_DATA", "6.0", false, ""},
	{fUserRecovery, "USER_RECOVERY", "6.1", false, noRecovery},
	{fUserRecoveryReissue, "USER_RECOVERY_REISSUE", "6.1", false, noRecovery},
	{fUnprivilegedDev, "UNPRIVILEGED_DEV", "6.3", false, ""},
	{fCmdIoctlEncode, "CMD_IOCTL_ENCODE", "6.4", true, noDevice},
	{fUserCopy, "USER_COPY", "6.5", true, noDevice},
	{fZoned, "ZONED", "6.6", true, noDevice},
	{fUserRecoveryFailIO, "USER_RECOVERY_FAIL_IO", "6.13", false, ""},
	{fUpdateSize, "UPDATE_SIZE", "6.16", false, ""},
	{fAutoBufReg, "AUTO_BUF_REG", "6.16", false, noZeroCopy},
	{fQuiesce, "QUIESCE", "6.16", false, ""},
	{fPerIODaemon, "PER_IO_DAEMON", "6.16", false, noHandover},
	{fBufRegOffDaemon, "BUF_REG_OFF_DAEMON", "6.17", false, ""},
	{fBatchIO, "BATCH_IO", "7.0", false, ""},
	{fIntegrity, "INTEGRITY", "7.0", false, ""},
	{fSafeStopDev, "SAFE_STOP_DEV", "7.0", false, ""},
	{fNoAutoPartScan, "NO_AUTO_PART_SCAN", "7.0", false, ""},
	{fShmemZC, "SHMEM_ZC", "7.1", false, ""},
}

// String names the bits that are set; unknown ones by number.
func (f Features) String() string {
	var names []string
	for _, t := range FeatureTable {
		if f.Has(t.Bit) {
			names = append(names, t.Name)
			f &^= t.Bit
		}
	}
	if f != 0 {
		names = append(names, fmt.Sprintf("%#x", uint64(f)))
	}
	return strings.Join(names, "|")
}

// Check names the required features that are missing, in one sentence.
func (f Features) Check() error {
	if lack := f.lack(func(t Feature) bool { return t.Required }); lack != "" {
		return fmt.Errorf("ublk: this kernel's driver lacks %s: use a kernel that has it, built with CONFIG_BLK_DEV_ZONED", lack)
	}
	return nil
}

// recovery is what Config.Recovery asks for: the device waits for another
// server, and what the dead one had in flight goes to that.
const recovery = fUserRecovery | fUserRecoveryReissue

// CheckRecovery names the features that Config.Recovery needs and that are
// missing, in one sentence.
func (f Features) CheckRecovery() error {
	if lack := f.lack(func(t Feature) bool { return recovery.Has(t.Bit) }); lack != "" {
		return fmt.Errorf("ublk: this kernel's driver lacks %s, so a device cannot outlive its server: use a newer kernel, or a device without recovery", lack)
	}
	return nil
}

// lack names the wanted features that are missing, with their kernel versions.
func (f Features) lack(want func(Feature) bool) string {
	var names []string
	for _, t := range FeatureTable {
		if want(t) && !f.Has(t.Bit) {
			names = append(names, fmt.Sprintf("%s (Linux %s)", t.Name, t.Since))
		}
	}
	return strings.Join(names, ", ")
}
