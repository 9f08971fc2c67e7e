package ublk

import (
	"context"
	"errors"
)

var errStub = errors.New("ublk: not built yet")

// Device is a running block device.
type Device struct{}

// Start adds a device for target, serves it and shows its node.
func Start(ctx context.Context, cfg Config, target Target) (*Device, error) { return nil, errStub }

// ID is the N of /dev/ublkbN.
func (d *Device) ID() int { return -1 }

// Path is /dev/ublkbN.
func (d *Device) Path() string { return "" }

// Done is closed when the device is gone, whoever ended it.
func (d *Device) Done() <-chan struct{} { return nil }

// Wait waits for Done and returns why the device ended, nil after Stop.
func (d *Device) Wait() error { return errStub }

// Stop ends the device in order; it is idempotent.
func (d *Device) Stop() error { return errStub }

// Control talks to the ublk driver.
type Control struct{}

// Open opens /dev/ublk-control.
func Open() (*Control, error) { return nil, errStub }

// Close lets go of the driver.
func (c *Control) Close() {}

// Features returns the driver's feature bits.
func (c *Control) Features(ctx context.Context) (Features, error) { return 0, errStub }

// List returns the devices there are, by ID.
func (c *Control) List(ctx context.Context) ([]Info, error) { return nil, errStub }

// Info describes the device id.
func (c *Control) Info(ctx context.Context, id int) (Info, error) { return Info{}, errStub }

// Stop stops the device id of whatever process.
func (c *Control) Stop(ctx context.Context, id int) error { return errStub }

// TryStop is Stop unless somebody has the node open.
func (c *Control) TryStop(ctx context.Context, id int) error { return errStub }

// Delete removes the device id.
func (c *Control) Delete(ctx context.Context, id int) error { return errStub }

// Features are the feature bits of a driver or a device.
type Features uint64

// Feature is one row of FeatureTable.
type Feature struct {
	Bit      Features
	Name     string // as in the kernel's header, without UBLK_F_
	Since    string // the kernel version that brings it
	Required bool   // by Start
}

// FeatureTable lists the features there are, by bit.
var FeatureTable []Feature

// State is a device's state.
type State uint16

func (s State) String() string { return "" }

// Info is what the driver says about a device.
type Info struct {
	ID       int
	State    State
	PID      int // of the server; -1 or stale when it is dead
	Queues   int
	Depth    int
	MaxIO    int // bytes
	Features Features
}
