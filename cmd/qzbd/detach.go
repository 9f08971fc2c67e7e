package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func detachCommand() *cobra.Command {
	var all, force bool
	cmd := &cobra.Command{
		Use:   "detach /dev/ublkbN|IMAGE|--all",
		Short: "Stop serving an image and remove its device",
		Long: `Detach commits everything to the image, removes the device and returns when
both are done. It needs no server: of one that died it commits what that had
acknowledged, and it removes what is left of devices whose records are gone.
Devices of other programs are left alone.

A device that is mounted or open is left alone, too, and detach says by whom it
is used. With --force it goes all the same: its users get I/O errors, and what
they have written and not flushed is lost to them - a file system goes
read-only and has to be unmounted. The image is closed in order.

With --all a device in use stays, the others go, and the exit status is 1.`,
		ValidArgsFunction: completeAttached,
		Args: func(cmd *cobra.Command, args []string) error {
			if all != (len(args) == 0) || len(args) > 1 {
				return usageError(cmd, errors.New("detach takes one device or image, or --all"))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if all {
				return detachAll(force)
			}
			list, err := findStates(args[0])
			if err != nil {
				return err
			}
			switch {
			case len(list) == 0:
				d, err := findUnrecorded(args[0])
				if err != nil {
					return err
				}
				return d.remove(force)
			case len(list) > 1 && list[0].alive():
				return fmt.Errorf("%s is attached as %s: say which of them to detach", args[0], devicesOf(list))
			}
			var errs []error
			for _, s := range list {
				errs = append(errs, detach(s, force))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "detach every device of qzbd")
	cmd.Flags().BoolVar(&force, "force", false, "detach also what is in use: its users get I/O errors")
	return cmd
}

func detachAll(force bool) error {
	all, k, err := devices()
	if err != nil {
		return err
	}
	errs := []error{k.err}
	for _, d := range all {
		switch d.Status {
		case foreign, unknown:
		case orphan:
			errs = append(errs, d.remove(force))
		default:
			errs = append(errs, detach(d.state, force))
		}
	}
	return errors.Join(errs...)
}

func detach(s *state, force bool) error {
	waits := s.waits()
	switch {
	case force:
		warnUsers(s.Device)
	case waits:
		// It can be recovered, and then unmounted.
		if users := usersOf(s.Device); users != "" {
			return fmt.Errorf("%s is in use (%s) and has no server: qzbd recover %s, then unmount or close it; or qzbd detach --force %s, and who waits gets errors",
				s.Device, users, s.Device, s.Device)
		}
	case s.alive():
		if err := awaitUnused(s.Device); err != nil {
			return err
		}
	}
	if s.alive() {
		if err := s.signalAndWait(syscall.SIGTERM); err != nil {
			return err
		}
		if !force {
			if err := s.refuseLeft(); err != nil {
				return err
			}
		}
	}
	return s.settle(force)
}

// refuseLeft returns an error if the server, told to stop, has found the device in
// use and left it.
func (s *state) refuseLeft() error {
	last, err := s.last()
	if err == nil && last != nil && last.Left != "" {
		err = fmt.Errorf("%s has just come into use (%s) and now waits for a server: qzbd recover %s, then unmount or close it", s.Device, last.Left, s.Device)
	}
	return err
}

// findUnrecorded returns the device that name, one of its nodes, belongs to and
// that has no record.
func findUnrecorded(name string) (device, error) {
	none := fmt.Errorf("%s is not attached: qzbd list shows what is", name)
	id, ok := deviceNumber(name)
	if !ok {
		return device{}, none
	}
	all, k, err := devices()
	if err != nil {
		return device{}, err
	}
	for _, d := range all {
		if d.ID == id && (d.Status == orphan || d.Status == foreign) {
			return d, nil
		}
	}
	return device{}, cmp.Or(k.err, none)
}

func explainForeign(d device) error {
	return fmt.Errorf("%s is no device of qzbd, so it is left alone: remove it with the program that made it", d.Device)
}

// remove removes an orphan. What its record said is lost: its image is mended by
// whoever attaches it next.
func (d device) remove(force bool) error {
	if d.Status != orphan {
		return explainForeign(d)
	}
	if force {
		warnUsers(d.Device)
	} else if err := awaitUnused(d.Device); err != nil {
		return fmt.Errorf("%w; it has no record in %s, so it cannot be recovered: --force removes it all the same", err, stateRoot)
	}
	served := d.alive()
	if served {
		if err := d.signalAndWait(syscall.SIGTERM); err != nil {
			return err
		}
	}
	mark, err := d.mark()
	if err != nil {
		return err
	}
	if err := awaitDeath(d.state, mark); err != nil {
		return err
	}
	// A damaged record, while nobody else can have the number.
	if err := d.state.remove(); err != nil {
		return err
	}
	if err := deleteDevice(d.ID, mark); err != nil {
		return fmt.Errorf("%s cannot be removed: %w", d.Device, err)
	}
	if !served {
		printWarning(fmt.Sprintf("%s had no record in %s: what its server had not flushed is lost, and attach mends its image", d.Device, stateRoot))
	}
	return nil
}

// warnUsers says what happens to those who use the device.
func warnUsers(node string) {
	if who, _, err := holders(node); err == nil && len(who) > 0 {
		printWarning(fmt.Sprintf("%s is taken from its users (%s): they get I/O errors, and what they have not flushed is lost to them", node, strings.Join(who, ", ")))
	}
}

// awaitUnused returns an error that says by whom the node is in use.
func awaitUnused(node string) error {
	if _, _, err := holders(node); errors.Is(err, fs.ErrPermission) {
		return err
	}
	if users := usersOf(node); users != "" {
		return fmt.Errorf("%s is in use (%s): unmount or close it first, or see qzbd detach --help for --force", node, users)
	}
	return nil
}
