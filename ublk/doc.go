// Package ublk turns a zoned Target into the block device /dev/ublkbN, by the
// kernel's ublk driver. It knows devices, queues, tags, requests, sectors and
// errnos; zones and their rules belong to package zns.
//
// The life of a request:
//
//	device.go   Start adds the device, starts its queues, shows the node
//	queue.go    a thread and a ring per queue: CQE of a tag → request
//	ops.go      the descriptor becomes a zns.Request, by one table
//	step.go     Begin, I/O, Work, Wait, End; the answer, COMMIT_AND_FETCH
//	data.go     the data moves: user copy on one side, on the other the ring, or
//	            at once where the file is in memory
//	zerocopy.go or straight from one to the other
//	buffer.go   memory for it, outside the Go heap
//	worker.go   what may block, does so on goroutines of its own
//	report.go   zone reports are answered here, from Target.Zone
//
// and around it:
//
//	config.go   what a caller chooses
//	recover.go  the device outlives its server: Recover, Leave
//	halfway.go  what a death in Recover has left half done
//	pulse.go    whether the queues still serve
//	bench.go    a queue without a device, to measure what is behind it
//	workload.go what such a queue is given to do
//	params.go   everything that the kernel would refuse, refused first
//	control.go  /dev/ublk-control: add, start, stop, delete
//	list.go     which devices there are, and whether they are ours
//	open.go     why there is no ublk here, in one sentence
//	features.go what this kernel's ublk can do
//	errno.go    the outcome of a request as an errno
//	limit.go    how often a refused request is logged
//	event.go    what is logged and counted of a request that has been answered
//	stats.go    what the queues have answered
//	histogram.go  how long that took, in buckets
//	blkreport.go  the user's side: the zones of any zoned block device
//	abi*.go     the kernel's constants and structures
//
// # Recovery: what is issued again
//
// With Config.Recovery a request that the dead server had received and not
// answered comes again to the next one. To the Target it is a request like any
// other. What can be relied on, read in the driver and seen in the tests under
// Linux 6.12.95 and 7.2.13:
//
//   - Every request without an answer comes again, once per recovery. One whose
//     answer the kernel has taken never does: a commit is taken when the
//     io_uring_enter that submits it returns. A server killed inside, or between
//     executing a request and that call, leaves requests that were executed and
//     come again.
//   - While the device has no I/O scheduler, it comes on the queue and tag that
//     it had, as the first request of that tag: it holds the tag all the time.
//     So a record per tag (Config.Slot says which request belongs to which)
//     suffices to recognise it, and is obsolete with the first request of the
//     tag. With a scheduler, which a device with one queue has until Unschedule,
//     tags change (not tested).
//   - Operation and start are the same. The length can have grown: the kernel
//     may merge what follows into a request that waits to be issued again (read
//     in the block layer; not seen in the tests).
//   - There is no order. Fresh requests come before those that come again, and
//     with Linux 7 even before Recover asks for the end of the recovery: a queue
//     works as soon as its tags are fetched.
//   - Of a sequential zone one write is in flight, the kernel holds the others
//     back: no fresh write overtakes one that comes again. Appends, resets and
//     reads are not held back.
//   - When all have come is not known as a whole, only tag by tag: the kernel
//     does not say, and a tag that carried nothing may stay idle for ever. (A
//     frozen queue would prove it. But a server that waits for that cannot die:
//     the wait is uninterruptible, and holds the device.)
//   - The kernel asks for no zone report. Its idea of the write pointers is what
//     was answered, so the Target's must be that, too.
//
// One death is beyond recovery: that of a server that has the zone report in hand
// which START_DEV asks for. The kernel waits for the report without an end and
// with the device locked, in a thread of the dead process, which therefore keeps
// its files; every other command for the device waits, too. Linux 6.12 then waits
// in the same way for the reads of a partition scan. In all that takes some
// milliseconds, before the device can be used. hang_test.go provokes it; there is
// no way around it, because what the device is to do with requests of the dead is
// settled when it is added.
//
// Two others would be:
//
//   - A server that sets the I/O scheduler while requests are in flight waits for
//     these in the kernel, and cannot die before they are answered. So Start does
//     not, and Unschedule is for another process.
//   - With Linux 6.12 START_USER_RECOVERY follows a null pointer if some queues
//     have been fetched since the last one and others have not (halfway.go).
package ublk
