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
//	data.go     the data moves: user copy on one side, the ring on the other
//	buffer.go   memory for it, outside the Go heap
//	worker.go   what may block, does so on goroutines of its own
//	report.go   zone reports are answered here, from Target.Zone
//
// and around it:
//
//	config.go   what a caller chooses
//	params.go   everything that the kernel would refuse, refused first
//	control.go  /dev/ublk-control: add, start, stop, delete, list
//	open.go     why there is no ublk here, in one sentence
//	features.go what this kernel's ublk can do
//	errno.go    the outcome of a request as an errno
//	limit.go    how often a refused request is logged
//	blkreport.go  the user's side: the zones of any zoned block device
//	abi*.go     the kernel's constants and structures
//
// Only user copy is used. Zero copy, user recovery and more than one data
// file have a place each (the data step, the end of Start, the registered
// files) and are not built.
package ublk
