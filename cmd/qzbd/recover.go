package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

func recoverCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "recover /dev/ublkbN|IMAGE|--all",
		Short: "Serve a device again whose server died",
		Long: `Recover starts a new server for a device whose server died, with the options
that it was attached with, and prints its node. Whoever uses the device has seen
a pause and no error, and everything that was acknowledged is there. An image that
had failed has failed still: what was flushed can be read.`,
		ValidArgsFunction: completeAttached,
		Args: func(cmd *cobra.Command, args []string) error {
			if all != (len(args) == 0) || len(args) > 1 {
				return usageError(cmd, errors.New("recover takes one device or image, or --all"))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if all {
				return recoverAll()
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
				errs = append(errs, s.recover())
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "recover every device that waits")
	return cmd
}

// recoverAll takes over every device that waits, and says of what else has no
// server why it does not. Of foreign devices it says nothing.
func recoverAll() error {
	all, k, err := devices()
	if err != nil {
		return err
	}
	errs := []error{k.err}
	for _, d := range all {
		switch d.Status {
		case waiting:
			errs = append(errs, d.recover())
		case dead:
			printWarning(d.explainDead().Error())
		case orphan:
			printWarning(explainOrphan(d).Error())
		}
	}
	return errors.Join(errs...)
}

// explainDead says why a device that is gone is not recovered.
func (s *state) explainDead() error {
	why := "it was attached with --no-recovery"
	if s.Recovery {
		why = "somebody has stopped it"
	}
	return fmt.Errorf("%s is gone, %s: `qzbd attach %s` goes on with its image, `qzbd detach %s` clears it away", s.Device, why, s.Image, s.Device)
}

func explainOrphan(d device) error {
	if d.PID > 0 {
		return fmt.Errorf("%s has a server, process %d, but no record in %s: `qzbd detach %s` stops it in order", d.Device, d.PID, stateRoot, d.Device)
	}
	if _, err := readState(d.ID); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s has no record that can be read, so nobody knows its image any more: %w", d.Device, err)
	}
	return fmt.Errorf("%s has no record in %s, so nobody knows its image any more: `qzbd detach %s` removes it", d.Device, stateRoot, d.Device)
}

// explainUnrecorded says why a command can do nothing with what has no record.
func explainUnrecorded(name string) error {
	d, err := findUnrecorded(name)
	switch {
	case err != nil:
		return err
	case d.Status == foreign:
		return explainForeign(d)
	}
	return explainOrphan(d)
}

// waitingFor returns the state of the device that image was attached as and that
// waits for a server, nil if there is none. Of devices that are gone it keeps
// what their servers had acknowledged.
func waitingFor(image string) (*state, error) {
	list, err := findStates(image)
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if s.waits() {
			return s, nil
		}
		if !s.alive() {
			if _, err := s.keep(); errors.Is(err, errOtherImage) { // with the number of that one
				printWarning(err.Error())
			} else if err != nil {
				return nil, err
			}
		}
	}
	return nil, nil
}

// refuseWaiting keeps others from an image whose device waits: nobody holds its
// lock.
func refuseWaiting(image string) error {
	waiting, err := waitingFor(image)
	if err == nil && waiting != nil {
		err = fmt.Errorf("%s is the image of %s, whose server died: recover or detach that first", image, waiting.Device)
	}
	return err
}

// warnWaiting says of an image whose device waits what the file alone does not say.
func warnWaiting(image string) {
	list, _ := findStates(image) // who may not read records is told less
	for _, s := range list {
		if s.waits() {
			printWarning(fmt.Sprintf("%s is the image of %s, whose server died: what lies above write pointers may be data that was acknowledged, and is there again after qzbd recover", image, s.Device))
		}
	}
}

// recover starts a new server in the background.
func (s *state) recover() error {
	for deadline := time.Now().Add(dyingWait); s.alive() && dying(s.PID) && time.Now().Before(deadline); {
		time.Sleep(dyingWait / 1000)
	}
	switch {
	case s.alive():
		return s.explainServed()
	case !s.waits():
		return s.explainDead()
	}
	var o attachOptions
	if err := o.takeOver(s); err != nil {
		return err
	}
	return attachAndReturn(&o)
}

// takeOver makes the options those of a device that waits for a server.
func (o *attachOptions) takeOver(s *state) error {
	*o = attachOptions{}
	f := pflag.NewFlagSet("attach", pflag.ContinueOnError)
	o.flags(f)
	o.callFlags(f)
	if len(s.Args) == 0 {
		return fmt.Errorf("the record of %s in %s does not say how it was attached: detach it", s.Device, stateDir(s.ID))
	}
	if err := f.Parse(s.Args[1:]); err != nil || f.NArg() != 1 {
		return fmt.Errorf("the record of %s in %s was written by another version (%v): detach it", s.Device, stateDir(s.ID), err)
	}
	o.resume = true
	if err := o.validate(); err != nil {
		return fmt.Errorf("the record of %s in %s is damaged (%w): detach it", s.Device, stateDir(s.ID), err)
	}
	o.image, o.id, o.failed = s.Image, s.ID, s.Failure != ""
	return nil
}

// dyingWait is how long a server that was killed may hold on to its image: as
// long as the kernel still works on what it had asked for.
const dyingWait = 30 * time.Second

