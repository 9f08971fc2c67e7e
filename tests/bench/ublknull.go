package main

import (
	"context"
	"errors"
	"os"
	"sync"

	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

// null is a ublk.Target that answers every request at once and moves no data:
// what is left is ublk itself, the kernel's side and ours. It only keeps the
// write pointers, which whoever uses zones wants to see move.
type null struct {
	mu sync.Mutex // guards wp
	wp [sizeMiB / zoneMiB]uint64
}

var nullGeometry = zns.Geometry{
	Size: sizeMiB << 20, ZoneSize: zoneMiB << 20, ZoneCapacity: zoneMiB << 20,
	NrZones: sizeMiB / zoneMiB, MaxAppend: 64 << 10, BlockSize: 4096,
}

func newNull() *null {
	n := new(null)
	for i := range n.wp {
		n.wp[i] = n.start(i)
	}
	return n
}

func (*null) start(zone int) uint64 { return uint64(zone) * nullGeometry.ZoneSize }

func (*null) Geometry() zns.Geometry { return nullGeometry }

// Zone knows no more of conditions than the kernel asks for.
func (n *null) Zone(i uint32) zns.Zone {
	n.mu.Lock()
	defer n.mu.Unlock()
	z := zns.Zone{
		Start: n.start(int(i)), Len: nullGeometry.ZoneSize, Capacity: nullGeometry.ZoneCapacity,
		WP: n.wp[i], Type: zns.TypeSeqWriteReq, Cond: zns.CondImpOpen,
	}
	switch z.WP - z.Start {
	case 0:
		z.Cond = zns.CondEmpty
	case z.Capacity:
		z.Cond = zns.CondFull
	}
	return z
}

func (n *null) Begin(r *zns.Request) zns.Step {
	n.mu.Lock()
	defer n.mu.Unlock()
	zone := nullGeometry.ZoneOf(r.Start)
	r.At, r.Err = r.Start, nil
	switch r.Op {
	case zns.OpRead, zns.OpFlush:
	case zns.OpWrite:
		n.wp[zone] = r.Start + r.Len
	case zns.OpReset:
		n.wp[zone] = r.Start
	default:
		r.Err = zns.ErrUnsupported
	}
	return zns.Answer
}

func (n *null) Work(*zns.Request) zns.Step       { panic("bench: nothing was to be done") }
func (n *null) End(*zns.Request, error) zns.Step { panic("bench: no data was to be moved") }

// ublkNull serves a null, in this process.
func (b *bench) ublkNull() (*device, error) {
	if err := b.run("modprobe", "ublk_drv"); err != nil {
		return nil, err
	}
	file, err := os.Open(os.DevNull) // there has to be one
	if err != nil {
		return nil, err
	}
	d, err := ublk.Start(context.Background(), ublk.Config{ID: -1, DataFD: int(file.Fd())}, newNull())
	if err != nil {
		file.Close()
		return nil, err
	}
	detach := func() error { return errors.Join(d.Stop(), file.Close()) }
	if err := ublk.Unschedule(d.ID()); err != nil { // as qzbd does; nothing is in flight
		return nil, errors.Join(err, detach())
	}
	return &device{d.Path(), detach}, nil
}
