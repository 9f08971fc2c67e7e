package ublk

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Zero copy: the driver makes the memory of every request a registered buffer of
// the queue's ring (AUTO_BUF_REG), at the index of its tag, and from or to there the
// data file is read or written without a stop in between. The buffer goes with the
// answer.
//
// Not for a data file in memory, to which nothing is cheaper than a copy at once.
// What does not go straight is copied, as all is where the driver lacks the features.

const zeroCopyFeatures = fSupportZeroCopy | fAutoBufReg

// warnSysctls are not 0 on a machine that would rather stop than go on after a
// warning of its kernel, or after so many
// (Documentation/admin-guide/sysctl/kernel.rst).
var warnSysctls = []string{"/proc/sys/kernel/panic_on_warn", "/proc/sys/kernel/warn_limit"}

// survivesWarnings says that the machine goes on after a warning, for all we know.
func survivesWarnings() bool {
	for _, name := range warnSysctls {
		if b, err := os.ReadFile(name); err != nil || strings.TrimSpace(string(b)) != "0" {
			return false
		}
	}
	return true
}

// zeroCopy are the features of zero copy that a new device is to have, by a driver
// with the features f. Linux 7.2 warns once when a buffer is registered, of its own
// array, and the data is right all the same: a machine that ends with a warning
// does without. Where there are none, why says what for.
func (c Config) zeroCopy(f Features) (on Features, why string, err error) {
	switch {
	case c.NoZeroCopy:
		return 0, "so it was asked for", nil
	case !f.Has(zeroCopyFeatures):
		return 0, "the kernel has no zero copy as it is used here: that takes Linux 6.16", nil
	case !survivesWarnings():
		return 0, "kernel.panic_on_warn or kernel.warn_limit may end the machine for a warning", nil
	}
	inMemory, err := isInMemory(c.DataFD)
	if err != nil {
		return 0, "", err
	}
	if inMemory {
		return 0, "its file is in memory, where copying at once takes less", nil
	}
	return zeroCopyFeatures, "", nil
}

// ZeroCopy says that data goes straight between requests and the data file.
func (d *Device) ZeroCopy() bool { return d.features.Has(zeroCopyFeatures) }

// WhyCopies says why a new device has no zero copy, which is what one that was taken
// over goes on with: of that, and with zero copy, it is empty.
func (d *Device) WhyCopies() string { return d.whyCopies }

// isInMemory says that the open file is in a file system in memory.
func isInMemory(fd int) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return false, fmt.Errorf("ublk: ask for the file system of the data file with descriptor %d: %w", fd, err)
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC, nil
}

// goesStraight says that a request is moved without a copy. Of one that is
// compared the data is needed here.
func (q *queue) goesStraight(r *request) bool {
	return q.zeroCopy && !r.unregistered && !r.data.compare
}

// bufAddr is what a fetch says about the next buffer of its tag (struct
// ublk_auto_buf_reg): where it is registered, and that the request comes all the
// same, marked, if that fails.
func (q *queue) bufAddr(tag uint16) uint64 {
	if !q.zeroCopy {
		return 0
	}
	return autoBufFallback | uint64(tag)
}
