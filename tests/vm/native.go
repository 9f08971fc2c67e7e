package vm

import (
	"bytes"
	"os"
	"os/exec"
)

// HostHasUblk reports whether the running kernel itself can host a zoned ublk
// device, so that no machine is needed.
func HostHasUblk() bool {
	if os.Geteuid() != 0 {
		return false
	}
	if _, err := os.Stat("/dev/ublk-control"); err != nil {
		if exec.Command("modprobe", "ublk_drv").Run() != nil {
			return false
		}
		if _, err := os.Stat("/dev/ublk-control"); err != nil {
			return false
		}
	}
	// ublk can exist without zones: CONFIG_BLK_DEV_ZONED shows in its symbols.
	symbols, err := os.ReadFile("/proc/kallsyms")
	return err == nil && bytes.Contains(symbols, []byte(" blk_revalidate_disk_zones"))
}
