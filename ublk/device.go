package ublk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/zns"
)

// ErrGone is how a device ends that somebody else stopped or deleted.
var ErrGone = errors.New("ublk: the device was stopped by somebody else")

// nodeWait bounds how long the char device may take to appear.
const nodeWait = time.Second

// Device is a running block device.
type Device struct {
	cfg      Config
	geometry zns.Geometry
	target   Target
	log      *zap.Logger
	ctl      *Control
	id       int
	mark     uint64   // of this device among those that had its number
	features Features // negotiated

	charFD    int
	fetched   bool   // the kernel knows threads of this process
	zeros     []byte // MaxIO bytes that nobody writes
	queues    []*queue
	whyCopies string // see WhyCopies

	serving sync.WaitGroup // the queues' goroutines
	workers *workers
	refused limiter
	born    time.Time // what the queues' clocks count from

	stopping sync.Once
	asked    bool  // by Stop; written in stopping
	left     bool  // by Leave; written in stopping
	stopErr  error // of STOP_DEV; written in stopping

	failing sync.Mutex // guards failure
	failure error      // what broke the device, nil while nothing did

	done chan struct{}
	err  error // of Wait; written before done is closed
}

// Start adds a device for target, serves it and shows its node: when it
// returns, /dev/ublkbN can be used. Everything that the kernel would refuse is
// refused before anything is changed. When it fails, nothing is left behind.
// ctx bounds the start, not the life of the device.
func Start(ctx context.Context, cfg Config, target Target) (*Device, error) {
	cfg = cfg.withDefaults()
	geometry := target.Geometry()
	p, err := deviceParams(cfg, geometry)
	if err != nil {
		return nil, err
	}
	if err := checkZones(geometry, target.Zone); err != nil {
		return nil, err
	}
	ctl, err := Open()
	if err != nil {
		return nil, err
	}
	d := newDevice(cfg, target, ctl, cfg.ID, drawMark())
	if err := d.start(ctx, &p); err != nil {
		ctl.Close()
		return nil, err
	}
	return d, nil
}

// newDevice makes a device without anything of the kernel's.
func newDevice(cfg Config, target Target, ctl *Control, id int, mark uint64) *Device {
	return &Device{
		cfg: cfg, geometry: target.Geometry(), target: target, log: cfg.Logger,
		ctl: ctl, id: id, mark: mark, charFD: -1, born: time.Now(), done: make(chan struct{}),
	}
}

// start goes the way to the node. Each step that fails leaves the steps before
// it to the deferred calls.
func (d *Device) start(ctx context.Context, p *params) (err error) {
	features, err := d.ctl.Features(ctx)
	if err != nil {
		return err
	}
	if err := features.Check(); err != nil {
		return err
	}
	if d.cfg.Recovery {
		if err := features.CheckRecovery(); err != nil {
			return err
		}
	}
	if err := d.add(ctx, features); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			d.discard()
		}
	}()
	if d.cfg.Added != nil {
		if err := d.cfg.Added(d.id, d.mark); err != nil {
			return err
		}
	}
	p.alignMemory(d.cfg, d.features)
	if err := d.ctl.setParams(ctx, d.id, p); err != nil {
		return failed("set the parameters of device", d.id, err)
	}
	if d.charFD, err = openChar(ctx, d.id); err != nil {
		return err
	}
	if err := d.startQueues(ctx); err != nil {
		return err
	}
	if err := d.ctl.start(ctx, d.id, os.Getpid()); err != nil {
		return failed("start device", d.id, err)
	}
	d.logStart(ctx, "device started")
	go d.supervise()
	return nil
}

// add asks a driver with these features for a device and takes over what it decided.
func (d *Device) add(ctx context.Context, features Features) error {
	info := devInfo{
		NrHWQueues: uint16(d.cfg.Queues), QueueDepth: uint16(d.cfg.Depth),
		MaxIOBufBytes: uint32(d.cfg.MaxIO), DevID: uint32(d.cfg.ID),
		Flags:    uint64(fUserCopy | fZoned | fCmdIoctlEncode),
		SrvFlags: d.mark,
	}
	if d.cfg.Recovery {
		info.Flags |= uint64(recovery)
	}
	zeroCopy, why, err := d.cfg.zeroCopy(features)
	if err != nil {
		return err
	}
	d.whyCopies = why
	info.Flags |= uint64(zeroCopy)
	if err := d.ctl.add(ctx, &info); err != nil {
		return explainAdd(d.cfg, err)
	}
	d.id, d.features = int(info.DevID), Features(info.Flags)
	d.cfg.Queues, d.cfg.Depth = int(info.NrHWQueues), int(info.QueueDepth)
	d.log = d.log.With(zap.String("device", d.Path()))
	return nil
}

