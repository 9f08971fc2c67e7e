package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
)

func upgradeCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "upgrade /dev/ublkbN|IMAGE|--all",
		Short: "Make this program the server of a device that is in use",
		Long: `Upgrade has the server of a device become this program: run it from the new
one. Whoever uses the device sees a pause and no error; how long it was is
printed. The process stays the same. A server that cannot start this program, or
that this program cannot take over from, goes on as it was.

When it goes wrong later, the device waits: qzbd recover goes on with it.`,
		ValidArgsFunction: completeAttached,
		Args: func(cmd *cobra.Command, args []string) error {
			if all != (len(args) == 0) || len(args) > 1 {
				return usageError(cmd, errors.New("upgrade takes one device or image, or --all"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if all {
				return upgradeAll(cmd.Context())
			}
			list, err := findStates(args[0])
			if err != nil {
				return err
			}
			if len(list) == 0 {
				return explainUnrecorded(args[0])
			}
			var errs []error
			for _, s := range list {
				errs = append(errs, s.upgrade(cmd.Context()))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "upgrade the server of every device that has one and outlives it")
	return cmd
}

// upgradeAll upgrades what can be, and says what could be and is not.
func upgradeAll(ctx context.Context) error {
	list, err := states()
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range list {
		switch {
		case !s.alive():
		case !s.Recovery:
			printWarning(s.explainNoUpgrade().Error())
		default:
			errs = append(errs, s.upgrade(ctx))
		}
	}
	return errors.Join(errs...)
}

func (s *state) explainNoUpgrade() error {
	return fmt.Errorf("%s was attached with --no-recovery and goes with its server: detach it and attach %s again", s.Device, s.Image)
}

// upgrade has the server of the device become this program.
func (s *state) upgrade(ctx context.Context) error {
	switch {
	case !s.alive() && s.waits():
		return fmt.Errorf("%s has no server: `qzbd recover %s` serves it by this program", s.Device, s.Device)
	case !s.alive():
		return s.explainDead()
	case !s.Recovery:
		return s.explainNoUpgrade()
	}
	if err := s.readable(); err != nil {
		return fmt.Errorf("%w: %s goes on as it was", err, s.Device)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := s.controlClient()
	defer c.close()
	ctx, cancel := context.WithTimeout(ctx, upgradeWait)
	defer cancel()
	if err := c.call(ctx, "POST", "/upgrade", upgradeOrder{Program: self, Version: version}, nil); err != nil {
		return err
	}
	now, err := s.awaitSuccessor(ctx)
	if err == nil {
		fmt.Printf("%s: %s → %s, paused for %.0f ms\n", s.Device, s.Version, now.Version, now.Pause*1e3)
	}
	return err
}

// awaitSuccessor returns the record that the new program has written, within the
// time that ctx grants.
func (s *state) awaitSuccessor(ctx context.Context) (*state, error) {
	for told, begun := false, time.Now(); ; time.Sleep(5 * time.Millisecond) {
		alive := s.alive()
		now, err := readState(s.ID)
		switch {
		case err != nil:
			return nil, fmt.Errorf("the server of %s was stopped before it was upgraded: qzbd list shows what is (%w)", s.Device, err)
		case now.PID == s.PID && now.Started == s.Started && now.Since != s.Since:
			return now, nil
		case !alive:
			return nil, fmt.Errorf("the server of %s, process %d, has ended instead of being upgraded, and its log says why: `qzbd recover %s` goes on with the device", s.Device, s.PID, s.Device)
		case ctx.Err() != nil:
			return nil, fmt.Errorf("the server of %s, process %d, has not become another program within %v: it is busy or stopped (kill -CONT %d), and its log says how far it has come", s.Device, s.PID, upgradeWait, s.PID)
		case !told && time.Since(begun) > silence:
			told = true
			fmt.Fprintf(os.Stderr, "qzbd: waiting for the server of %s, process %d\n", s.Device, s.PID)
		}
	}
}
