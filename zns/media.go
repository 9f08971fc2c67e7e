package zns

// Media is where a Device keeps bytes and write pointers. *qcow2.Image is one.
// Offsets and lengths are bytes on the device unless said otherwise; a range
// never crosses a zone boundary.
//
// Map and Stage are called on the hot path, with zone locks held: they are
// pure memory, never block and never allocate once dst has room. The other
// methods block and are called from worker goroutines without any lock.
type Media interface {
	// Map appends the file extents of [off, off+n) to dst. For a write, every
	// byte must get a place of its own in the file, for a read what is not
	// allocated becomes a Hole. ok is false (and dst unchanged) when that
	// needs more than memory: an L2 table to load, a cluster to allocate, a
	// failure to report. MapSlow does that.
	Map(dst []Extent, off, n uint64, write bool) (ext []Extent, ok bool)

	// MapSlow is Map with everything it takes. When it returns, all mapping
	// metadata of a write is in the image's page cache, so that the request
	// can be answered as soon as its data is there. Clusters it allocates
	// read as zeros, also after a power cut (I2, I2b, I6).
	MapSlow(dst []Extent, off, n uint64, write bool) ([]Extent, error)

	// Zero makes [off, off+n) read as zeros.
	Zero(off, n uint64) error

	// Pointer returns the zone's absolute write pointer as last staged, or as
	// the image had it: start+capacity for a full zone, start for an empty or
	// conventional one.
	Pointer(zone uint32) uint64

	// Stage records that everything in the zone below the absolute byte
	// offset wp has been written. The next Round makes it durable.
	Stage(zone uint32, wp uint64)

	// Round makes durable whatever was completed and staged before the call
	// (I1). Concurrent calls share rounds.
	Round() error

	// Reset makes the write pointers of the zones durable at their start,
	// then forgets their contents (I4). No I/O is in flight in these zones.
	Reset(zones []uint32) error

	// Finish makes everything from the absolute byte offset wp to the zone's
	// capacity read as zeros and stages the zone as full. No I/O is in flight
	// in the zone.
	Finish(zone uint32, wp uint64) error
}
