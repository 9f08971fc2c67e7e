package systemd

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Watch tells the service manager's watchdog that all is well, twice in the
// time that it grants, for as long as alive says so in half of that time. failed
// is told why it is not. Watch returns with ctx, and at once where no watchdog
// asks.
func Watch(ctx context.Context, alive func(context.Context) error, failed func(error)) {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		failed(err)
	}
	if limit <= 0 {
		return
	}
	tick := time.NewTicker(limit / 2)
	defer tick.Stop()
	for {
		if err := ping(ctx, limit/2, alive); err != nil && ctx.Err() == nil {
			failed(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func ping(ctx context.Context, limit time.Duration, alive func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := alive(ctx); err != nil {
		return err
	}
	_, err := daemon.SdNotify(false, daemon.SdNotifyWatchdog)
	return err
}
