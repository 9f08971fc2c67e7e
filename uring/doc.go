// Package uring drives one io_uring from one goroutine. It is the only place
// that knows giouring and keeps its traps from everybody else.
//
//	New        a ring: its queues, its wake-up
//	sqe.go     what can be queued: commands, reads, writes, syncs, cancels
//	ring.go    submit, wait and reap
//	wake.go    how other goroutines interrupt a wait
//	files.go   registered files and buffers
//	probe.go   why this machine has no io_uring, in one sentence
//
// A Ring belongs to one goroutine. Only Wake may be called by others.
//
// Memory that the kernel reads or writes after a call has returned (the
// buffers of Read and Write) must not move and must stay reachable until the
// CQE: mapped memory, or Go heap memory that somebody holds on to, never the
// stack. Commands are copied into the ring and need no such care.
package uring
