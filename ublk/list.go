package ublk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
)

// ourMark is the upper half of the mark of every device that Start makes; the
// lower half is drawn. A mark is the driver's ublksrv_flags, which it keeps and
// does not look at. What other servers put there are flags of their own, bits
// counted from the lowest: ublksrv whether its target needs an eventfd or polls,
// libublk the flags of a target. Most leave it 0.
const ourMark = 0x717a6264 // qzbd

func drawMark() uint64 { return ourMark<<32 | uint64(rand.Uint32()) }

// Ours reports whether Start of some process made the device. Nobody but root
// can make another one that looks like it: a device of other users has no zones.
func (i Info) Ours() bool { return i.Mark>>32 == ourMark && i.Features.Has(fZoned) }

// IDs returns the numbers of all devices, sorted. It asks no driver: there need
// not be one, nor a right to ask.
func IDs() ([]int, error) {
	names, err := os.ReadDir("/dev")
	if err != nil {
		return nil, fmt.Errorf("ublk: list devices: %w", err)
	}
	var ids []int
	for _, n := range names {
		num, ok := strings.CutPrefix(n.Name(), "ublkc")
		if id, err := strconv.Atoi(num); ok && err == nil && CharPath(id) == "/dev/"+n.Name() {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// List describes all devices, by ID. Those that cannot be described are in the
// error.
func (c *Control) List(ctx context.Context) ([]Info, error) {
	ids, err := IDs()
	if err != nil {
		return nil, err
	}
	var all []Info
	var errs []error
	for _, id := range ids {
		info, err := c.Info(ctx, id)
		switch {
		case errors.Is(err, ErrNoDevice): // it went in between
		case err != nil:
			errs = append(errs, err)
		default:
			all = append(all, info)
		}
	}
	return all, errors.Join(errs...)
}

// Outlives reports whether the device waits for another server when its server
// dies.
func (i Info) Outlives() bool { return i.Features.Has(fUserRecovery) }