// explainAdd says why the kernel gave no device.
func explainAdd(c Config, err error) error {
	switch {
	case errors.Is(err, syscall.EEXIST):
		return fmt.Errorf("ublk: device %d exists already: choose another id, or detach it: %w", c.ID, err)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return fmt.Errorf("ublk: add a device: zoned devices need root (CAP_SYS_ADMIN): %w", err)
	case errors.Is(err, syscall.EINVAL):
		// The driver offers ZONED all the same.
		return fmt.Errorf("ublk: the kernel takes no zoned device: use one built with CONFIG_BLK_DEV_ZONED (`grep BLK_DEV_ZONED /boot/config-$(uname -r)`): %w", err)
	}
	return fmt.Errorf("ublk: add a device with %d queues of depth %d and requests of up to %d bytes: %w", c.Queues, c.Depth, c.MaxIO, err)
}

// openChar opens /dev/ublkcN, which appears a moment after the device.
func openChar(ctx context.Context, id int) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, nodeWait)
	defer cancel()
	for {
		fd, err := unix.Open(CharPath(id), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, syscall.ENOENT) {
			return -1, fmt.Errorf("ublk: open %s: %w", CharPath(id), err)
		}
		select {
		case <-ctx.Done():
			return -1, fmt.Errorf("ublk: %s did not appear within %v: is devtmpfs mounted on /dev?: %w", CharPath(id), nodeWait, err)
		case <-time.After(time.Millisecond):
		}
	}
}

// prepare makes what the queues share.
func (d *Device) prepare() (err error) {
	if d.zeros, err = unix.Mmap(-1, 0, d.cfg.MaxIO, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return fmt.Errorf("ublk: map memory for zeros: %w", err)
	}
	d.workers = newWorkers(d.target, d.cfg.Queues*d.cfg.Depth)
	return nil
}

