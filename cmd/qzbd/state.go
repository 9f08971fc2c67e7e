package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/ublk"
)

// stateRoot holds a directory per attached device, named by its id: what other
// qzbd processes need to know about the server. It is gone after a reboot, as
// the devices are.
const stateRoot = "/run/qzbd"

// state is /run/qzbd/<id>/state.json, written by the server.
type state struct {
	ID      int    `json:"id"`
	Device  string `json:"device"`
	Image   string `json:"image,omitempty"`
	Dev     uint64 `json:"image-dev"`
	Ino     uint64 `json:"image-ino"`
	Birth   int64  `json:"image-birth,omitempty"` // nanoseconds after 1970; 0: not known
	PID     int    `json:"pid"`
	Started uint64 `json:"pid-start"` // clock ticks after boot, against reused pids
	Queues  int    `json:"queues"`
	Depth   int    `json:"depth"`

	BlockSize int  `json:"block-size"`
	ReadOnly  bool `json:"read-only"`
	Direct    bool `json:"direct"`
	// SyncInterval is in seconds.
	SyncInterval float64   `json:"sync-interval"`
	Attached     time.Time `json:"attached,omitzero"`
	// Since is when this server began to serve the device: other than Attached
	// after a recovery or an upgrade.
	Since   time.Time `json:"since,omitzero"`
	Version string    `json:"version,omitempty"` // of the server
	// Pause is how long the upgrade to this server held up the device's users, in
	// seconds.
	Pause float64 `json:"pause,omitempty"`
	// Left says who used the device when its server was told to stop.
	Left string `json:"left,omitempty"`
	// Recovery: the device outlives its server.
	Recovery bool `json:"recovery"`
	// Args are the arguments of qzbd that attach it again as it is.
	Args []string `json:"args,omitempty"`
	// Failure is what made the image fail or the stop go wrong.
	Failure string `json:"failure,omitempty"`
	// Mark tells the device from any other that gets its number.
	Mark string `json:"mark"` // hexadecimal
	// Name: udev links /dev/qzbd/Name to the node.
	Name string `json:"name,omitempty"`
}

// linkPath is what udev calls the device of that name.
func linkPath(name string) string { return filepath.Join("/dev/qzbd", name) }

func stateDir(id int) string { return filepath.Join(stateRoot, strconv.Itoa(id)) }

