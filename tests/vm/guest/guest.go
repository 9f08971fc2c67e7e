// Package guest is the first process of a test machine: it turns a bare
// kernel into a place where one command of the host runs as root, and reports
// how that ended.
//
// The host builds it from the embedded [Source] into the initial RAM disk, so
// it uses nothing but the standard library. Everything it knows about its task
// is a [Job], read from a directory shared with the host. Three virtio serial
// ports lead out: the command's stdout, its stderr, and a control port on
// which it writes one line per event (see the Event constants). The kernel's
// console is left to the kernel.
package guest

import (
	"embed"
	"time"
)

// Source holds the files of this package, so that the host can build the
// machine's init wherever it runs, without a checkout at hand.
//
//go:embed *.go
var Source embed.FS

// Mount tags of the 9p file systems and names of the serial ports: the wiring
// both sides agree on.
const (
	TagRoot  = "qzbd-root"  // the host's root directory, read-only
	TagShare = "qzbd-share" // job.json in, dmesg out
	TagOut   = "qzbd-out"   // artifacts of the command

	PortStdout = 1 // nr of the virtserialport
	PortStderr = 2
	PortEvents = 3
)

// Files in the directory with tag [TagShare].
const (
	JobFile   = "job.json"
	DmesgFile = "dmesg"
)

// OutDir is where the command finds the writable directory of the host
// (QZBD_VM_OUT), ScratchDir where a scratch disk is mounted (QZBD_VM_SCRATCH).
const (
	OutDir     = "/run/qzbd-vm/out"
	ScratchDir = "/mnt/scratch"
)

// Events, the first word of a line on the control port.
const (
	EventAlive = "alive" // the kernel is up and init runs
	EventStart = "start" // the command is about to run
	EventExit  = "exit"  // followed by the exit status of the command
	EventFail  = "fail"  // followed by why the command could not be run
)

// ExitTimeout is the status reported for a command that outlived its time
// limit, as timeout(1) has it.
const ExitTimeout = 124

// Job is one command and the surroundings that it needs.
type Job struct {
	Argv    []string
	Env     []string
	Dir     string
	Timeout time.Duration

	Release string // of the kernel, as uname -r says it
	Modules string // host's directory with the modules of Release

	Expose  []string // host's files and directories to show although a tmpfs covers them
	Disks   int      // virtio disks, scratch included
	Scratch bool     // the last disk holds ext4, to be mounted at ScratchDir

	// Tree is the host's directory to boot as a system, "" to run the command
	// in the host's root. The last disk holds ext4, for what is written.
	Tree string
}
