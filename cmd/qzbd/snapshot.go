package main

import (
	"encoding/json"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

// snapshot is what GET /stats of the control socket answers: what the rooms
// have counted since this server took the device.
type snapshot struct {
	Device  string
	Image   string
	PID     int
	Version string
	Began   time.Time // of the counters
	Taken   time.Time
	Queues  ublk.Stats
	Zones   zns.Stats
	File    qcow2.Stats
}

// source makes snapshots of a server, once there is a device.
type source struct {
	from atomic.Pointer[sourceOf]
}

type sourceOf struct {
	device *ublk.Device
	zones  *zns.Device
	image  *qcow2.Image
	path   string
	began  time.Time
}

// snapshot returns nil while there is no device. No request waits for it.
func (s *source) snapshot() *snapshot {
	f := s.from.Load()
	if f == nil {
		return nil
	}
	return &snapshot{
		Device: f.device.Path(), Image: f.path, PID: os.Getpid(), Version: version,
		Began: f.began, Taken: time.Now(),
		Queues: f.device.Stats(), Zones: f.zones.Stats(), File: f.image.Stats(),
	}
}

// serveStats answers GET /stats.
func (s *source) serveStats(w http.ResponseWriter, _ *http.Request) {
	snap := s.snapshot()
	if snap == nil {
		http.Error(w, "the device is being started: try again", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(snap) // who does not listen need not be answered
}
