package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/systemd"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

// server is one attached image.
type server struct {
	image *qcow2.Image
	file  *os.File // of the image, locked
	log   *zap.Logger
	stop  chan os.Signal
	trace *zoneTrace // nil: off
	// control answers other qzbd processes.
	control *controlServer
	source  source
	zones   *zns.Device
	// upgrades receives what the server is to become.
	upgrades  chan upgradeOrder
	upgrading sync.Mutex // held from then on
	// journal is what a successor goes on from; nil: there is to be none.
	journal *journalFile
	// failed receives the reason why the image takes no more writes (I8).
	failed chan error
	// warn says what whoever attaches should know.
	warn func(string)

	mu    sync.Mutex // guards state
	state *state
	// announced: what goes wrong is for detach and list to say, no longer for
	// attach.
	announced bool
	closed    bool // the image
}

// serve opens the image, starts the device, calls ready once the node is
// usable and returns after the orderly stop. It takes over file, which is
// locked.
func serve(o *attachOptions, file *os.File, log *zap.Logger, ready func(*state) error) error {
	srv := &server{
		log: log, stop: make(chan os.Signal, 1), failed: make(chan error, 1),
		control: newControl(log), upgrades: make(chan upgradeOrder, 1), file: file,
	}
	srv.control.HandleFunc("POST /upgrade", func(w http.ResponseWriter, r *http.Request) { srv.upgradeOrdered(o, w, r) })
	metrics := newMetrics(&srv.source)
	srv.control.HandleFunc("GET /stats", srv.source.serveStats)
	srv.control.Handle("GET /metrics", metrics)
	srv.warn = func(what string) {
		log.Warn(what)
		if o.warn != nil {
			o.warn(what)
		}
	}
	if o.notFlusher != nil {
		log.Warn("a machine that runs out of memory may hang with a file system on this device", zap.Error(o.notFlusher))
	}
	signal.Notify(srv.stop, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	defer signal.Stop(srv.stop)

	// An image is not even mended for a machine that cannot serve it.
	features, err := kernelFeatures(context.Background())
	if err == nil {
		err = features.Check()
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	if srv.state, err = newState(o, file); err != nil {
		return errors.Join(err, file.Close())
	}
	atAddress, err := startMetrics(o.metrics, metrics, log, o.resume)
	if err != nil {
		return errors.Join(err, file.Close())
	}
	defer atAddress.close()
	f := qcow2.NewOSFile(file)
	var g zns.Geometry
	if !o.resume {
		if err := srv.clearDead(); err != nil {
			return errors.Join(err, f.Close())
		}
		if g, err = srv.plan(o, f); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", o.image, err), f.Close())
		}
		if err := checkFree(o.id); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", o.image, err), f.Close())
		}
	} else if err := srv.succeed(o.id); err != nil {
		return errors.Join(err, f.Close())
	}
	var needs qcow2.Direct
	if o.direct {
		if needs, err = useDirect(o, f); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	open := qcow2.Options{
		ReadOnly:     o.readOnly,
		SyncInterval: o.syncInterval,
		OnFail:       srv.imageFailed,
		Progress:     o.progress,
		Warn:         func(what string) { srv.warn(o.image + ": " + what) },
	}
	// A queue's thread waits in the kernel. Until Go's monitor finds that out, which
	// takes it up to 10 ms, the thread keeps what others could run goroutines with:
	// on a machine with no more CPUs than queues, whatever a worker has to do would
	// wait for that.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + o.queues)
	var dev *ublk.Device
	if o.resume {
		dev, err = srv.takeOver(o, f, open, needs.Offset)
	} else {
		if srv.image, err = qcow2.Open(f, open); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", o.image, err), f.Close())
		}
		if dev, err = srv.start(o, g, f.DataFD(), needs.Offset); err != nil { // the device never was
			err = errors.Join(err, srv.forget())
		}
	}
	if err != nil {
		return err
	}
	srv.log = srv.log.With(zap.String("device", dev.Path()))
	srv.source.from.Store(&sourceOf{dev, srv.zones, srv.image, srv.state.Image, time.Now()})
	// Opening an image takes memory that serving it does not, and a server that
	// allocates next to nothing would not collect it for minutes.
	debug.FreeOSMemory()
	srv.awaitLink(o.resume)
	begun := "attached"
	if o.resume {
		begun = "recovered"
	}
	fields := []zap.Field{zap.Bool("zero-copy", dev.ZeroCopy())}
	if why := dev.WhyCopies(); why != "" {
		fields = append(fields, zap.String("copies", why))
	}
	if h := o.handover; h != nil {
		begun = "upgraded"
		fields = append(fields, zap.String("from", h.From), zap.Float64("pause", srv.state.Pause))
	}
	err = srv.announce(begun, fields, ready)
	if err != nil && o.resume { // whoever waited for this is gone, but others use the device
		srv.log.Warn("device recovered, but nobody could be told", zap.Error(err))
		err = nil
	}
	if err == nil {
		ctx, cancel := context.WithCancel(context.Background())
		go systemd.Watch(ctx, dev.Pulse, func(err error) { srv.log.Error("the watchdog is not told that all is well", zap.Error(err)) })
		order := srv.untilStopped(dev)
		cancel()
		if order != nil {
			err := srv.become(dev, o, order)
			srv.log.Error("upgrade failed: the device waits for qzbd recover", zap.Error(err))
			return &exitError{code: deviceWaits, err: err}
		}
	}
	return srv.end(dev, err)
}

