package ublk

import (
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/uring"
)

// Zero copy: the memory of a request becomes a registered buffer of the queue's
// ring, at the index of its tag, and is read from or written to the data file
// without a stop in between. The driver keeps a request until its buffer is
// unregistered again, so it may be answered in the same breath.
//
// Either the driver registers the buffer of every request, when it hands it out
// (AUTO_BUF_REG), which is the cheapest way to a disk. Or we ask it to, which costs
// about as much as copying a few pages and therefore is done for large requests
// only: where the driver cannot do it by itself, and where the data file is in
// memory, to which nothing is cheaper than a copy at once but for the very largest.
// What does not go straight is copied, as all is where the driver lacks
// SUPPORT_ZERO_COPY.

// The smallest requests, in bytes, that are worth being registered for.
const (
	straightMin         = 64 << 10
	straightMinInMemory = 512 << 10
)

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
// does without.
func (c Config) zeroCopy(f Features) (Features, error) {
	if c.NoZeroCopy || !f.Has(fSupportZeroCopy) || !survivesWarnings() {
		return 0, nil
	}
	inMemory, err := isInMemory(c.DataFD)
	if inMemory || err != nil || !f.Has(fAutoBufReg) {
		return fSupportZeroCopy, err
	}
	return fSupportZeroCopy | fAutoBufReg, nil
}

// ZeroCopy says of which requests the data goes straight: "all", "large" or "none".
func (d *Device) ZeroCopy() string {
	switch {
	case d.features.Has(fAutoBufReg):
		return "all"
	case d.features.Has(fSupportZeroCopy):
		return "large"
	}
	return "none"
}

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
	switch {
	case !q.zeroCopy || r.data.compare:
		return false
	case q.autoBuf:
		return !r.unregistered
	case q.inMemory:
		return r.Len >= straightMinInMemory
	}
	return r.Len >= straightMin
}

// register queues that the memory of r becomes the buffer of its tag. What is
// queued behind it finds it there; if it failed, that fails, too.
func (q *queue) register(r *request) { q.buffer(ioRegisterBuf, r) }

// unregister queues that the driver gets the memory of r back.
func (q *queue) unregister(r *request) { q.buffer(ioUnregisterBuf, r) }

func (q *queue) buffer(op uint32, r *request) {
	if q.autoBuf {
		return // with the request, and with its answer
	}
	cmd := ioCmd{QID: q.id, Tag: r.tag, Addr: uint64(r.tag)}
	// Only a failure is heard of, and needs not be: what was to build on it fails.
	if err := q.ring.QuietCmd(uring.Fixed(fileChar), op, (*[16]byte)(unsafe.Pointer(&cmd))); err != nil {
		q.broken(err)
	}
}

// bufAddr is what a fetch says about the next buffer of its tag (struct
// ublk_auto_buf_reg): where it is registered, and that the request comes all the
// same, marked, if that fails.
func (q *queue) bufAddr(tag uint16) uint64 {
	if !q.autoBuf {
		return 0
	}
	return autoBufFallback | uint64(tag)
}
