package zns

import "errors"

// The errors a request can be refused with. A refused request has changed
// nothing (I11). Whoever needs an errno maps them in one place.
var (
	ErrInvalid      = errors.New("request is not aligned to the block size or lies outside the device")
	ErrBoundary     = errors.New("request crosses a zone boundary or the zone's capacity")
	ErrNotAtWP      = errors.New("write does not start at the zone's write pointer")
	ErrFull         = errors.New("zone is full")
	ErrReadOnly     = errors.New("zone is read-only")
	ErrOffline      = errors.New("zone is offline")
	ErrConventional = errors.New("operation needs a sequential zone")
	ErrAppendSize   = errors.New("append is larger than the device's append limit")
	ErrOpenLimit    = errors.New("too many open zones")
	ErrActiveLimit  = errors.New("too many active zones")
	ErrAborted      = errors.New("an earlier write in flight in the same zone failed")
	ErrDeviceRO     = errors.New("device is read-only")
	ErrCond         = errors.New("zone condition does not allow the operation")
	ErrUnsupported  = errors.New("operation is not supported")

	// ErrDiffers is what an executor tells End after Compare; no request is
	// refused with it.
	ErrDiffers = errors.New("the data of the append is not what is at its place")
)