// open opens and locks the image. That of a device whose server died is free
// only when nothing is in flight any more that the dead one had asked for: until
// then its file is open, and locked. A failed image may lie in a file system that
// takes no writes any more.
func (o *attachOptions) open() (*os.File, error) {
	own := -1
	if o.resume {
		own = o.id
	}
	if err := refuseStackedPath(o.image, own); err != nil {
		return nil, err
	}
	f, err := o.openFree()
	if o.resume && errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s, the image of %s, is not there (%w): put it back, or give up what was not flushed with `qzbd detach --force %s`",
			o.image, ublk.NodePath(o.id), fs.ErrNotExist, ublk.NodePath(o.id))
	}
	if err != nil {
		return nil, err
	}
	if err := refuseStackedFile(f, own); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (o *attachOptions) openFree() (*os.File, error) {
	for deadline := time.Now().Add(dyingWait); ; time.Sleep(dyingWait / 1000) {
		f, err := openImage(o.image, !o.readOnly && !o.failed, o.lock)
		if err == nil || !o.resume {
			return f, err
		}
		// Somebody else may have been faster.
		if s, err := readState(o.id); err == nil && s.alive() {
			return nil, s.explainServed()
		}
		if !errors.Is(err, qcow2.ErrInUse) || time.Now().After(deadline) {
			return nil, err
		}
	}
}

func (s *state) explainServed() error {
	return fmt.Errorf("%s has a server, process %d: there is nothing to recover", s.Device, s.PID)
}

// commit writes to the image what a server that was killed had acknowledged,
// and closes it in order.
func (s *state) commit() error {
	var o attachOptions
	if err := o.takeOver(s); err != nil {
		return err
	}
	if o.readOnly {
		return nil
	}
	file, err := o.open()
	if err != nil {
		return err
	}
	var now state
	if err := errors.Join(now.identify(file), s.sameImage(&now)); err != nil {
		return errors.Join(err, file.Close())
	}
	f := qcow2.NewOSFile(file)
	im, _, _, err := s.goOn(&o, f, qcow2.Options{Warn: printWarning},
		func(uint64) []zns.Option { return nil })
	if err != nil {
		return errors.Join(err, f.Close())
	}
	return im.Close()
}

// keep is commit where it can be done. That it cannot is only a warning: what was
// flushed is in the image all the same. An image in use is an error, and so is one
// that is not there: it may come back.
func (s *state) keep() (kept bool, err error) {
	if !s.Recovery || s.Failure != "" {
		return false, nil
	}
	err = s.commit()
	switch {
	case errors.Is(err, qcow2.ErrInUse), errors.Is(err, errOtherImage), errors.Is(err, fs.ErrNotExist):
		return false, err
	case err != nil:
		printWarning(fmt.Sprintf("what the server of %s had acknowledged and not flushed is lost: %v", s.Device, err))
	}
	return err == nil, nil
}

// goOn opens the image where the server that was killed had got to.
func (s *state) goOn(o *attachOptions, f *qcow2.OSFile, opt qcow2.Options, more func(zoneSize uint64) []zns.Option) (*qcow2.Image, *zns.Device, *journalFile, error) {
	h, wps, err := qcow2.ReadPointers(f)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: %w", o.image, err)
	}
	g, err := geometry(h, wps, o)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: %w", o.image, err)
	}
	j, err := openJournal(s, g.NrZones, g.Size)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: %w", s.Device, err)
	}
	opt.Pointers = func(zone uint32) (uint64, bool) {
		if zone >= g.NrZones {
			return 0, false
		}
		return uint64(zone)*g.ZoneSize + j.Pointer(zone), true
	}
	resume := zns.Resume(j.Journal)
	if opt.Failed = s.Failure; opt.Failed != "" { // I8
		resume = zns.ResumeFailed(j.Journal)
	}
	im, err := qcow2.Open(f, opt)
	if errors.Is(err, qcow2.ErrLost) { // the host says so only once (I8)
		s.Failure = err.Error()
		if err = s.recordFailure(); err == nil {
			opt.Failed, resume = s.Failure, zns.ResumeFailed(j.Journal)
			im, err = qcow2.Open(f, opt)
		}
	}
	if err != nil {
		j.close()
		return nil, nil, nil, fmt.Errorf("%s: %w", o.image, err)
	}
	d, err := zns.New(g, im, append(more(g.ZoneSize), resume)...)
	if err != nil {
		j.close()
		return nil, nil, nil, errors.Join(fmt.Errorf("%s: %w", s.Device, err), im.Close())
	}
	return im, d, j, nil
}

// recordFailure writes the failure to the record of the device, which stays that of
// the server that died.
func (s *state) recordFailure() error {
	last, err := readState(s.ID)
	if err != nil {
		return err
	}
	last.Failure = s.Failure
	return last.save()
}

// errOtherImage: the name of the image is that of another file by now.
var errOtherImage = errors.New("another file than the one that")

// sameImage checks that the image is still the file that the device was made of.
// The number of a file that was removed is soon another file's, which has been
// born later.
func (s *state) sameImage(now *state) error {
	if s.Dev == now.Dev && s.Ino == now.Ino && (s.Birth == now.Birth || s.Birth == 0 || now.Birth == 0) {
		return nil
	}
	return fmt.Errorf("%s is %w %s was made of: put that back (inode %d), or give up what was not flushed with `qzbd detach --force %s`",
		filepath.Clean(s.Image), errOtherImage, s.Device, s.Ino, s.Device)
}

// identify notes which file the image is.
func (s *state) identify(image *os.File) error {
	var st unix.Statx_t
	if err := unix.Statx(int(image.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return fmt.Errorf("statx %s: %w", image.Name(), err)
	}
	s.Dev, s.Ino = unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino
	if st.Mask&unix.STATX_BTIME != 0 {
		s.Birth = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return nil
}
