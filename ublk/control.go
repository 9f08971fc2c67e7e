package ublk

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/uring"
)

// What a caller of Control may want to decide on.
var (
	ErrNoDevice = errors.New("there is no such device")
	ErrBusy     = errors.New("the device is open elsewhere")
	// ErrForeign is a device with another mark: not ours, or not any more.
	ErrForeign = errors.New("the device has another mark, so it is not ours: leave it alone")
	// ErrAlive is a device that a living process serves.
	ErrAlive = errors.New("its server is alive: stop that first")
	// ErrLost is a device that cannot be recovered: it was added without
	// recovery, or stopped, or never started.
	ErrLost = errors.New("the device does not wait for a server: delete it")
)

// deleteWait bounds how long a deletion waits for the last user of a device.
const deleteWait = 5 * time.Second

// Control talks to the ublk driver. Its methods may be called concurrently;
// a context ends a command that waits in the kernel.
type Control struct {
	fd int

	mu   sync.Mutex // guards idle
	idle []*session // rings that wait for the next command
}

// session is the ring of one command in flight, with a page of memory outside
// the Go heap for what the command points to.
type session struct {
	ring *uring.Ring
	page []byte
}

// Open opens the ublk driver; it loads its module if it is not there. Its
// errors say what is missing and which command helps.
func Open() (*Control, error) {
	if err := uring.Probe(); err != nil {
		return nil, err
	}
	fd, err := openControl()
	if err != nil {
		return nil, err
	}
	return &Control{fd: fd}, nil
}

// Close lets go of the driver. No command may be running.
func (c *Control) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.idle {
		s.close()
	}
	c.idle = nil
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

func newSession() (*session, error) {
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("ublk: map memory for a control command: %w", err)
	}
	ring, err := newControlRing()
	if err != nil {
		unix.Munmap(page)
		return nil, err
	}
	return &session{ring: ring, page: page}, nil
}

func (s *session) close() {
	s.ring.Close()
	unix.Munmap(s.page)
}

func (c *Control) take() (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.idle); n > 0 {
		s := c.idle[n-1]
		c.idle = c.idle[:n-1]
		return s, nil
	}
	return newSession()
}

func (c *Control) put(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, s)
}

// do runs one command. buf, unless nil, is what the command points to; it is
// copied to the kernel and back. The error is the kernel's errno, or ctx's
// when that ended it.
func (c *Control) do(ctx context.Context, op uint32, cmd ctrlCmd, buf []byte) error {
	s, err := c.take()
	if err != nil {
		return err
	}
	defer c.put(s)
	if buf != nil {
		copy(s.page, buf)
		cmd.Addr, cmd.Len = uint64(uintptr(unsafe.Pointer(&s.page[0]))), uint16(len(buf))
	}
	res, err := s.run(ctx, c.fd, op, cmd)
	if err != nil {
		return err
	}
	if res < 0 {
		return syscall.Errno(-res)
	}
	copy(buf, s.page)
	return nil
}

// run submits one command and waits for it. The kernel works on it on a thread
// that belongs to the submitting one, so that is kept.
func (s *session) run(ctx context.Context, fd int, op uint32, cmd ctrlCmd) (res int32, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer context.AfterFunc(ctx, s.ring.Wake)()

	const data = 1
	var wide [80]byte
	*(*ctrlCmd)(unsafe.Pointer(&wide)) = cmd
	if err := s.ring.CmdWide(uring.FD(fd), op, &wide, data); err != nil {
		return 0, err
	}
	done, cancelled := false, false
	for !done {
		if err := s.ring.SubmitAndWait(1); err != nil {
			return 0, err
		}
		s.ring.ForEach(func(e uring.CQE) { done, res = true, e.Res })
		if !done && !cancelled && ctx.Err() != nil {
			cancelled = true
			if err := s.ring.Cancel(data); err != nil {
				return 0, err
			}
		}
	}
	if cancelled && (res == -int32(syscall.EINTR) || res == -int32(syscall.ECANCELED)) {
		return 0, ctx.Err()
	}
	return res, nil
}

