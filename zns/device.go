package zns

// Device is the zone state machine over a Media.
type Device struct{}

// flight is a request's place in the Device.
type flight struct{}
