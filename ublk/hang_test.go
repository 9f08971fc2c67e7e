//go:build kernel && hang

package ublk

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestADeathWithTheReportInHandIsForEver shows the one death of a server that
// nothing helps against: see the package documentation. It leaves the kernel with
// a process that cannot end, so it is no part of the other tests; it wants a
// machine of its own:
//
//	go test -tags=kernel,hang -c -o bin/hang.test ./ublk
//	bin/vm run -kernel 6.12 -timeout 1m -- bin/hang.test -test.v -test.run ForEver
//
// When it fails, this kernel knows better.
func TestADeathWithTheReportInHandIsForEver(t *testing.T) {
	order, err := json.Marshal(heirOrder{Dir: t.TempDir(), Conventional: heirConventional, ZoneSize: heirZoneSize, Queues: 1, Depth: 16, DieAt: "report"})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), heirEnv+"="+string(order))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		var start, exit []byte
		stacks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", cmd.Process.Pid))
		for _, name := range stacks {
			switch b, _ := os.ReadFile(name); {
			case bytes.Contains(b, []byte("blk_revalidate_disk_zones")):
				start = b
			case bytes.Contains(b, []byte("do_exit")):
				exit = b
			}
		}
		if start != nil && exit != nil && time.Since(began) > 10*time.Second {
			t.Logf("START_DEV:\n%s\na thread that was killed:\n%s", start, exit)
			break
		}
		if len(ended) > 0 {
			t.Fatalf("it has ended: %v", <-ended)
		}
	}
	i, err := driver(t).Info(t.Context(), 0)
	t.Logf("%+v, %v", i, err)
	if err != nil || i.State != StateLive {
		t.Error("the device is not live")
	}
}
