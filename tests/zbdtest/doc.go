// Package zbdtest checks that a host-managed zoned block device keeps to the
// rules, through the real block layer: ioctls, O_DIRECT reads and writes,
// fallocate, sysfs. [Run] is the suite, one subtest for each rule, named as a
// sentence.
//
//   - drive.go, blockdev.go: the device under test.
//   - suite.go: the list of rules, and the bed in which each finds the device.
//   - rules_*.go: the rules. Each says what must happen in its own words or in
//     a table; rules_walk.go holds a random walk against package zonemodel.
//   - differences.go: what devices do otherwise than qzbd, with the reasons.
//
// # On a drive of one's own
//
//	$ make zbdtest
//	# QZBD_ZBD_DEVICE=/dev/sdX bin/zbdtest --destroy-data
//
// Everything on the drive is lost. Without --destroy-data it only says what it
// would do. Flags: -differences prints the table of differences, -kind says
// whose device it is if that is not seen by itself, -seed repeats a run, -walk
// sets the steps of the random walk, -test.v lists the rules, -test.run picks
// some.
//
// Without a device the same rules are checked on a device in this process: the
// engine over an image file, without a kernel.
//
// # What it waits for
//
// After a device has refused a write across the capacity, Linux may refuse the next
// good ones to that zone by itself, for a moment. The drive in blockdev.go tries
// such a write again if the device has not seen it (patiently); what a device
// refuses is never tried again.
//
// # What it cannot reach
//
// Zone append: the kernel offers none to user space for a block device, not
// even through io_uring. It is used by file systems (btrfs, zonefs), which are
// tested elsewhere. Here only its limit in sysfs is looked at. Zones that are
// read-only or offline: nothing in the block layer makes one.
package zbdtest
