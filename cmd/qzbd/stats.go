package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// minWatchInterval keeps --watch from being what it measures.
const minWatchInterval = 10 * time.Millisecond

func statsCommand() *cobra.Command {
	var watch, asJSON bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "stats /dev/ublkbN|IMAGE",
		Short: "Show what a device does and how long that takes",
		Long: `Stats shows requests, bytes, errors and latencies of each operation, the
conditions of the zones, what flushes cost and the space that the image takes,
since the server took the device: at attach, or at the last recovery or upgrade.

With --watch it goes on, with a block for each interval, until the device is
detached or it is interrupted. It waits for a device whose server died.`,
		Args:              needs("a device or IMAGE"),
		ValidArgsFunction: completeAttached,
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval < minWatchInterval {
				return fmt.Errorf("--interval %v: choose %v or more", interval, minWatchInterval)
			}
			if cmd.Flags().Changed("interval") && !watch {
				return usageError(cmd, errors.New("--interval goes with --watch"))
			}
			s, err := attachedAs(args[0])
			if err != nil {
				return err
			}
			w := &statsWatch{s: s, out: os.Stdout, errs: os.Stderr, json: asJSON}
			if watch {
				return w.run(cmd.Context(), interval)
			}
			return w.once(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVar(&watch, "watch", false, "go on, with what each interval has brought")
	f.DurationVar(&interval, "interval", time.Second, "of --watch")
	f.BoolVar(&asJSON, "json", false, "print JSON; with --watch an object per line")
	completeFlag(cmd, "interval", words("1s", "5s", "10s"))
	return cmd
}

// attachedAs returns the one record that name, a device or an image, belongs to.
func attachedAs(name string) (*state, error) {
	list, err := findStates(name)
	switch {
	case err != nil:
		return nil, err
	case len(list) == 0:
		return nil, explainUnrecorded(name)
	case len(list) > 1:
		return nil, fmt.Errorf("%s is attached as %s: say which of them", name, devicesOf(list))
	}
	return list[0], nil
}

// statsWatch reports a device on out.
type statsWatch struct {
	s         *state
	out, errs io.Writer
	json      bool
	last      *snapshot // nil: what comes next is the beginning
	said      string    // the last note, which is not said twice
	silent    int       // how often in a row a living server has not answered
}

// ask asks the server for a snapshot.
func (w *statsWatch) ask(ctx context.Context) (*snapshot, error) {
	c := w.s.controlClient()
	defer c.close()
	now := new(snapshot)
	return now, c.call(ctx, "GET", "/stats", nil, now)
}

func (w *statsWatch) once(ctx context.Context) error {
	now, err := w.ask(ctx)
	if err != nil {
		return err
	}
	r := newStatsReport(nil, now)
	if w.json {
		return printJSON(r)
	}
	return r.print(w.out)
}

// run reports every interval until the device is detached.
func (w *statsWatch) run(ctx context.Context, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for first := true; ; first = false {
		now, err := w.ask(ctx)
		switch {
		case err == nil:
			if err := w.report(now); err != nil {
				return err
			}
		case first && w.s.alive():
			return err // it will not be better the next time
		default:
			if over, err := w.look(err); over || err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// report prints what has happened since the last snapshot.
func (w *statsWatch) report(now *snapshot) error {
	last := w.last
	w.last, w.silent = now, 0
	switch {
	case last == nil:
		return nil
	case !last.Began.Equal(now.Began) || last.PID != now.PID:
		w.note(fmt.Sprintf("%s has a new server, process %d: the counters begin anew", now.Device, now.PID))
		return nil
	}
	w.said = ""
	r := newStatsReport(last, now)
	if w.json {
		return json.NewEncoder(w.out).Encode(r)
	}
	return r.print(w.out)
}

// look finds out why there was no answer, and whether there will be one.
func (w *statsWatch) look(cause error) (over bool, err error) {
	s, err := readState(w.s.ID)
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && s.Mark != w.s.Mark: // the number is another device's
		w.note(w.s.Device + " is detached")
		return true, nil
	case err != nil:
		return true, err
	case s.PID != w.s.PID || s.Started != w.s.Started:
		w.s = s // it answers the next time
		return false, nil
	case s.alive():
		if w.silent++; w.silent > 1 { // once it may just be stopping
			w.note(cause.Error())
		}
	case s.waits():
		w.note(fmt.Sprintf("the server of %s died: waiting for qzbd recover", s.Device))
	default:
		return true, fmt.Errorf("the server of %s died, and the device is gone", s.Device)
	}
	return false, nil
}

// note says something that is no report, once.
func (w *statsWatch) note(what string) {
	if w.said != what {
		fmt.Fprintln(w.errs, "qzbd:", what)
		w.said = what
	}
}