// save writes the state so that readers see the old or the new one whole.
func (s *state) save() error {
	if err := checkStateDir(s.ID); err != nil {
		return err
	}
	if s.Name != "" { // udev's rule reads it
		if err := s.replace("udev", []byte("QZBD_NAME="+s.Name+"\n"), 0o600); err != nil {
			return err
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return s.replace("state.json", append(b, '\n'), 0o644)
}

// spareBytes is kept free for the next record: the longest names of images fit.
const spareBytes = 16 << 10

// replace replaces a file in the directory of the device. What a device becomes
// has to be recorded also when /run is full, so some room is kept for that.
func (s *state) replace(name string, b []byte, perm fs.FileMode) error {
	path, spare := filepath.Join(stateDir(s.ID), name), filepath.Join(stateDir(s.ID), "spare")
	err := replaceOwn(path, b, perm)
	if errors.Is(err, unix.ENOSPC) {
		if err := os.Remove(spare); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		err = replaceOwn(path, b, perm)
	}
	if err != nil {
		return err
	}
	f, err := openOwn(spare, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil // without it, all is well until /run is full
	}
	_ = unix.Fallocate(int(f.Fd()), 0, 0, spareBytes)
	return f.Close()
}

func (s *state) remove() error { return removeStateDir(s.ID) }

// logPath is where a server in the background logs.
func (s *state) logPath() string { return filepath.Join(stateDir(s.ID), "log") }

// alive reports whether the server that wrote the state still runs.
func (s *state) alive() bool {
	started, err := processStart(s.PID)
	return err == nil && started == s.Started
}

// processStart returns when the process started, in clock ticks after boot.
func processStart(pid int) (uint64, error) {
	started, err := readStart(pid)
	if err != nil {
		// A thread that executes another program takes the place of the first
		// one, and this was perhaps the end of that. Who looks again sees the other.
		started, err = readStart(pid)
	}
	return started, err
}

// dying says that a process has been killed and is not gone yet.
func dying(pid int) bool {
	const exiting = 4 // PF_EXITING in the flags, field 9 of /proc/PID/stat
	fields, err := readStat(pid)
	if err != nil {
		return false
	}
	if flags, err := strconv.ParseUint(fields[6], 10, 64); err == nil && flags&exiting != 0 {
		return true
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		name, mask, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		if pending, err := strconv.ParseUint(mask, 16, 64); err == nil && pending>>(unix.SIGKILL-1)&1 != 0 {
			return true
		}
	}
	return false
}

// readStat returns the fields of /proc/PID/stat from the third on (proc_pid_stat(5)).
func readStat(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	name := strings.LastIndex(string(b), ") ") // the name may hold anything
	if name < 0 {
		return nil, fmt.Errorf("/proc/%d/stat has no name field", pid)
	}
	fields := strings.Fields(string(b)[name+2:])
	if len(fields) < 20 {
		return nil, os.ErrProcessDone
	}
	return fields, nil
}

// readStart returns field 22 of /proc/PID/stat (proc_pid_stat(5)).
func readStart(pid int) (uint64, error) {
	fields, err := readStat(pid)
	if err != nil {
		return 0, err
	}
	// Field 20 is the number of threads. While one of them executes another
	// program (an upgrade does), the first one has ended.
	threads, err := strconv.Atoi(fields[17])
	if err != nil || (fields[0] == "Z" || fields[0] == "X") && threads < 2 {
		return 0, os.ErrProcessDone
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// maxState is more than any record has, in bytes.
const maxState = 1 << 20

func readState(id int) (*state, error) {
	if err := checkStateDir(id); err != nil {
		return nil, err
	}
	path := filepath.Join(stateDir(id), "state.json")
	f, err := openOwn(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState))
	if err != nil {
		return nil, err
	}
	s := new(state)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): if qzbd list shows an orphan with this number, qzbd detach clears both away, else remove the directory; what was not flushed may be lost", path, err)
	}
	if s.ID != id || s.Device != ublk.NodePath(id) {
		return nil, fmt.Errorf("%s is damaged (it is about device %d, %q): if qzbd list shows an orphan with this number, qzbd detach clears both away, else remove the directory; what was not flushed may be lost", path, s.ID, s.Device)
	}
	return s, nil
}

// damaged are the ids of the damaged records that have been spoken of.
var damaged sync.Map

// states returns what every server has written, ordered by id.
func states() ([]*state, error) {
	ids, err := stateIDs()
	if err != nil {
		return nil, err
	}
	var all []*state
	for _, id := range ids {
		s, err := readState(id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil { // it must not stand in the way of the others
			if _, said := damaged.LoadOrStore(id, true); !said {
				printWarning(err.Error())
			}
			continue
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *state) int { return a.ID - b.ID })
	return all, nil
}

// findStates returns the states of the devices that name, a node or an image,
// belongs to: live ones, or if there are none those that dead servers have
// left. Only an image attached read-only has several live ones.
func findStates(name string) ([]*state, error) {
	all, err := states()
	if err != nil {
		return nil, err
	}
	node := name
	if abs, err := filepath.Abs(name); err == nil {
		node = abs
	}
	if id, ok := deviceNumber(name); ok {
		node = ublk.NodePath(id)
	}
	var st unix.Stat_t
	isFile := unix.Stat(name, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
	var live, dead []*state
	for _, s := range all {
		switch {
		case s.Device != node && !(s.Name != "" && linkPath(s.Name) == name) && !(isFile && st.Dev == s.Dev && st.Ino == s.Ino):
		case s.alive():
			live = append(live, s)
		default:
			dead = append(dead, s)
		}
	}
	if len(live) > 0 {
		return live, nil
	}
	return dead, nil
}

// devicesOf names the nodes of states in a sentence.
func devicesOf(list []*state) string {
	var b strings.Builder
	for i, s := range list {
		switch {
		case i == 0:
		case i == len(list)-1:
			b.WriteString(" and ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(s.Device)
	}
	return b.String()
}

// signalAndWait sends sig to the server and waits until it is gone. The pidfd
// makes sure that the signal reaches nobody else.
func (s *state) signalAndWait(sig syscall.Signal) error {
	fd, err := unix.PidfdOpen(s.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open pidfd of server %d: %w", s.PID, err)
	}
	defer unix.Close(fd)
	if !s.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
		return fmt.Errorf("signal server %d: %w: run as root", s.PID, err)
	}
	timeout := silence
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(timeout.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for server %d: %w", s.PID, err)
		case n > 0:
			return nil
		default:
			fmt.Fprintf(os.Stderr, "qzbd: waiting for the server of %s, process %d: it writes what is left, or it is stopped (kill -CONT %d)\n", s.Device, s.PID, s.PID)
			timeout = -1 * time.Millisecond // as long as it takes
		}
	}
}

// silence is how long detach waits before it says for whom.
const silence = 5 * time.Second

// last is what a server that is gone has left of its record, nil if it stopped in
// order: then the number can be another device's.
func (s *state) last() (*state, error) {
	last, err := readState(s.ID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case last.PID != s.PID || last.Started != s.Started:
		return nil, nil
	}
	return last, nil
}

// settle clears away what a server that is gone has left under its number. What
// it could not do itself becomes the error.
func (s *state) settle(force bool) error {
	last, err := s.last()
	if err != nil || last == nil {
		return err
	}
	kept, err := last.keep()
	if force && (errors.Is(err, errOtherImage) || errors.Is(err, fs.ErrNotExist)) {
		printWarning(fmt.Sprintf("what the server of %s had acknowledged and not flushed is given up: %s is not its image any more", s.Device, s.Image))
		return s.clear()
	}
	if err != nil {
		return err
	}
	if err := s.clear(); err != nil {
		return err
	}
	if last.Failure != "" {
		return fmt.Errorf("%s is detached, but not in order (%s): what was written after the last completed flush may be lost; see to the disk, then attach mends the image", s.Device, last.Failure)
	}
	switch {
	case last.Left != "": // what it had acknowledged was in the image before
	case kept:
		printWarning(fmt.Sprintf("the server of %s had died: what it had acknowledged is in %s", s.Device, s.Image))
	default:
		printWarning(fmt.Sprintf("the server of %s had died: %s is mended when it is attached again", s.Device, s.Image))
	}
	return nil
}

// clear removes what the kernel and we keep of a server that is gone.
func (s *state) clear() error {
	mark, err := s.mark()
	if err != nil {
		return err
	}
	if err := awaitDeath(s, mark); err != nil {
		return err
	}
	if err := deleteDevice(s.ID, mark); err != nil {
		return fmt.Errorf("the server of %s is gone and its device cannot be removed: %w", s.Device, err)
	}
	return s.remove()
}

func (s *state) mark() (uint64, error) {
	mark, err := strconv.ParseUint(s.Mark, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("the record of %s in %s is damaged (mark %q): remove it if no qzbd process serves the device", s.Device, stateDir(s.ID), s.Mark)
	}
	return mark, nil
}

// awaitDeath makes sure that the kernel, too, thinks that the device has no
// server any more: a process of another pid namespace is alive and cannot be
// seen. After a death that takes the kernel a moment.
func awaitDeath(s *state, mark uint64) error {
	c, err := ublk.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	for deadline := time.Now().Add(dyingWait); ; time.Sleep(dyingWait / 1000) {
		info, err := c.Info(context.Background(), s.ID)
		switch {
		case errors.Is(err, ublk.ErrNoDevice):
			return nil
		case err != nil:
			return err
		case info.Mark != mark || info.State != ublk.StateLive:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("%s has a server, although process %d of its record is not to be seen from here: detach it where that runs", s.Device, s.PID)
		}
	}
}

// deleteDevice removes the device of a server that is gone, if it is there and
// not another one that has got its number.
func deleteDevice(id int, mark uint64) error {
	c, err := ublk.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Delete(context.Background(), id, mark); !errors.Is(err, ublk.ErrNoDevice) {
		return err
	}
	return nil
}