// end stops the device, or leaves it to another server if somebody uses it: the
// end of a server must not be an error of theirs. why is what ends a server that
// nobody has told to stop.
func (srv *server) end(dev *ublk.Device, why error) error {
	if err := systemd.Stopping("stopping " + dev.Path()); err != nil {
		srv.log.Warn("service manager not told", zap.Error(err))
	}
	select {
	case <-dev.Done(): // it broke, or somebody else has removed it
		if err := dev.Wait(); srv.journal != nil && err != nil && !errors.Is(err, ublk.ErrGone) {
			return &exitError{code: deviceWaits, err: err}
		}
	default:
	}
	var err error
	users := usersOf(dev.Path())
	if users != "" && why == nil {
		users = srv.awaitUsers(dev.Path(), users)
	}
	switch alone := srv.canBeLeft(); {
	case users == "" || why != nil:
		err = dev.Stop()
	case alone != nil:
		srv.log.Warn("stopping a device in use, with errors for its users: it cannot be left to another server",
			zap.String("users", users), zap.NamedError("because", alone))
		err = dev.Stop()
	default:
		return srv.leaveToUsers(dev, users)
	}
	if err = errors.Join(why, err); err != nil {
		srv.log.Error("stopped with an error", zap.Error(err))
	} else {
		srv.log.Info("stopped")
	}
	return err
}

// shutdownPatience is how long a machine that goes down may take to unmount what
// is on the device: less than the service has to stop.
const shutdownPatience = 4 * time.Minute

// awaitUsers goes on for those who use the device while the machine shuts down,
// and returns who still does in the end: what was mounted by hand is unmounted at
// the same time as we are stopped, and would wait for us for ever.
func (srv *server) awaitUsers(node, users string) string {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownPatience)
	defer cancel()
	down, err := systemd.ShuttingDown(ctx)
	if err != nil {
		srv.log.Warn("service manager not asked", zap.Error(err))
	}
	if !down {
		return users
	}
	srv.log.Info("going on until nobody uses the device: the machine shuts down", zap.String("users", users))
	for users != "" && ctx.Err() == nil {
		time.Sleep(time.Second)
		users = usersOf(node)
	}
	return users
}

