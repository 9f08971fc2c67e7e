package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/systemd"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

// syncInterval is how far a device that nobody flushes may be behind.
const syncInterval = 5 * time.Second

// server is one attached image.
type server struct {
	state *state
	log   *zap.Logger
	stop  chan os.Signal
	// failed receives the reason why the image takes no more writes (I8).
	failed chan error
}

// serve opens the image, starts the device, calls ready once the node is
// usable and returns after the orderly stop. It takes over image, which is
// locked. What went wrong after ready stays in the state, for detach and list
// to say.
func serve(o *attachOptions, image *os.File, log *zap.Logger, ready func(*state) error) error {
	srv := &server{log: log, stop: make(chan os.Signal, 1), failed: make(chan error, 1)}
	signal.Notify(srv.stop, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	defer signal.Stop(srv.stop)

	var err error
	if srv.state, err = newState(o, image); err != nil {
		return errors.Join(err, image.Close())
	}
	img, err := qcow2.Open(qcow2.NewOSFile(image), qcow2.Options{
		SyncInterval: syncInterval,
		OnFail:       srv.imageFailed,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", o.image, err), image.Close())
	}
	err = srv.serveImage(o, img, int(image.Fd()), ready)
	if cerr := img.Close(); cerr != nil {
		err = errors.Join(err, fmt.Errorf("close %s: %w", o.image, cerr))
	}
	if srv.state.Device == "" { // it never came to a device
		return err
	}
	if err != nil {
		srv.log.Error("stopped with an error", zap.Error(err))
		srv.state.Failure = err.Error()
		return errors.Join(err, srv.state.save())
	}
	srv.log.Info("stopped")
	return srv.state.remove()
}

// newState fills in what is known before there is a device.
func newState(o *attachOptions, image *os.File) (*state, error) {
	s := &state{PID: os.Getpid(), Queues: o.queues, Depth: o.depth, Attached: time.Now().UTC()}
	var err error
	if s.Started, err = processStart(s.PID); err != nil {
		return nil, err
	}
	if s.Image, err = filepath.Abs(o.image); err != nil {
		return nil, err
	}
	st, err := image.Stat()
	if err != nil {
		return nil, err
	}
	sys := st.Sys().(*syscall.Stat_t)
	s.Dev, s.Ino = sys.Dev, sys.Ino
	return s, nil
}

func (srv *server) imageFailed(err error) {
	select {
	case srv.failed <- err:
	default: // the first reason is the one to report
	}
}

// serveImage has a device over the image from its start to its end.
func (srv *server) serveImage(o *attachOptions, img *qcow2.Image, fd int, ready func(*state) error) error {
	target, err := zns.New(geometry(img.Header(), uint32(o.blockSize)), img)
	if err != nil {
		return fmt.Errorf("%s: %w", o.image, err)
	}
	dev, err := ublk.Start(context.Background(), ublk.Config{
		ID: o.id, Queues: o.queues, Depth: o.depth, DataFD: fd, Logger: srv.log,
	}, target)
	if err != nil {
		return err
	}
	srv.state.ID, srv.state.Device = dev.ID(), dev.Path()
	srv.log = srv.log.With(zap.String("device", dev.Path()))
	if err = srv.announce(ready); err == nil {
		err = srv.untilStopped(dev)
	}
	if nerr := systemd.Stopping(); nerr != nil {
		srv.log.Warn("service manager not told", zap.Error(nerr))
	}
	if who, _, herr := holders(dev.Path()); herr == nil && len(who) > 0 {
		srv.log.Warn("stopping a device in use", zap.String("by", strings.Join(who, ", ")))
	}
	if serr := dev.Stop(); serr != nil {
		err = errors.Join(err, fmt.Errorf("stop %s: %w", dev.Path(), serr))
	}
	return err
}

// announce says that the node is usable.
func (srv *server) announce(ready func(*state) error) error {
	s := srv.state
	if err := s.save(); err != nil {
		return fmt.Errorf("record the device in %s: %w", stateRoot, err)
	}
	if err := ready(s); err != nil {
		return fmt.Errorf("announce %s: %w", s.Device, err)
	}
	if err := systemd.Ready(fmt.Sprintf("serving %s as %s", s.Image, s.Device)); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	srv.log.Info("serving", zap.String("image", s.Image), zap.Int("queues", s.Queues), zap.Int("depth", s.Depth))
	return nil
}

// untilStopped returns when the device has to go, with what went wrong before.
func (srv *server) untilStopped(dev *ublk.Device) error {
	for {
		select {
		case sig := <-srv.stop:
			srv.log.Info("stopping", zap.Stringer("signal", sig))
			return nil
		case <-dev.Done():
			srv.log.Warn("the device was deleted by somebody else")
			return nil
		case cause := <-srv.failed:
			srv.log.Error("the image failed and takes no more writes", zap.Error(cause))
			srv.state.Failure = cause.Error()
			if err := srv.state.save(); err != nil {
				return fmt.Errorf("record the failure: %w", err)
			}
		}
	}
}

// geometry is the image's zones as the device shows them.
func geometry(h qcow2.Header, blockSize uint32) zns.Geometry {
	z := h.Zoned
	maxAppend := z.MaxAppend &^ (blockSize - 1)
	if z.MaxAppend == 0 { // no limit of its own: the device's largest request
		maxAppend = ublk.DefaultMaxIO
	}
	return zns.Geometry{
		Size: h.Size, ZoneSize: z.ZoneSize, ZoneCapacity: z.ZoneCapacity,
		NrZones: z.NrZones, Conventional: z.Conventional,
		MaxOpen: z.MaxOpen, MaxActive: z.MaxActive, MaxAppend: uint64(maxAppend),
		BlockSize: blockSize,
	}
}
