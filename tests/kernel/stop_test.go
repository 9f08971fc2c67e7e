//go:build kernel

package kernel

import (
	"bufio"
	"bytes"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// foreground is a server that is a child of the test, so that its exit status
// can be seen.
type foreground struct {
	*device
	cmd    *exec.Cmd
	stderr bytes.Buffer
	ended  chan error
	over   bool
}

func (im *image) serve(flags ...string) *foreground {
	h := im.h
	h.t.Helper()
	s := &foreground{cmd: exec.Command(qzbd, append(attachArgs(im, flags), "--foreground")...)}
	s.cmd.Stderr = &s.stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	first := make(chan string, 1)
	s.ended = make(chan error, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		first <- strings.TrimSuffix(line, "\n")
		s.ended <- s.cmd.Wait()
	}()
	h.t.Cleanup(func() {
		if !s.over {
			h.t.Error("the test has not stopped its server")
			// It may end at any of these moments, so errors mean nothing.
			_ = s.cmd.Process.Signal(syscall.SIGTERM)
			select {
			case <-s.ended:
			case <-time.After(moment):
				_ = s.cmd.Process.Kill()
				<-s.ended
			}
		}
		if h.t.Failed() {
			h.t.Logf("log of the server:\n%s", s.stderr.Bytes())
		}
	})
	select {
	case node := <-first:
		if !strings.HasPrefix(node, "/dev/ublkb") {
			h.t.Fatalf("the server printed %q for its node", node)
		}
		s.device = &device{im: im, node: node, gone: true}
	case <-time.After(patience):
		h.t.Fatal("no node from the server")
	}
	return s
}

// terminate ends the server in order.
func (s *foreground) terminate() {
	h := s.im.h
	h.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		h.t.Fatal(err)
	}
	select {
	case err := <-s.ended:
		s.over = true
		if err != nil {
			h.t.Errorf("after SIGTERM the server ended with %v", err)
		}
	case <-time.After(patience):
		h.t.Fatalf("the server still runs %v after SIGTERM", patience)
	}
}

func TestAServerInTheForegroundStopsInOrder(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	s := im.serve()
	k := s.open()
	k.write(1, 0, 69632)
	k.close()
	s.flushers()
	s.terminate()
	k = im.attach().open()
	k.isIn(0, closed, 69632)
	k.holds(1, 0, 69632)
}

// writer fills its zones one after the other, again and again until the device
// goes, and knows how far it has come: everything below acked was acknowledged.
type writer struct {
	zones []int
	acked []atomic.Int64
}

func (w *writer) run(k *disk, size int) {
	for {
		for i, z := range w.zones {
			start := int64(z) * zlen
			w.acked[i].Store(0)
			if k.mgmt(blkResetZone, start, zlen) != nil {
				return
			}
			for at := 0; at < zcap; at += size {
				n := min(size, zcap-at)
				place := start + int64(at)
				if k.pwrite(place, pattern(uint64(z), place, n), 0) != nil {
					return
				}
				w.acked[i].Store(int64(at + n))
			}
		}
	}
}

func (w *writer) total() (n int64) {
	for i := range w.acked {
		n += w.acked[i].Load()
	}
	return n
}

func TestWhatWasAcknowledgedBeforeSIGTERMIsThereAfterwards(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=512M,zone.size=8M,zone.capacity=6M")
	s := im.serve("--queues", queues(), "--no-recovery")
	writers := make([]*writer, 4)
	var wg sync.WaitGroup
	for i := range writers {
		w := &writer{}
		for z := i; z < 64; z += len(writers) {
			w.zones = append(w.zones, z)
		}
		w.acked = make([]atomic.Int64, len(w.zones))
		writers[i] = w
		k := s.open()
		wg.Go(func() { w.run(k, 4096*(1+7*i)); k.close() })
	}
	sum := func() (n int64) {
		for _, w := range writers {
			n += w.total()
		}
		return n
	}
	h.wait("the writers are busy", func() bool { return sum() > 32<<20 })
	s.terminate()
	wg.Wait()
	t.Logf("%d bytes were acknowledged", sum())

	k := im.attach().open()
	zones := k.zones()
	for _, w := range writers {
		for i, z := range w.zones {
			n := w.acked[i].Load()
			if have := zones[z].written(); have < n {
				t.Errorf("zone %d holds %d bytes, %d were acknowledged", z, have, n)
				continue
			}
			k.holds(uint64(z), int64(z)*zlen, int(n))
		}
	}
}

func TestSIGTERMUnderFioLeavesNothingBehind(t *testing.T) {
	for _, engine := range ways(t, 1, engines) {
		t.Run(engine, func(t *testing.T) {
			h := begin(t)
			im := h.create("a.qcow2", "size=256M,zone.size=16M,zone.capacity=12M,zone.max_open_zones=6,zone.max_active_zones=8,zone.conventional_zones=2")
			s := im.serve("--queues", queues(), "--no-recovery")
			fio := exec.Command("fio", "--name=load", "--filename="+s.node, "--direct=1", "--zonemode=zbd",
				"--ioengine="+engine, "--iodepth=16", "--rw=randrw", "--bsrange=4k-64k", "--blockalign=4k", "--numjobs=2",
				"--max_open_zones=6", "--time_based", "--runtime=3600")
			var out bytes.Buffer
			fio.Stdout, fio.Stderr = &out, &out
			if err := fio.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- fio.Wait() }()
			h.wait("fio is busy", func() bool {
				select {
				case err := <-ended:
					t.Fatalf("fio ended too early: %v\n%s", err, out.Bytes())
				default:
				}
				return s.completed() > 2000
			})
			s.terminate()
			select {
			case err := <-ended:
				if err == nil {
					t.Errorf("fio met no error when its device went:\n%s", out.Bytes())
				}
			case <-time.After(patience):
				t.Fatal("fio still runs although its device is gone")
			}
			im.check()
			k := im.attach().open()
			k.write(1, 0, 4096) // the image is as usable as before
			k.holds(1, 0, 4096)
		})
	}
}
