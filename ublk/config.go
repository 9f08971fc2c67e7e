package ublk

import (
	"go.uber.org/zap"

	"github.com/qzbd/qzbd/zns"
)

// Target is what a device serves; *zns.Device is one. A request goes through
// it as package zns describes. Begin, End and Zone are called from queue
// threads, Work from worker goroutines.
type Target interface {
	Geometry() zns.Geometry
	// Zone returns the committed state of zone i.
	Zone(i uint32) zns.Zone
	// Begin never blocks.
	Begin(*zns.Request) zns.Step
	// Work may block.
	Work(*zns.Request) zns.Step
	// End is called after the I/O of all extents, with its first error, and
	// never blocks.
	End(*zns.Request, error) zns.Step
}

// Defaults and our own limits of a Config.
const (
	DefaultDepth = 128
	// DefaultMaxIO lets the kernel's zone write plugs merge sequential
	// writes, and holds the report of MaxZones zones.
	DefaultMaxIO = 1 << 20
)

// Config is what the caller of Start chooses. The zero value of every field
// but ID and DataFD is a default.
type Config struct {
	// ID is the N of /dev/ublkbN; -1 lets the kernel choose.
	ID int
	// Queues is the number of hardware queues, 1 by default. The kernel
	// makes no more than there are CPUs.
	Queues int
	// Depth is the number of requests in flight per queue, 1 to 4096.
	Depth int
	// MaxIO is the largest request in bytes, a multiple of 4096 up to 32 MiB.
	MaxIO int
	// DataFD is the open file that the extents of requests refer to. It
	// stays the caller's and must stay open until Ended or Done.
	DataFD int
	// DataAlign is what offsets and lengths on DataFD must be multiples of, in
	// bytes: of direct I/O. 0 or 1 means anything goes.
	DataAlign int
	// ReadOnly makes the kernel refuse writes.
	ReadOnly bool
	// NoZeroCopy makes a new device whose data is always copied, also by a driver
	// that could do without.
	NoZeroCopy bool
	// Recovery lets the device outlive its server: when the process dies, or
	// calls Leave, the node stays and requests wait for Recover. Otherwise the
	// kernel removes the node and fails them.
	Recovery bool
	Logger   *zap.Logger
	// Known says of a request's error that it has been logged for all of them.
	Known func(error) bool
	// Added is called with the device's number once the kernel has given it
	// and before the device can be used, and with a mark for Control.Delete.
	// An error ends Start.
	Added func(id int, mark uint64) error
	// Ended is called once for a device that Start has started, when all its
	// requests are answered and Target and DataFD are not used any more, but
	// before its number can be given to another device. Wait returns its error.
	// A device that waits for another server has not ended.
	Ended func() error
	// Slot is called before the device can be used, for each tag of each
	// queue, with the Request that carries all requests of this tag. It is
	// what a Target needs to recognise what is issued again: see Recover.
	Slot func(queue, tag int, r *zns.Request)
	// Answered, unless nil, is called when the kernel has the answer of an
	// append: it is not issued again, and its data will not be found twice.
	Answered func(r *zns.Request)
}

// withDefaults fills what was left out.
func (c Config) withDefaults() Config {
	if c.Queues == 0 {
		c.Queues = 1
	}
	if c.Depth == 0 {
		c.Depth = DefaultDepth
	}
	if c.MaxIO == 0 {
		c.MaxIO = DefaultMaxIO
	}
	if c.DataAlign == 0 {
		c.DataAlign = 1
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	if c.Known == nil {
		c.Known = func(error) bool { return false }
	}
	return c
}
