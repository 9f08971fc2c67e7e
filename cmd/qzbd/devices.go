package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/qzbd/qzbd/ublk"
)

// kernelView is what the ublk driver says of the devices there are.
type kernelView struct {
	devices map[int]ublk.Info
	ids     []int // of all, also those that it says nothing of
	err     error // it could not be asked about some
	blind   bool  // it could not be asked at all: who is not root may not
}

// askKernel asks the driver, which need not be loaded.
func askKernel() kernelView {
	k := kernelView{devices: map[int]ublk.Info{}}
	if k.ids, k.err = ublk.IDs(); k.err != nil || len(k.ids) == 0 {
		return k
	}
	c, err := ublk.Open()
	if err != nil {
		k.err, k.blind = err, true
		return k
	}
	defer c.Close()
	all, err := c.List(context.Background())
	k.err = err
	for _, info := range all {
		k.devices[info.ID] = info
	}
	return k
}

// deviceOf returns the device of a record, if it is there and not another one
// that has got its number.
func (k *kernelView) deviceOf(s *state) (ublk.Info, bool) {
	info, ok := k.devices[s.ID]
	return info, ok && strconv.FormatUint(info.Mark, 16) == s.Mark
}

// What a device can be.
const (
	live    = "live"    // served
	failing = "failed"  // served, but its image takes no more writes
	waiting = "waiting" // its server is gone; it waits for another one
	dead    = "dead"    // its server is gone; at most a rest of it is there
	orphan  = "orphan"  // ours, and its record is gone
	foreign = "foreign" // another program's
	unknown = "unknown" // an orphan or foreign: only root can tell
)

// device is one line of list and one element of list --json: a record, with the
// device or without, or a device without a record, of which only the numbers
// are known.
type device struct {
	*state
	Status string `json:"state"`
	// Kernel is the driver's word for its state; empty without a device.
	Kernel string `json:"kernel-state,omitempty"`
	// ZeroCopy says how the data of its requests goes; nil without a device, and of
	// another program's.
	ZeroCopy *bool `json:"zero-copy,omitempty"`
}

// settling is how long a device must have been without server and record to be
// an orphan: for a moment it is so when it is added, and when it is removed.
const settling = 500 * time.Millisecond

// devices returns all devices and records, ordered by number. Where it could not
// look is in the view's err.
func devices() (all []device, k kernelView, err error) {
	for deadline := time.Now().Add(settling); ; time.Sleep(settling / 50) {
		all, k, err = lookAtDevices()
		lost := func(d device) bool { return d.Status == orphan && d.PID == 0 }
		if err != nil || !slices.ContainsFunc(all, lost) || time.Now().After(deadline) {
			return all, k, err
		}
	}
}

func lookAtDevices() ([]device, kernelView, error) {
	k := askKernel()
	records, err := states()
	if err != nil {
		return nil, k, err
	}
	all := make([]device, 0, len(records))
	recorded := map[int]bool{}
	for _, s := range records {
		d := device{state: s, Status: s.status(&k)}
		if info, ok := k.deviceOf(s); ok {
			d.know(info)
		}
		recorded[s.ID] = d.Kernel != "" || k.blind
		all = append(all, d)
	}
	for _, id := range k.ids {
		if info, ok := k.devices[id]; ok && !recorded[id] {
			all = append(all, unrecorded(info))
		} else if k.blind && !recorded[id] {
			all = append(all, device{state: &state{ID: id, Device: ublk.NodePath(id)}, Status: unknown})
		}
	}
	slices.SortStableFunc(all, func(a, b device) int { return a.ID - b.ID })
	return all, k, nil
}

// unrecorded is a device without a record.
func unrecorded(info ublk.Info) device {
	s := &state{
		ID: info.ID, Device: info.Path(), Queues: info.Queues, Depth: info.Depth,
		Recovery: info.Outlives(), Mark: strconv.FormatUint(info.Mark, 16),
	}
	if info.State == ublk.StateLive {
		s.PID = info.PID
		s.Started, _ = processStart(info.PID) // 0: it is in another pid namespace, or dying
	}
	d := device{state: s, Status: foreign}
	d.know(info)
	if info.Ours() {
		d.Status = orphan
	}
	return d
}

// know takes what the driver says.
func (d *device) know(info ublk.Info) {
	d.Kernel = info.State.String()
	if info.Ours() {
		zeroCopy := info.ZeroCopy()
		d.ZeroCopy = &zeroCopy
	}
}

// status says what a recorded device is.
func (s *state) status(k *kernelView) string {
	switch {
	case s.alive() && s.Failure != "":
		return failing
	case s.alive():
		return live
	case s.waitsIn(k):
		return waiting
	}
	return dead
}

// waits reports whether the server is gone and the device waits for another one:
// without recovery the kernel removes it.
func (s *state) waits() bool {
	if s.alive() {
		return false
	}
	k := askKernel()
	return s.waitsIn(&k)
}

func (s *state) waitsIn(k *kernelView) bool {
	if !s.Recovery || s.alive() {
		return false
	}
	if k.blind {
		_, err := os.Stat(s.Device)
		return err == nil
	}
	info, ok := k.deviceOf(s)
	return ok && info.State != ublk.StateDead
}

// deviceNumber returns the N of a device's block or char node, or of a symlink
// to one. The node itself need not be there.
func deviceNumber(name string) (id int, ok bool) {
	if abs, err := filepath.Abs(name); err == nil {
		name = abs
	}
	if target, err := filepath.EvalSymlinks(name); err == nil {
		name = target
	}
	for _, prefix := range []string{"/dev/ublkb", "/dev/ublkc"} {
		if num, cut := strings.CutPrefix(name, prefix); cut {
			id, err := strconv.Atoi(num)
			return id, err == nil && id >= 0
		}
	}
	return 0, false
}
