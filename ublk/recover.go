package ublk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// dyingWait bounds how long a server that died may take to let go of its
// device: its I/O in flight ends first.
const dyingWait = 30 * time.Second

// errDying is a device whose server has died and still holds it.
var errDying = errors.New("its last server has not let go of it yet: try again")

// Recover takes over the device id, which has the mark, after its server died
// or left: when it returns, the node is served again, and its users have seen
// nothing but a pause. cfg and target must describe the device as it is;
// Queues, Depth and MaxIO may be 0 for what it has. Added is not called.
//
// It waits for a server that is still dying, within bounds and until ctx ends.
// Errors that a caller may want to decide on are ErrNoDevice, ErrForeign,
// ErrAlive, ErrLost and ErrAgain. A server that has left and become this program
// by execve(2) is not alive. After an error, and after a death anywhere in Recover,
// the device waits for a server as before. Where the kernel lacks PER_IO_DAEMON
// (before Linux 6.16) the failed process may have to end first.
//
// The package documentation says what a target can rely on in what it is given
// again. It must be ready for requests before Recover returns.
func Recover(ctx context.Context, cfg Config, id int, mark uint64, target Target) (*Device, error) {
	if err := checkZones(target.Geometry(), target.Zone); err != nil {
		return nil, err
	}
	ctl, err := Open()
	if err != nil {
		return nil, err
	}
	d := newDevice(cfg.withDefaults(), target, ctl, id, mark)
	d.log = d.log.With(zap.String("device", d.Path()))
	if err := d.recover(ctx, cfg); err != nil {
		ctl.Close()
		return nil, err
	}
	return d, nil
}

// recover goes the way of start, with a device that is there. cfg is what the
// caller gave.
func (d *Device) recover(ctx context.Context, cfg Config) (err error) {
	if err := d.claim(ctx, cfg); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			d.abort()
			d.serving.Wait()
			d.letGo()
		}
	}()
	if err := d.startQueues(ctx); err != nil {
		return err
	}
	if err := d.ctl.endRecovery(ctx, d.id, os.Getpid()); err != nil {
		return failed("end the recovery of device", d.id, err)
	}
	if !unscheduled(d.id) {
		d.log.Warn("the device has an I/O scheduler: what is issued again may come with other tags",
			zap.String("set none in", schedulerPath(d.id)))
	}
	d.logStart(ctx, "device recovered")
	go d.supervise()
	return nil
}

// claim makes this process the one that recovers the device, by opening its
// char device.
func (d *Device) claim(ctx context.Context, cfg Config) error {
	bounded, cancel := context.WithTimeout(ctx, dyingWait)
	defer cancel()
	for dying := error(nil); ; {
		err := d.tryClaim(ctx, cfg)
		if ctx.Err() != nil && dying != nil {
			return fmt.Errorf("%w (%w)", dying, ctx.Err())
		}
		if !errors.Is(err, errDying) {
			return err
		}
		dying = err
		select {
		case <-bounded.Done():
			if ctx.Err() == nil {
				return dying
			}
		case <-time.After(time.Millisecond):
		}
	}
}

func (d *Device) tryClaim(ctx context.Context, cfg Config) error {
	info, err := d.ctl.Info(ctx, d.id)
	if err != nil {
		return err
	}
	if err = recoverable(info, d.mark); err == nil {
		err = d.adopt(ctx, cfg, info)
	}
	if err != nil {
		return failed("recover device", d.id, err)
	}
	if !d.features.Has(fPerIODaemon) {
		if err := d.finishFetching(ctx); err != nil {
			return failed("recover device", d.id, err)
		}
	}
	switch err := d.ctl.startRecovery(ctx, d.id); {
	case errors.Is(err, syscall.EBUSY):
		return failed("recover device", d.id, errDying)
	case errors.Is(err, syscall.EINVAL) && !d.features.Has(fPerIODaemon):
		// Linux 6.12 says so of a device of which nothing was fetched since
		// the last START_USER_RECOVERY: whoever sent that died then.
	case err != nil:
		return failed("recover device", d.id, err)
	}
	fd, err := openChar(ctx, d.id)
	if errors.Is(err, syscall.EBUSY) {
		return failed("recover device", d.id, errDying) // or somebody else recovers it just now
	}
	if err != nil {
		return err
	}
	// Only now the number cannot go to another device any more.
	if info, err = d.ctl.Info(ctx, d.id); err == nil {
		err = recoverable(info, d.mark)
	}
	if err != nil {
		unix.Close(fd)
		return failed("recover device", d.id, err)
	}
	d.charFD = fd
	return nil
}

// recoverable says why the device cannot be recovered, or not yet.
func recoverable(i Info, mark uint64) error {
	switch {
	case i.Mark != mark || mark == 0:
		return ErrForeign
	case !i.Features.Has(recovery):
		return fmt.Errorf("it was added without recovery: %w", ErrLost)
	case i.State == StateQuiesced:
		return nil
	case i.State != StateLive:
		return fmt.Errorf("it is %v: %w", i.State, ErrLost)
	case i.PID != os.Getpid() && running(i.PID): // an earlier program of ours was the server
		return fmt.Errorf("process %d serves it: %w", i.PID, ErrAlive)
	}
	return errDying
}

// running says that there is a process pid that is not just waiting for its
// parent to notice its end.
func running(pid int) bool {
	if pid <= 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The name, in parentheses, can hold anything; the state follows it.
	rest := bytes.TrimSpace(b[bytes.LastIndexByte(b, ')')+1:])
	return len(rest) > 0 && rest[0] != 'Z' && rest[0] != 'X'
}