// leaveToUsers leaves a device that is in use to another server.
func (srv *server) leaveToUsers(dev *ublk.Device, users string) error {
	srv.log.Warn("the device is in use: it is left as it is, and its users wait for another server (qzbd recover, or qzbd attach of the image), or until it is taken from them (qzbd detach --force)",
		zap.String("users", users))
	if err := systemd.Status(dev.Path() + " waits for a server, in use: " + users); err != nil {
		srv.log.Warn("service manager not told", zap.Error(err))
	}
	if err := srv.leave(dev); err != nil {
		srv.log.Error("device left, but not in order", zap.Error(err))
		return err
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.state.Left = users
	return srv.state.save()
}

// clearDead removes what earlier servers of the same image have left. Its lock
// is ours, so they are certain to be dead.
func (srv *server) clearDead() error {
	all, err := states()
	if err != nil {
		return err
	}
	for _, old := range all {
		if old.Dev != srv.state.Dev || old.Ino != srv.state.Ino || old.alive() {
			continue
		}
		srv.log.Warn("an earlier server of the image did not stop in order", zap.String("device", old.Device),
			zap.Int("pid", old.PID), zap.String("failure", old.Failure))
		if old.Failure != "" {
			srv.warn(fmt.Sprintf("%s: when it was last attached, as %s: %s", old.Image, old.Device, old.Failure))
		}
		if err := old.clear(); err != nil {
			return err
		}
	}
	return nil
}

// plan says what device the image makes. An image that no device can be made of
// is refused here, before it is opened and perhaps mended.
func (srv *server) plan(o *attachOptions, f qcow2.File) (zns.Geometry, error) {
	h, wps, err := qcow2.ReadPointers(f)
	if err != nil {
		return zns.Geometry{}, err
	}
	if err := h.Built(); err != nil {
		return zns.Geometry{}, err
	}
	g, err := geometry(h, wps, o)
	if err != nil {
		return zns.Geometry{}, err
	}
	if g.NrZones != h.Zoned.NrZones {
		srv.log.Warn("attached without its short last zone", zap.Uint32("zone", g.NrZones))
	}
	return g, ublk.CheckGeometry(g)
}

// checkFree refuses a number that is taken before an image is opened for it, and
// perhaps mended. Who takes it later is found when the device is added.
func checkFree(id int) error {
	if id < 0 {
		return nil
	}
	c, err := ublk.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	switch _, err := c.Info(context.Background(), id); {
	case errors.Is(err, ublk.ErrNoDevice):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("device %d exists already: choose another id, or detach it", id)
}

// start makes a device of the image. Its state is there before the device is,
// so that even a server killed in between leaves nothing that detach cannot
// find.
func (srv *server) start(o *attachOptions, g zns.Geometry, fd, align int) (*ublk.Device, error) {
	options := srv.options(o, g.ZoneSize)
	if !o.noRecovery {
		var err error
		if srv.journal, err = newJournal(g.NrZones, srv.state.slots()); err != nil {
			return nil, fmt.Errorf("make a journal: %w", err)
		}
		options = append(options, zns.WithJournal(srv.journal.Journal))
	}
	target, err := zns.New(g, srv.image, options...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.image, err)
	}
	srv.zones = target
	c := srv.config(o, fd, align)
	c.Added = func(id int, mark uint64) error { return srv.added(id, mark, g.Size) }
	dev, err := ublk.Start(context.Background(), c, target)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.image, err)
	}
	return dev, nil
}

// options are those of the zones.
func (srv *server) options(o *attachOptions, zoneSize uint64) (options []zns.Option) {
	if o.readOnly {
		options = append(options, zns.ReadOnly())
	}
	if slices.Contains(o.trace, "zones") {
		srv.trace = startZoneTrace(zoneSize, srv.log)
		options = append(options, zns.Watch(srv.trace.add))
	}
	return options
}

