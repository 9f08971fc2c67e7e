package zbdtest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/qzbd/qzbd/tests/zonemodel"
)

// Kind says whose device is tested.
type Kind string

// The kinds of devices that this suite knows.
const (
	QZBD      Kind = "qzbd"       // also the in-process device
	NullBlk   Kind = "null_blk"   // the kernel's null block device
	ScsiDebug Kind = "scsi_debug" // the kernel's imitated SCSI disk
	ZNS       Kind = "zns"        // an NVMe drive
	ZBC       Kind = "zbc"        // a SCSI or ATA drive
)

var kinds = []Kind{QZBD, NullBlk, ScsiDebug, ZNS, ZBC}

// kindOf finds the kind of the device with a directory in sysfs.
func kindOf(dir string) Kind {
	path, err := os.Readlink(dir)
	if err != nil {
		return ZBC
	}
	name := path[strings.LastIndexByte(path, '/')+1:]
	model, _ := os.ReadFile(dir + "/device/model") // null_blk and ublk have none
	switch {
	case strings.HasPrefix(name, "ublkb"):
		return QZBD
	case strings.HasPrefix(name, "nullb"):
		return NullBlk
	case strings.HasPrefix(name, "nvme"):
		return ZNS
	case strings.TrimSpace(string(model)) == "scsi_debug":
		return ScsiDebug
	}
	return ZBC
}

// differenceID names a difference where the rules ask for it.
type differenceID int

const (
	anyVictim differenceID = iota
	closedNeedsActive
	idleClose
	fullOpen
	onesAboveWP
	noPunch
	remoteError
	freeFinish
	gapZones
	lostVictim

	nrDifferences
)

// difference is something that some devices do otherwise than qzbd. A rule
// that meets it demands the other behaviour instead, so that a difference that
// does not exist any more is a failure.
type difference struct {
	kinds []Kind
	// what they do, what qzbd does, and why both may
	what, ours, why string
}

// differences is the whole truth about what this suite lets pass.
var differences = map[differenceID]difference{
	anyVictim: {
		kinds: []Kind{NullBlk, ScsiDebug, ZNS, ZBC},
		what:  "a zone that has to be opened at the limit of open zones closes some implicitly open zone",
		ours:  "closes the one that was written or opened least recently",
		why:   "the standards leave the choice to the device; the least recently used zone is the one that least likely has to be opened again. null_blk goes round by number, scsi_debug takes the lowest",
	},
	closedNeedsActive: {
		kinds: []Kind{NullBlk},
		what:  "with as many zones active and as many open as may be, a write to a closed zone or its opening is refused with ETOOMANYREFS, although an implicitly open zone could make room",
		ours:  "closes an implicitly open zone and goes on",
		why:   "a closed zone is active already, so nothing more becomes active; null_blk asks for a free active zone before it closes one (null_check_open). With it, a host at max_active_zones cannot go on with zones that it has",
	},
	idleClose: {
		kinds: []Kind{ScsiDebug, ZBC},
		what:  "closing an empty or full zone succeeds and changes nothing",
		ours:  "EIO",
		why:   "ZBC makes CLOSE ZONE of such a zone no error, ZNS an invalid state transition; qzbd follows ZNS, as null_blk does",
	},
	fullOpen: {
		kinds: []Kind{ScsiDebug, ZBC},
		what:  "opening a full zone succeeds and changes nothing",
		ours:  "EIO",
		why:   "ZBC makes OPEN ZONE of a full zone no error, ZNS an invalid state transition; qzbd follows ZNS, as null_blk does",
	},
	onesAboveWP: {
		kinds: []Kind{NullBlk},
		what:  "a read above the write pointer gives bytes of 0xff",
		ours:  "zeros",
		why:   "neither standard says what such a read gives (it may even fail); zeros are what a new disk has, and never are another zone's old data",
	},
	noPunch: {
		kinds: []Kind{NullBlk},
		what:  "FALLOC_FL_PUNCH_HOLE is EOPNOTSUPP: the device cannot write zeros by itself",
		ours:  "does it like a write of zeros",
		why:   "the kernel does without only where it may write zeros instead, which this call forbids",
	},
	remoteError: {
		kinds: []Kind{ScsiDebug, ZBC},
		what:  "what the drive itself refuses is EREMOTEIO, what the block layer refuses for it EIO",
		ours:  "EIO both",
		why:   "the SCSI layer makes EREMOTEIO of the sense key ILLEGAL REQUEST; every other driver of zoned devices answers EIO",
	},
	freeFinish: {
		kinds: []Kind{ScsiDebug},
		what:  "an empty or closed zone is finished whatever is open",
		ours:  "needs room for another open zone for a moment: an implicitly open one is closed, or the finish refused",
		why:   "such a zone passes through implicit open, as it does on null_blk; scsi_debug takes the short cut",
	},
	gapZones: {
		kinds: []Kind{ScsiDebug},
		what:  "a report from behind the capacity of a zone begins with the next zone, and a read across the capacity is refused",
		ours:  "the report begins with the zone that the place belongs to, the read gives the data and then zeros",
		why:   "scsi_debug makes a zone of its own of the gap, which Linux does not show, and reads must not cross it; in ZNS a zone reaches to its end",
	},
	lostVictim: {
		kinds: []Kind{NullBlk},
		what:  "a zone that is closed to make room while its first write is in flight becomes empty, and stays so with that write in it: more zones than may are active, and no reset empties it",
		ours:  "such a zone becomes closed",
		why:   "null_blk looks at the write pointer, which moves after the data, without the zone's lock (null_close_imp_open_zone); seen on 6.12 and 7.2. The rules about much at once leave it room, so that it has nothing to close",
	},
}

// differs says whether a kind of device has a difference.
func (k Kind) differs(id differenceID) bool {
	return slices.Contains(differences[id].kinds, k)
}

// quirks are the differences that the model has to know.
func (k Kind) quirks() zonemodel.Quirks {
	return zonemodel.Quirks{
		AnyVictim:         k.differs(anyVictim),
		ClosedNeedsActive: k.differs(closedNeedsActive),
		IdleClose:         k.differs(idleClose),
		FullOpen:          k.differs(fullOpen),
		FreeFinish:        k.differs(freeFinish),
	}
}

// means says whether an error is the one that a rule wants.
func (k Kind) means(want syscall.Errno, err error) bool {
	return errors.Is(err, want) || want == syscall.EIO && k.differs(remoteError) && errors.Is(err, syscall.EREMOTEIO)
}

// printDifferences writes the table for people.
func printDifferences(w io.Writer) {
	for id := range nrDifferences {
		d := differences[id]
		var names []string
		for _, k := range d.kinds {
			names = append(names, string(k))
		}
		fmt.Fprintf(w, "%s:\n  what  %s\n  qzbd  %s\n  why   %s\n\n", strings.Join(names, ", "), d.what, d.ours, d.why)
	}
}