// object views a value of the ABI as bytes.
func object[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// failed names what was attempted with a device and why it failed.
func failed(what string, id int, err error) error {
	if errors.Is(err, syscall.ENODEV) {
		err = ErrNoDevice
	}
	return fmt.Errorf("ublk: %s %d: %w", what, id, err)
}

// Features returns what the driver can do.
func (c *Control) Features(ctx context.Context) (Features, error) {
	var f Features
	if err := c.do(ctx, cmdGetFeatures, ctrlCmd{DevID: newID, QueueID: noQueue}, object(&f)); err != nil {
		return 0, fmt.Errorf("ublk: ask the driver for its features (needs Linux 6.5): %w", err)
	}
	return f, nil
}

// State is what the driver thinks of a device.
type State uint16

func (s State) String() string {
	switch s {
	case StateDead:
		return "dead"
	case StateLive:
		return "live"
	case StateQuiesced:
		return "quiesced"
	case StateFailIO:
		return "fail-io"
	}
	return fmt.Sprintf("state-%d", uint16(s))
}

// Info is what the driver says about a device.
type Info struct {
	ID       int
	State    State
	PID      int // of the server; stale or -1 when it is dead
	Queues   int
	Depth    int
	MaxIO    int // bytes
	Features Features
	// Mark tells devices apart that have had the same number: Start draws it.
	// Of a device that is not Ours it means nothing.
	Mark uint64
}

// ZeroCopy says that data goes straight between requests and the data file.
func (i Info) ZeroCopy() bool { return i.Features.Has(zeroCopyFeatures) }

// Path is the block device's node.
func (i Info) Path() string { return NodePath(i.ID) }

// NodePath is the block device's node of device id, CharPath the one its server
// works with, which is there as long as the device.
func NodePath(id int) string { return "/dev/ublkb" + strconv.Itoa(id) }
func CharPath(id int) string { return "/dev/ublkc" + strconv.Itoa(id) }

// Info describes the device id; ErrNoDevice if there is none.
func (c *Control) Info(ctx context.Context, id int) (Info, error) {
	// The buffer begins with the path of the char device, which the driver
	// checks permissions against.
	path := append([]byte(CharPath(id)), 0)
	buf := append(slices.Clone(path), make([]byte, unsafe.Sizeof(devInfo{}))...)
	cmd := ctrlCmd{DevID: uint32(id), QueueID: noQueue, DevPathLen: uint16(len(path))}
	if err := c.do(ctx, cmdGetDevInfo2, cmd, buf); err != nil {
		return Info{}, failed("describe device", id, err)
	}
	var d devInfo
	copy(object(&d), buf[len(path):])
	return Info{
		ID: int(d.DevID), State: State(d.State), PID: int(d.SrvPID),
		Queues: int(d.NrHWQueues), Depth: int(d.QueueDepth), MaxIO: int(d.MaxIOBufBytes),
		Features: Features(d.Flags), Mark: d.SrvFlags,
	}, nil
}

// Stop stops the device id, whoever serves it: what is dirty in its page cache
// goes through the server first. The device remains, without node, until
// Delete or until its server deletes it.
func (c *Control) Stop(ctx context.Context, id int) error {
	if err := c.simple(ctx, cmdStopDev, id); err != nil {
		return failed("stop device", id, err)
	}
	return nil
}

// TryStop is Stop unless somebody has the node open, which is ErrBusy. It
// needs SAFE_STOP_DEV (Linux 7.0).
func (c *Control) TryStop(ctx context.Context, id int) error {
	err := c.simple(ctx, cmdTryStopDev, id)
	if errors.Is(err, syscall.EBUSY) {
		err = ErrBusy
	}
	if err != nil {
		return failed("stop device", id, err)
	}
	return nil
}

// Delete removes the device id that Config.Added has given the mark, and stops
// it first if it runs. It waits a few seconds for its last user; after that the
// device goes with that user. Another device that has the number now is left
// alone, which is no error.
func (c *Control) Delete(ctx context.Context, id int, mark uint64) error {
	_, err := c.remove(ctx, id, mark)
	return err
}

// remove deletes the device id if it still has the mark, and says whether it is
// gone. A device that somebody else has deleted can have left its number to
// another one, before this call or while it waits.
func (c *Control) remove(ctx context.Context, id int, mark uint64) (gone bool, err error) {
	if other, err := c.reused(ctx, id, mark); other || err != nil {
		return other, err
	}
	bounded, cancel := context.WithTimeout(ctx, deleteWait)
	defer cancel()
	err = c.simple(bounded, cmdDelDev, id)
	if err == nil {
		return true, nil
	}
	if bounded.Err() == nil || ctx.Err() != nil {
		return false, failed("delete device", id, err)
	}
	if other, err := c.reused(ctx, id, mark); other || errors.Is(err, ErrNoDevice) {
		return true, nil
	}
	if err = c.simple(ctx, cmdDelDevAsync, id); err != nil && !errors.Is(err, syscall.ENODEV) {
		return false, failed("delete device", id, err)
	}
	return false, nil
}

// reused says that the number id is another device's than the marked one.
func (c *Control) reused(ctx context.Context, id int, mark uint64) (bool, error) {
	info, err := c.Info(ctx, id)
	return err == nil && info.Mark != mark, err
}

// simple runs a command that is only about a device.
func (c *Control) simple(ctx context.Context, op uint32, id int) error {
	return c.do(ctx, op, ctrlCmd{DevID: uint32(id), QueueID: noQueue}, nil)
}

// add makes a device; the kernel fills in what it decided.
func (c *Control) add(ctx context.Context, d *devInfo) error {
	return c.do(ctx, cmdAddDev, ctrlCmd{DevID: d.DevID, QueueID: noQueue}, object(d))
}

func (c *Control) setParams(ctx context.Context, id int, p *params) error {
	return c.do(ctx, cmdSetParams, ctrlCmd{DevID: uint32(id), QueueID: noQueue}, object(p))
}

// start shows the device. It returns when every tag has been fetched and the
// kernel has seen the zones.
func (c *Control) start(ctx context.Context, id, pid int) error {
	return c.do(ctx, cmdStartDev, ctrlCmd{DevID: uint32(id), QueueID: noQueue, Data: uint64(pid)}, nil)
}

// startRecovery prepares a quiesced device for another server.
func (c *Control) startRecovery(ctx context.Context, id int) error {
	return c.simple(ctx, cmdStartUserRecovery, id)
}

// endRecovery shows the device to its new server, whose process pid is, when
// every tag has been fetched.
func (c *Control) endRecovery(ctx context.Context, id, pid int) error {
	return c.do(ctx, cmdEndUserRecovery, ctrlCmd{DevID: uint32(id), QueueID: noQueue, Data: uint64(pid)}, nil)
}

// QueueAffinity returns the CPUs whose requests go to a queue of the device.
func (c *Control) QueueAffinity(ctx context.Context, id, queue int) (unix.CPUSet, error) {
	var set unix.CPUSet
	cmd := ctrlCmd{DevID: uint32(id), QueueID: noQueue, Data: uint64(queue)}
	if err := c.do(ctx, cmdGetQueueAffinity, cmd, object(&set)); err != nil {
		return set, failed("ask for the CPUs of a queue of device", id, err)
	}
	return set, nil
}

// params returns what the device id was set up with.
func (c *Control) params(ctx context.Context, id int) (params, error) {
	p := params{Len: uint32(unsafe.Sizeof(params{}))}
	if err := c.do(ctx, cmdGetParams, ctrlCmd{DevID: uint32(id), QueueID: noQueue}, object(&p)); err != nil {
		return p, failed("ask for the parameters of device", id, err)
	}
	return p, nil
}
