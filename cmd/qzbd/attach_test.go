package main

import (
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestEveryBadFlagOfAttachIsReportedAtOnce(t *testing.T) {
	o := attachOptions{id: -2, queues: 0, depth: 5000, blockSize: 1024, syncInterval: -time.Second, logLevel: "loud"}
	err := o.validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"--id -2", "--queues 0", "--depth 5000", "--block-size 1024", "--sync-interval -1s: choose 10ms to 1h", "--log-level loud"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %q", err, want)
		}
	}
	if err := (&attachOptions{id: -1, queues: 1, depth: 128, blockSize: 512, logLevel: "info"}).validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	for interval, ok := range map[time.Duration]bool{0: true, minSyncInterval: true, maxSyncInterval: true, minSyncInterval - 1: false, maxSyncInterval + 1: false} {
		o := attachOptions{id: -1, queues: 1, depth: 128, blockSize: 512, logLevel: "info", syncInterval: interval}
		if err := o.validate(); (err == nil) != ok {
			t.Errorf("--sync-interval %v: %v", interval, err)
		}
	}
}

func TestALateLogKeepsWhatCameBeforeItsFile(t *testing.T) {
	path := t.TempDir() + "/log"
	var l lateFile
	for _, s := range []string{"one\n", "two\n"} {
		if _, err := l.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.open(path); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Write([]byte("three\n")); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || string(b) != "one\ntwo\nthree\n" {
		t.Errorf("log %q, %v", b, err)
	}
}

// TestADeviceKeepsItsQueuesOnFewerCPUs is about one that was attached when there
// were more.
func TestADeviceKeepsItsQueuesOnFewerCPUs(t *testing.T) {
	before := attachOptions{id: 7, queues: runtime.NumCPU() + 1, depth: 128, blockSize: 512, logLevel: "info"}
	if err := before.validate(); err == nil || !strings.Contains(err.Error(), "CPUs that qzbd may run on") {
		t.Errorf("a new device: %v", err)
	}
	var after attachOptions
	s := &state{ID: 7, Device: "/dev/ublkb7", Image: "/z.qcow2", Args: before.args("/z.qcow2")}
	if err := after.takeOver(s); err != nil || after.queues != before.queues {
		t.Errorf("%d queues, %v", after.queues, err)
	}
}