// adopt takes over what the device was added with. Whatever of it does not fit
// the caller's cfg or the target is an error.
func (d *Device) adopt(ctx context.Context, cfg Config, info Info) error {
	for _, v := range []struct {
		what  string
		given *int
		is    int
	}{
		{"queues", &cfg.Queues, info.Queues},
		{"a queue depth", &cfg.Depth, info.Depth},
		{"a largest request", &cfg.MaxIO, info.MaxIO},
	} {
		if *v.given != 0 && *v.given != v.is {
			return fmt.Errorf("it has %s of %d, not %d: use that", v.what, v.is, *v.given)
		}
		*v.given = v.is
	}
	cfg.ID, cfg.Recovery = d.id, true
	cfg = cfg.withDefaults()
	want, err := deviceParams(cfg, d.geometry)
	if err != nil {
		return err
	}
	have, err := d.ctl.params(ctx, d.id)
	if err != nil {
		return err
	}
	if err := sameParams(have, want); err != nil {
		return err
	}
	d.cfg, d.features = cfg, info.Features
	return nil
}

// sameParams names the first difference between what the device has and what
// the target wants.
func sameParams(have, want params) error {
	if attrs := have.Basic.Attrs ^ want.Basic.Attrs; attrs&attrReadOnly != 0 {
		return fmt.Errorf("it is read-only: %v, and not as the target is: use the options that it was attached with", have.Basic.Attrs&attrReadOnly != 0)
	}
	for _, v := range []struct {
		what       string
		have, want uint64
	}{
		{"sectors", have.Basic.DevSectors, want.Basic.DevSectors},
		{"sectors per zone", uint64(have.Basic.ChunkSectors), uint64(want.Basic.ChunkSectors)},
		{"bits of a block's size", uint64(have.Basic.LogicalShift), uint64(want.Basic.LogicalShift)},
		{"attributes", uint64(have.Basic.Attrs), uint64(want.Basic.Attrs)},
		{"open zones at most", uint64(have.Zoned.MaxOpenZones), uint64(want.Zoned.MaxOpenZones)},
		{"active zones at most", uint64(have.Zoned.MaxActiveZones), uint64(want.Zoned.MaxActiveZones)},
		{"sectors per append at most", uint64(have.Zoned.MaxZoneAppendSectors), uint64(want.Zoned.MaxZoneAppendSectors)},
		{"sectors per write-zeroes at most", uint64(have.Discard.MaxWriteZeroesSectors), uint64(want.Discard.MaxWriteZeroesSectors)},
	} {
		if v.have != v.want {
			return fmt.Errorf("it has %d %s and the target %d: it is not the target's device, or was attached with other options", v.have, v.what, v.want)
		}
	}
	have.Types &^= paramDevt | paramDMAAlign
	if have.Types != want.Types || have.Basic != want.Basic || have.Discard != want.Discard || have.Zoned != want.Zoned {
		return fmt.Errorf("its parameters are %+v instead of %+v: it was attached by another version", have, want)
	}
	return nil
}

// Leave ends the service without ending the device, for an upgrade, or when the
// device is in use: its users wait until somebody calls Recover. The device
// must have recovery.
//
// What the target has begun is finished and answered; what comes then is not
// begun, and is issued again to the next server. So when Leave returns nil,
// Target and DataFD are not used any more and nothing is in doubt. Ended is not
// called, and the device waits for Recover. If ctx ends first, the rest is given
// up as by a death of the process, which should then follow.
//
// With PER_IO_DAEMON (Linux 6.16) any process can call Recover then. Before, as in
// 6.12, the kernel takes a device only from threads that have ended, so the next
// server waits until this process has ended, or has become another program by
// execve(2), which ends its threads all the same: it keeps them until then.
//
// QUIESCE_DEV is not used. It holds new requests up and waits until each queue
// has one idle tag, not until the requests in flight are answered, which are then
// in doubt for the next server; and when its timeout comes first, new requests are
// held up until the server has gone. What is done here leaves nothing in doubt,
// holds up only what comes while the last answers are given, and is the same on
// kernels without that command.
func (d *Device) Leave(ctx context.Context) error {
	if !d.cfg.Recovery {
		return fmt.Errorf("ublk: device %d was added without recovery and cannot be left: stop it", d.id)
	}
	d.stopping.Do(func() {
		d.left = true
		for _, q := range d.queues {
			q.leave()
		}
	})
	if !d.left {
		d.Wait()
		return fmt.Errorf("ublk: leave device %d: it is being stopped", d.id)
	}
	select {
	case <-d.done:
	case <-ctx.Done():
		d.fail(fmt.Errorf("ublk: leave device %d: %w", d.id, ctx.Err()))
	}
	return d.Wait()
}

// letGo frees everything of a device whose queues have ended but the device.
func (d *Device) letGo() {
	if d.workers != nil {
		d.workers.close()
	}
	if d.mustDie() {
		return // all is freed by the end of the process
	}
	d.closeChar()
	for deadline := time.Now().Add(dyingWait); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if info, err := d.ctl.Info(context.Background(), d.id); err != nil || info.Mark != d.mark || info.State != StateLive {
			return
		}
	}
	d.log.Warn("the kernel still waits for something of this process before the device can be recovered")
}
