package ublk

import (
	"os"
	"strings"
)

// Zero copy: the memory of a request becomes a registered buffer of the queue's
// ring, at the index of its tag, and is read from or written to the data file
// without a stop in between. The driver keeps a request until its buffer is
// unregistered again, so it may be answered in the same breath.
//
// Registering costs about as much as copying a few pages, therefore only large
// requests go straight. Everything else is copied, as all is where the driver
// lacks SUPPORT_ZERO_COPY.

// The smallest requests, in bytes, that are worth it. In memory the way through
// the ring has to be worth it, too.
const (
	straightMin         = 64 << 10
	straightMinInMemory = 512 << 10
)

// panicOnWarn is 1 on a machine that would rather stop than go on after a warning
// of its kernel (Documentation/admin-guide/sysctl/kernel.rst).
const panicOnWarn = "/proc/sys/kernel/panic_on_warn"

// zeroCopy says whether a new device is to have zero copy, by a driver with these
// features. Linux 7.2 warns once when a buffer is registered, of its own array, and
// the data is right all the same: a machine that ends with a warning does without.
func (c Config) zeroCopy(f Features) bool {
	if c.NoZeroCopy || !f.Has(fSupportZeroCopy) {
		return false
	}
	b, err := os.ReadFile(panicOnWarn)
	return err != nil || strings.TrimSpace(string(b)) == "0"
}

// goesStraight says that a request is worth registering. Of one that is compared
// the data is needed here.
func (q *queue) goesStraight(r *request) bool {
	if !q.zeroCopy || r.data.compare {
		return false
	}
	if q.inMemory {
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
	if err := q.quietCommand(op, ioCmd{QID: q.id, Tag: r.tag, Addr: uint64(r.tag)}); err != nil {
		q.broken(err)
	}
}
