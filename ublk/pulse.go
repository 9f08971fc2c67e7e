package ublk

import (
	"context"
	"fmt"
	"time"
)

// pulseCheck is how often Pulse looks whether a queue has answered.
const pulseCheck = time.Millisecond

// Pulse asks every queue for a sign of life and returns once all have given
// one, which on an idle machine takes microseconds; an error says which has not
// before ctx ended. A queue never waits for anything but its ring, so one that
// does not answer is stuck. Requests that take long are no concern of it: they
// wait for a disk, on other threads. A device that has ended is well.
func (d *Device) Pulse(ctx context.Context) error {
	before := make([]uint64, len(d.queues))
	for i, q := range d.queues {
		before[i] = q.turns.Load()
		q.ring.Wake()
	}
	for i, q := range d.queues {
		for q.turns.Load() == before[i] {
			select {
			case <-d.done:
				return nil
			case <-ctx.Done():
				return fmt.Errorf("ublk: queue %d of device %d gives no sign of life: %w", i, d.id, ctx.Err())
			case <-time.After(pulseCheck):
			}
		}
	}
	return nil
}
