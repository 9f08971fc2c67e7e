package main

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

func detachCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "detach /dev/ublkbN|IMAGE|--all",
		Short: "Stop serving an image and remove its device",
		Long: `Detach commits everything to the image, removes the device and returns when
both are done. A device that is mounted or open is left alone.`,
		ValidArgsFunction: completeAttached,
		Args: func(cmd *cobra.Command, args []string) error {
			if all != (len(args) == 0) || len(args) > 1 {
				return usageError(cmd, errors.New("detach takes one device or image, or --all"))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if all {
				return detachAll()
			}
			list, err := findStates(args[0])
			if err != nil {
				return err
			}
			switch {
			case len(list) == 0:
				return fmt.Errorf("%s is not attached: qzbd list shows what is", args[0])
			case len(list) > 1 && list[0].alive():
				return fmt.Errorf("%s is attached as %s: say which of them to detach", args[0], devicesOf(list))
			}
			return detachEach(list)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "detach every device of qzbd")
	return cmd
}

func detachAll() error {
	list, err := states()
	if err != nil {
		return err
	}
	return detachEach(list)
}

func detachEach(list []*state) error {
	var errs []error
	for _, s := range list {
		errs = append(errs, detach(s))
	}
	return errors.Join(errs...)
}

func detach(s *state) error {
	switch {
	case s.waits() && s.Failure == "":
		// It can be recovered, and then unmounted.
		if err := awaitUnused(s.Device); err != nil {
			return fmt.Errorf("%w; its server died: qzbd recover %s first", err, s.Device)
		}
	case s.alive():
		if err := awaitUnused(s.Device); err != nil {
			return err
		}
		if err := s.signalAndWait(syscall.SIGTERM); err != nil {
			return err
		}
	}
	return s.settle()
}

// patience is how long detach waits for whoever only has the node open: after
// every write access udev opens it for a moment to look at it.
const patience = 3 * time.Second

// awaitUnused returns an error that says by whom the node is in use.
func awaitUnused(node string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(patience / 30) {
		who, passing, err := holders(node)
		if err != nil || len(who) == 0 {
			return err
		}
		if !passing || time.Now().After(deadline) {
			return fmt.Errorf("%s is in use (%s): unmount or close it first", node, strings.Join(who, ", "))
		}
	}
}
