package ublk

import (
	"syscall"
	"time"
)

// Stats is what the queues of a device have answered since Start or Recover.
type Stats struct {
	// Operations are all that the kernel can ask for, always in the same
	// order, and at the end what it asked for and we do not know.
	Operations []OperationStats
}

// OperationStats is about the requests of one operation. Latency is the time
// from the turn of the queue's loop that saw a request to the end of the one
// that answered it. The numbers are read one after the other: what is answered
// meanwhile can be in one of them and not in another.
type OperationStats struct {
	Name     string
	Requests uint64 // answered, errors included
	InFlight uint64
	Bytes    uint64 // of those without an error
	// Unmapped are the requests that had to wait for their mapping, because
	// it was not in memory or had to be made.
	Unmapped uint64
	Errors   []ErrorStats
	Latency  *Histogram
}

// ErrorStats counts the requests that were answered with an errno.
type ErrorStats struct {
	Errno    string
	Requests uint64
}

// Rows of the statistics. The order is the one in which they are shown.
const (
	statRead = iota
	statWrite
	statAppend
	statWriteZeroes
	statFlush
	statReset
	statResetAll
	statOpen
	statClose
	statFinish
	statReport
	statUnknown
	statRows
)

// statErrnos are all that requests are answered with.
var statErrnos = [...]struct {
	errno syscall.Errno
	name  string // the kernel's: others have a second one
}{
	{syscall.EIO, "EIO"},
	{syscall.ENOSPC, "ENOSPC"},
	{syscall.EOVERFLOW, "EOVERFLOW"},
	{syscall.ETOOMANYREFS, "ETOOMANYREFS"},
	{syscall.EOPNOTSUPP, "EOPNOTSUPP"},
}

// classOf returns the place of an errno in statErrnos; what is not there is EIO.
func classOf(e syscall.Errno) int {
	for i := range statErrnos {
		if statErrnos[i].errno == e {
			return i
		}
	}
	return 0
}

// queueStats belongs to a queue's thread, which alone writes it.
type queueStats [statRows]opStats

type opStats struct {
	begun    counter
	bytes    counter
	unmapped counter
	errors   [len(statErrnos)]counter
	latency  durations
}

// ended counts an answered request. It does not allocate.
func (s *queueStats) ended(e *event, took time.Duration) {
	o := &s[e.op.stat]
	if e.result < 0 {
		o.errors[classOf(syscall.Errno(-e.result))].add(1)
	} else if e.len != 0 {
		o.bytes.add(e.len)
	}
	if e.unmapped {
		o.unmapped.add(1)
	}
	o.latency.add(took)
}

// Stats may be called from any goroutine, also after the device has ended. No
// queue waits for it.
func (d *Device) Stats() Stats {
	s := Stats{Operations: make([]OperationStats, statRows)}
	for i := range s.Operations {
		o := &s.Operations[i]
		o.Latency = new(Histogram)
		o.Errors = make([]ErrorStats, len(statErrnos))
		for k := range statErrnos {
			o.Errors[k].Errno = statErrnos[k].name
		}
		// What is answered is read before what has begun, so that there is
		// never more of the first.
		for _, q := range d.queues {
			q.stats[i].latency.read(o.Latency)
		}
		o.Requests = o.Latency.Count()
		var begun uint64
		for _, q := range d.queues {
			c := &q.stats[i]
			o.Bytes += c.bytes.load()
			o.Unmapped += c.unmapped.load()
			for k := range c.errors {
				o.Errors[k].Requests += c.errors[k].load()
			}
			begun += c.begun.load()
		}
		o.InFlight = begun - o.Requests
	}
	for i := range operations {
		if op := &operations[i]; op.serve != nil {
			s.Operations[op.stat].Name = op.name
		}
	}
	s.Operations[statUnknown].Name = unknown.name
	return s
}
