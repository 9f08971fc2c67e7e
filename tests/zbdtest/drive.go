package zbdtest

import (
	"fmt"

	"github.com/qzbd/qzbd/tests/zonemodel"
	"github.com/qzbd/qzbd/zns"
)

// Drive is the device under test. Offsets and lengths are bytes. Errors wrap
// the errno that a user of the device gets. All methods may be called
// concurrently.
type Drive interface {
	// Shape is the geometry and the limits that are in force.
	Shape() zonemodel.Shape
	// Kind says whose device it is, see differences.go.
	Kind() Kind
	// Report gives at most n zones, from the one that contains a place on.
	Report(from int64, n int) ([]Zone, error)
	// Manage does something with all zones of a range.
	Manage(op Management, from, n int64) error
	// Write writes all of p, durably if sync is set.
	Write(at int64, p []byte, sync bool) error
	// Read fills all of p.
	Read(at int64, p []byte) error
	// Zero writes zeros.
	Zero(how Zeroing, at, n int64) error
	// Flush makes durable what was written.
	Flush() error
}

// Zone is an entry of a zone report.
type Zone struct {
	Start, Len, Capacity, WP int64
	Conventional             bool
	Cond                     zns.Cond
}

// Written is how many bytes of a sequential zone have been written. The write
// pointer of a full zone is not defined.
func (z Zone) Written() int64 {
	switch z.Cond {
	case zns.CondFull:
		return z.Capacity
	case zns.CondNotWP:
		return 0
	}
	return z.WP - z.Start
}

func (z Zone) String() string {
	return fmt.Sprintf("%v with %#x bytes written", z.Cond, z.Written())
}

// Management is one of the zone management operations.
type Management int

// The operations that the kernel has an ioctl for.
const (
	Open Management = iota
	Close
	Finish
	Reset
)

func (m Management) String() string { return [...]string{"open", "close", "finish", "reset"}[m] }

// Zeroing is one of the ways to write zeros.
type Zeroing int

// The ways that a user of a block device has. Only the last lets the device
// give space back; it fails where the device cannot write zeros by itself.
const (
	ZeroOut   Zeroing = iota // BLKZEROOUT
	ZeroRange                // fallocate, FALLOC_FL_ZERO_RANGE
	PunchHole                // fallocate, FALLOC_FL_PUNCH_HOLE
)

func (z Zeroing) String() string {
	return [...]string{"BLKZEROOUT", "FALLOC_FL_ZERO_RANGE", "FALLOC_FL_PUNCH_HOLE"}[z]
}
