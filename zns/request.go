package zns

// Op is what a request asks for.
type Op uint8

// The operations of a zoned device.
const (
	OpRead Op = iota
	OpWrite
	OpAppend
	OpWriteZeroes
	OpFlush
	OpOpen
	OpClose
	OpFinish
	OpReset
	OpResetAll
)

var opNames = [...]string{
	OpRead: "read", OpWrite: "write", OpAppend: "append", OpWriteZeroes: "write-zeroes",
	OpFlush: "flush", OpOpen: "open", OpClose: "close", OpFinish: "finish",
	OpReset: "reset", OpResetAll: "reset-all",
}

func (o Op) String() string { return opNames[o] }

// Hole as an extent's Off says that the range reads as zeros and lies nowhere
// in the image file. It never occurs in the extents of a write.
const Hole int64 = -1

// Extent is a piece of a request's range: Len bytes at byte Off of the image
// file, or a Hole. It is an alias, so that a Media needs no import of this
// package.
type Extent = struct {
	Off int64
	Len int64
}

// Step is what has to happen next with a request.
type Step uint8

const (
	// Answer: the request is finished, its outcome is in Err (and At).
	// The Device has let go of it.
	Answer Step = iota
	// IO: move the data of Extents, then call Device.End.
	IO
	// Work: call Device.Work on a goroutine that may block.
	Work
	// Wait: the Device calls Wake with Next set when there is more to do.
	Wait
	// Compare: compare the request's data with what Extents have, then call
	// Device.End, with ErrDiffers if it is not the same. It is wanted only of
	// appends to a Device that Resume has made.
	Compare
)

// Request is one request on its way through a Device. The executor (a queue, a
// tool, a simulation) owns it, fills the first block, sets Wake once and
// reuses it; between Begin and Answer only the Device touches it. Offsets and
// lengths are bytes.
//
// A Request must not be copied while it is in flight.
type Request struct {
	Op  Op
	FUA bool
	// Start is the first byte of the range; of a zone management operation
	// and of an append the start of the zone.
	Start uint64
	Len   uint64
	// Slot numbers the requests that can be in flight at the same time, for
	// the journal.
	Slot uint32

	// Extents are what an IO step has to move, in the order of the range
	// [At, At+Len). The slice is reused by the next request.
	Extents []Extent
	// At is where the data goes: Start, or of an append the position that
	// was taken for it.
	At uint64
	// Unmapped says that Work had to find or to make the mapping of the range.
	Unmapped bool
	// Err is the outcome at Answer.
	Err error

	// Wake is called once for each Wait, from any goroutine, with Next set to
	// Answer or Work. It must not block and must not call the Device. It may
	// come before the call that returns Wait has returned: whoever gets Wait
	// leaves the request alone until Wake.
	Wake func(*Request)
	Next Step

	flight flight // the Device's own
}