// startQueues starts a goroutine per queue and waits until all of them serve:
// START_DEV would wait for a missing one for ever.
func (d *Device) startQueues(ctx context.Context) (err error) {
	if err := d.prepare(); err != nil {
		return err
	}
	ready := make(chan error, d.cfg.Queues)
	for i := range d.cfg.Queues {
		q := newQueue(d, uint16(i))
		if d.cfg.Queues > 1 {
			if q.cpus, err = d.ctl.QueueAffinity(ctx, d.id, i); err != nil { // then any will do
				d.log.Debug("ask for the CPUs of a queue", zap.Error(err))
			}
		}
		d.queues = append(d.queues, q)
	}
	for _, q := range d.queues {
		d.serving.Add(1)
		go func() {
			if err := q.run(ready); err != nil {
				d.fail(err)
			}
			if q.live > 0 && d.mustDie() {
				d.serving.Done()
				select {} // with the ring, until the process ends
			}
			q.close()
			d.serving.Done()
		}()
	}
	for range beginQueue {
		for range d.queues {
			if e := <-ready; err == nil {
				err = e
			}
		}
		d.fetched = d.fetched || err == nil
		for _, q := range d.queues {
			q.proceed <- err == nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mustDie says that the device can only go to its next server by the death of
// this process: the kernel has bound it to the threads of the queues. When they
// end ahead of the process, Linux 6.12.95 at times answered START_USER_RECOVERY
// with EBUSY for good.
func (d *Device) mustDie() bool {
	return d.cfg.Recovery && d.fetched && !d.features.Has(fPerIODaemon)
}

// fail ends the device after a queue broke: its requests cannot be answered
// any more, so the other queues give up theirs, and the kernel fails them all
// or keeps them for the next server.
func (d *Device) fail(err error) {
	d.failing.Lock()
	first := d.failure == nil
	if first {
		d.failure = err
	}
	d.failing.Unlock()
	if !first {
		return
	}
	d.log.Error("device failed", zap.Error(err))
	d.abort()
}

func (d *Device) abort() {
	for _, q := range d.queues {
		q.abort()
	}
}

// supervise waits for the queues to end, for whatever reason, and then removes
// the device, or leaves it to the next server.
func (d *Device) supervise() {
	d.serving.Wait()
	// Waits for a STOP_DEV that is still running; afterwards none begins.
	d.stopping.Do(func() {})
	var err error
	switch {
	case d.failure != nil:
		err = d.failure
	case d.stopErr != nil:
		err = d.stopErr
	case !d.asked && !d.left:
		err = ErrGone
	}
	if d.left || d.failure != nil && d.cfg.Recovery {
		d.letGo()
	} else {
		err = errors.Join(err, d.release(d.cfg.Ended))
	}
	d.ctl.Close()
	if n := d.refused.unlogged(); n > 0 {
		d.log.Warn("more requests failed", zap.Int("unlogged", n))
	}
	switch {
	case err != nil:
		d.log.Debug("device ended", zap.Error(err))
	case d.left:
		d.log.Debug("device left to its next server")
	default:
		d.log.Debug("device stopped")
	}
	d.err = err
	close(d.done)
}

// release frees everything of a device whose queues have ended, the device
// last, after ended.
func (d *Device) release(ended func() error) error {
	if d.workers != nil {
		d.workers.close()
	}
	var endErr error
	if ended != nil { // while the open char device still holds the number
		endErr = ended()
	}
	d.closeChar()
	gone, err := d.ctl.remove(context.Background(), d.id, d.mark)
	if errors.Is(err, ErrNoDevice) {
		return endErr // whoever stopped it has deleted it too
	}
	if err == nil && !gone {
		d.log.Warn("device is still open elsewhere and goes with its last user")
	}
	return errors.Join(endErr, err)
}

// closeChar lets go of the kernel's side of the device, and of memory.
func (d *Device) closeChar() {
	if d.charFD >= 0 {
		unix.Close(d.charFD)
		d.charFD = -1
	}
	if d.zeros != nil {
		unix.Munmap(d.zeros)
		d.zeros = nil
	}
}

// discard undoes a start that failed after the device was added.
func (d *Device) discard() {
	if err := d.ctl.Stop(context.Background(), d.id); err != nil && !errors.Is(err, ErrNoDevice) {
		d.log.Warn("stop a device that did not start", zap.Error(err))
		d.abort()
	}
	d.serving.Wait()
	if err := d.release(nil); err != nil {
		d.log.Warn("delete a device that did not start", zap.Error(err))
	}
}

// Unschedule takes the I/O scheduler of the device id away: zone write plugs order
// the writes above it, so it only costs, and tags change when requests are issued
// again. The process must not be the one that serves the device: the kernel waits
// for the requests in flight, and a server that is killed meanwhile is not dead for
// the kernel before they are answered.
func Unschedule(id int) error {
	if unscheduled(id) { // to set what is set is not free
		return nil
	}
	return os.WriteFile(schedulerPath(id), []byte("none"), 0)
}

func schedulerPath(id int) string {
	return fmt.Sprintf("/sys/block/ublkb%d/queue/scheduler", id)
}

// unscheduled says that the device has no I/O scheduler.
func unscheduled(id int) bool {
	b, err := os.ReadFile(schedulerPath(id))
	return err == nil && bytes.Contains(b, []byte("[none]"))
}

// logStart says what the device has become.
func (d *Device) logStart(ctx context.Context, what string) {
	p, err := d.ctl.params(ctx, d.id)
	if err != nil {
		d.log.Debug("ask for the device's parameters", zap.Error(err))
		return
	}
	ready, most := buffersMemory(d.cfg.Depth, d.cfg.MaxIO)
	d.log.Debug(what, zap.Uint32("zones", d.geometry.NrZones), zap.Uint64("bytes", d.geometry.Size),
		zap.Int("queues", d.cfg.Queues), zap.Int("depth", d.cfg.Depth),
		zap.Int("buffer-bytes", ready*d.cfg.Queues), zap.Int("buffer-bytes-max", most*d.cfg.Queues),
		zap.Uint64("append-bytes", sector(p.Zoned.MaxZoneAppendSectors).bytes()),
		zap.Stringer("features", d.features))
}

// ID is the N of /dev/ublkbN.
func (d *Device) ID() int { return d.id }

// Path is the block device's node, /dev/ublkbN.
func (d *Device) Path() string { return NodePath(d.id) }

// Features are what was negotiated with the driver for this device.
func (d *Device) Features() Features { return d.features }

// Done is closed when this process does not serve the device any more. Unless
// it was left to another server, the device is gone then and nothing of it is
// left, whoever ended it.
func (d *Device) Done() <-chan struct{} { return d.done }

// Wait waits for Done. It returns nil after Stop and Leave, ErrGone when
// somebody else stopped the device, or what broke it. What breaks a device with
// recovery does not remove it: it waits for Recover, of another process.
func (d *Device) Wait() error {
	<-d.done
	return d.err
}

// Stop ends the device in order and waits for the end: the kernel writes back
// what is dirty in the node's page cache, all requests are answered, the
// device is deleted. It is idempotent. With the node open elsewhere the device
// is stopped all the same and its users get errors. A device that was left
// before stays.
func (d *Device) Stop() error {
	d.stopping.Do(func() {
		d.asked = true
		err := d.ctl.Stop(context.Background(), d.id)
		if err != nil && !errors.Is(err, ErrNoDevice) {
			d.stopErr = err
			d.abort()
		}
	})
	return d.Wait()
}