func (srv *server) config(o *attachOptions, fd, align int) ublk.Config {
	c := ublk.Config{
		ID: o.id, Queues: o.queues, Depth: o.depth, DataFD: fd, DataAlign: align,
		ReadOnly: o.readOnly, NoZeroCopy: o.noZeroCopy, Recovery: !o.noRecovery, Logger: srv.log, Ended: srv.forget,
		// The failure itself is logged, once.
		Known: func(err error) bool { return errors.Is(err, qcow2.ErrFailed) },
	}
	if c.Recovery {
		c.Slot = func(queue, tag int, r *zns.Request) { r.Slot = uint32(queue*o.depth + tag) }
		c.Answered = func(r *zns.Request) { srv.journal.Answered(r.Slot) }
	}
	return c
}

// succeed makes the record of device id ours: of a server that is gone.
func (srv *server) succeed(id int) error {
	old, err := readState(id)
	if err != nil {
		return fmt.Errorf("recover device %d: %w", id, err)
	}
	if err := old.sameImage(srv.state); err != nil {
		return err
	}
	s := srv.state
	s.ID, s.Device, s.Mark, s.Attached, s.Failure = old.ID, old.Device, old.Mark, old.Attached, old.Failure
	return nil
}

// takeOver goes on with the device of a server that is gone. When that fails, the
// device waits as before.
func (srv *server) takeOver(o *attachOptions, f *qcow2.OSFile, open qcow2.Options, align int) (*ublk.Device, error) {
	if o.handover == nil {
		srv.log.Info("its server is gone: going on where that was")
	}
	im, target, j, err := srv.state.goOn(o, f, open, func(zoneSize uint64) []zns.Option { return srv.options(o, zoneSize) })
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	srv.image, srv.zones, srv.journal = im, target, j
	if s := srv.state; s.Failure != "" {
		srv.warn(fmt.Sprintf("%s has failed, only reads go on (%s): detach it, see to the disk and attach it again", s.Image, s.Failure))
	}
	mark, err := srv.state.mark()
	if err != nil {
		return nil, errors.Join(err, im.Close())
	}
	dev, err := ublk.Recover(context.Background(), srv.config(o, f.DataFD(), align), o.id, mark, target)
	if err != nil {
		// What is in the image now is what the journal says.
		return nil, errors.Join(err, im.Close())
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if h := o.handover; h != nil {
		srv.state.Pause = time.Duration(boottime() - h.Left).Seconds()
	}
	// The device is served all the same.
	if err := srv.control.listen(stateDir(o.id)); err != nil {
		srv.log.Error("nobody can ask this server anything", zap.Error(err))
	}
	if err := srv.state.save(); err != nil {
		srv.log.Error("the record of the device is not up to date", zap.Error(err))
	}
	return dev, nil
}

// added records the device as soon as it has a number.
func (srv *server) added(id int, mark, size uint64) error {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.state.ID, srv.state.Device, srv.state.Mark = id, ublk.NodePath(id), strconv.FormatUint(mark, 16)
	if err := makeStateDir(id); err != nil {
		return err
	}
	if srv.journal != nil { // first: who sees the record counts on it
		if err := srv.journal.publish(srv.state, size); err != nil {
			return fmt.Errorf("make a journal in %s: %w", stateRoot, err)
		}
	}
	if err := srv.control.listen(stateDir(id)); err != nil { // before the record that leads to it
		return err
	}
	if err := srv.state.save(); err != nil {
		return fmt.Errorf("record the device in %s: %w", stateRoot, err)
	}
	return nil
}

// forget closes the image and forgets the device, or records why that went
// wrong. The device's number is still ours.
func (srv *server) forget() error {
	srv.mu.Lock()
	again := srv.closed
	srv.closed = true
	srv.mu.Unlock()
	if again {
		return nil
	}
	err := srv.closeImage()
	srv.mu.Lock()
	defer srv.mu.Unlock()
	s := srv.state
	switch {
	case s.Device == "":
		return err
	case err != nil && srv.announced:
		s.Failure = err.Error()
		return errors.Join(err, s.save())
	}
	return errors.Join(err, s.remove())
}

// closeImage closes the image, to which no request is in progress any more.
func (srv *server) closeImage() error {
	if srv.trace != nil {
		srv.trace.close()
	}
	err := srv.image.Close() // which may fail the image
	srv.control.close()
	if err != nil {
		err = fmt.Errorf("close %s: %w", srv.state.Image, err)
	}
	return err
}

// newState fills in what is known before there is a device.
func newState(o *attachOptions, image *os.File) (*state, error) {
	s := &state{
		PID: os.Getpid(), Version: version, Queues: o.queues, Depth: o.depth, BlockSize: o.blockSize,
		ReadOnly: o.readOnly, Direct: o.direct, SyncInterval: o.syncInterval.Seconds(), Attached: time.Now().UTC(),
		Recovery: !o.noRecovery, Name: o.name,
	}
	s.Since = s.Attached
	var err error
	if s.Started, err = processStart(s.PID); err != nil {
		return nil, err
	}
	if s.Image, err = filepath.Abs(o.image); err != nil {
		return nil, err
	}
	s.Args = o.args(s.Image)
	return s, s.identify(image)
}

// imageFailed records why the image has failed before anybody is told, so that
// also the death of the server does not hide it.
func (srv *server) imageFailed(cause error) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	srv.state.Failure = cause.Error()
	var err error
	if srv.state.Device != "" { // else it is recorded with the device
		err = srv.state.save()
	}
	if err != nil {
		err = fmt.Errorf("record the failure: %w", err)
	}
	srv.failed <- errors.Join(cause, err) // there is room: it fails once
}

// awaitLink waits until the device has its name: whoever is told that it is
// usable may use that. A device without its link works all the same.
func (srv *server) awaitLink(recovered bool) {
	srv.mu.Lock()
	name, node := srv.state.Name, srv.state.Device
	srv.mu.Unlock()
	if name == "" {
		return
	}
	if err := systemd.AwaitLink(linkPath(name), node, recovered); err != nil {
		srv.log.Warn("the device has not got its name", zap.Error(err))
	}
}

// announce says that the node is usable, and how it began to be.
func (srv *server) announce(begun string, fields []zap.Field, ready func(*state) error) error {
	srv.mu.Lock()
	srv.announced = true
	s := *srv.state
	srv.mu.Unlock()
	if err := ready(&s); err != nil {
		return fmt.Errorf("announce %s: %w", s.Device, err)
	}
	if err := systemd.Ready(fmt.Sprintf("serving %s as %s", s.Image, s.Device)); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	srv.log.Info(begun, append([]zap.Field{zap.String("image", s.Image), zap.String("version", version), zap.Int("pid", s.PID),
		zap.Int("queues", s.Queues), zap.Int("depth", s.Depth), zap.Bool("read-only", s.ReadOnly)}, fields...)...)
	return nil
}

// untilStopped returns when the device has to go or is gone, or with what the
// server has to become.
func (srv *server) untilStopped(dev *ublk.Device) *upgradeOrder {
	for {
		select {
		case sig := <-srv.stop:
			srv.log.Info("stopping", zap.Stringer("signal", sig))
			return nil
		case order := <-srv.upgrades:
			// From here on they end the process, and the device waits.
			signal.Reset(syscall.SIGTERM, syscall.SIGINT)
			if len(srv.stop) == 0 {
				return &order
			}
		case <-dev.Done():
			if err := dev.Wait(); errors.Is(err, ublk.ErrGone) { // else it is said why
				srv.log.Warn("the device was deleted by somebody else")
			}
			return nil
		case cause := <-srv.failed:
			srv.log.Error("image failed, only reads go on: detach it, see to the disk and attach it again", zap.Error(cause))
		}
	}
}
