//go:build kernel

package kernel

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	killsFlag = flag.Int("kills", 0, "how often a test kills the server of its device; 0: less often than that takes a while")
	seedFlag  = flag.Uint64("seed", 0, "`seed` of the moments at which servers are killed; 0: another one each time")
)

// kills is how often to kill; few: where nothing else is asked for.
func kills(few int) int {
	if *killsFlag > 0 {
		return *killsFlag
	}
	return few
}

// seeded is where the moments of a test come from.
func seeded(t *testing.T) (seed uint64, rng *rand.Rand) {
	t.Helper()
	if seed = *seedFlag; seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	return seed, rand.New(rand.NewPCG(seed, 0))
}

// killed ends the server of d as the kernel's out-of-memory killer would. The
// device waits.
func (d *device) killed() {
	h := d.im.h
	h.t.Helper()
	pid := d.server()
	if pid == 0 {
		h.t.Fatalf("no server for %s", d.node)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	h.wait("the server is gone", func() bool { return !alive(pid) })
}

// recovered starts another server.
func (d *device) recovered() {
	h := d.im.h
	h.t.Helper()
	if node := strings.TrimSpace(h.run(qzbd, "recover", d.node)); node != d.node {
		h.t.Fatalf("recover said %q, want %q", node, d.node)
	}
}

// What was acknowledged is there after a recovery, flushed or not, and so are
// the conditions of zones; requests of the time without a server are answered
// afterwards.
func TestADeviceOutlivesItsServer(t *testing.T) {
	for _, way := range ways(t, 1, attaching) {
		t.Run(way.name, func(t *testing.T) {
			h := begin(t)
			h.onExt4()
			im := h.create("a.qcow2", mixed)
			d := im.attach(append(way.flags, "--queues", queues())...)
			k := d.open()
			zones := k.zones()
			first := 0
			for zones[first].kind == conventional {
				first++
			}
			at := func(i int) int64 { return zones[first+i].start }
			k.write(1, 4096, 8192) // a conventional zone
			k.write(2, at(0), 69632)
			k.must(blkOpenZone, zones[first+1])
			k.write(3, at(2), 4096)
			k.must(blkFinishZone, zones[first+2])
			k.write(4, at(3), 4096)
			k.sync()
			k.must(blkResetZone, zones[first+3])
			before := k.zones()
			d.killed()
			if s := d.state(); s != "waiting" {
				t.Errorf("list says %q", s)
			}
			done := make(chan error, 1)
			go func() { done <- k.pwrite(at(0)+69632, pattern(2, at(0)+69632, 4096), 0) }()
			says(t, h.refused(qzbd, "check", "-r", "all", im.path), d.node, "recover or detach")
			says(t, h.try(qzbd, "check", im.path).stderr, d.node, "there again after qzbd recover")
			says(t, h.refused(qzbd, "create", im.path, "64M"), d.node, "recover or detach")
			says(t, h.refused(qzbd, "detach", d.node), "in use", "qzbd recover "+d.node)
			d.recovered()
			if err := <-done; err != nil {
				t.Errorf("a write of the time without a server: %v", err)
			}
			before[first].wp += 4096
			if after := k.zones(); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("zones were\n%v and are\n%v", before, after)
			}
			k.holds(1, 4096, 8192)
			k.holds(2, at(0), 69632+4096)
			k.holds(3, at(2), 4096)
			k.zeros(at(3), 4096)
			says(t, h.refused(qzbd, "recover", d.node), "nothing to recover")
			d.flushers()
			k.close()
			d.detach()
			k = im.attach(way.flags...).open()
			k.holds(2, at(0), 69632+4096)
		})
	}
}

// Of two that recover a device at the same time one does, and the other hears that
// there is nothing to do.
func TestADeviceIsRecoveredOnce(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", small).attach("--queues", queues())
	for range 3 {
		d.killed()
		results := make(chan string, 2)
		for range 2 {
			go func() {
				out, _ := exec.Command(qzbd, "recover", d.node).CombinedOutput()
				results <- string(out)
			}()
		}
		both := []string{<-results, <-results}
		slices.Sort(both) // "/dev/…" is before "qzbd: …"
		if both[0] != d.node+"\n" || !strings.Contains(both[1], "nothing to recover") {
			t.Errorf("%q", both)
		}
	}
	d.detach()
}

// An image whose device waits is taken over by attach, and detach without a
// server keeps what was acknowledged.
func TestAttachAndDetachOfADeviceThatWaits(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	d := im.attach("--queues", queues())
	k := d.open()
	k.write(1, 0, 69632)
	d.killed()
	if node := strings.TrimSpace(h.run(qzbd, "attach", "--queues", "1", im.path)); node != d.node {
		t.Fatalf("attach made %s, %s waits", node, d.node)
	}
	k.write(1, 69632, 4096)
	k.close()
	d.killed()
	h.run(qzbd, "detach", d.node)
	d.gone = true
	if _, err := os.Stat(d.node); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", d.node, err)
	}
	if l := h.list(); len(l) != 0 {
		t.Errorf("list says %v", l)
	}
	im.check()
	k = im.attach().open()
	k.isIn(0, closed, 69632+4096)
	k.holds(1, 0, 69632+4096)
}

// A shell that has the node open while it recovers the device does not hand that
// on to the server, which would then use its own device.
func TestAServerHasNoFilesOfItsCaller(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", small).attach()
	node, err := os.Open(d.node)
	if err != nil {
		t.Fatal(err)
	}
	d.killed()
	recovers := exec.Command(qzbd, "recover", d.node)
	recovers.ExtraFiles = []*os.File{node, node, node}
	if out, err := recovers.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	node.Close()
	d.detach()
}

// While a device waits another file may get the name of its image: it is never
// touched, and the device waits for its own until it is given up.
func TestAnotherImageInThePlaceOfItsOwn(t *testing.T) {
	h := begin(t)
	im, other := h.create("a.qcow2", small), h.create("b.qcow2", small)
	d := im.attach("--sync-interval", "0")
	k := d.open()
	k.write(1, 0, 65536)
	k.close()
	before, err := os.ReadFile(other.path)
	if err != nil {
		t.Fatal(err)
	}
	away := im.path + ".away"
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(why string) {
		t.Helper()
		for _, command := range []string{"recover", "detach"} {
			says(t, h.refused(qzbd, command, d.node), why, "qzbd detach --force "+d.node)
		}
	}
	d.killed()
	rename(im.path, away)
	refused("is not there")
	rename(other.path, im.path)
	refused("another file")
	rename(im.path, other.path)
	rename(away, im.path)
	d.recovered()
	k = d.open()
	k.holds(1, 0, 65536)
	k.close()

	d.killed()
	rename(im.path, away)
	rename(other.path, im.path)
	h.run(qzbd, "detach", "--force", d.node)
	d.gone = true
	if after, err := os.ReadFile(im.path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the other image has changed (%v)", err)
	}
	rename(away, other.path)
	h.run(qzbd, "check", "-r", "all", other.path) // was not closed
}

// Under load, again and again, at any moment: fio sees no error and finds all
// its data.
func TestFioNoticesNoDeathOfTheServer(t *testing.T) {
	for i, way := range ways(t, 0, attaching) {
		t.Run(way.name, func(t *testing.T) {
			h := begin(t)
			h.onExt4()
			im := h.create("a.qcow2", busyImage)
			d := im.attach(append(way.flags, "--queues", queues())...)
			seed, rng := seeded(t)
			h.survives(d, rng, kills(thoroughly(10, 5)), 300, d.killed, func() *exec.Cmd { return verifying(d, "64M", engines[i], seed) })
			d.detach()
		})
	}
}

// verifying is fio that writes so much to sequential zones and reads it back.
func verifying(d *device, size, engine string, seed uint64) *exec.Cmd {
	return exec.Command("fio", "--name=load", "--filename="+d.node, "--direct=1", "--zonemode=zbd", "--offset=16M", "--size=240M",
		"--ioengine="+engine, "--iodepth=16", "--rw=randwrite", "--bsrange=4k-64k", "--blockalign=4k",
		"--max_open_zones=6", "--io_size="+size, "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", fmt.Sprint("--randseed=", uint32(seed)))
}

// Appends in flight are done once: none is answered with the place of another
// one, each is where its answer says, and of those that were in doubt no more
// than one copy each is left over.
func TestAppendsInFlightAreDoneOnce(t *testing.T) {
	h := begin(t)
	seed, rnd := seeded(t)
	im := h.create("a.qcow2", "size=256M,zone.size=64M")
	d := im.attach("--queues", queues())
	const writers, most = 6, 16 << 10
	kills := kills(thoroughly(5, 3))
	var mu sync.Mutex
	var all []placed
	t.Run("append", func(t *testing.T) { // the namespace goes before the device does
		d := &device{im: &image{&host{t, h.dir}, im.path}, node: d.node}
		n := d.overNVMe()
		var stop atomic.Bool
		var busy sync.WaitGroup
		for w := range writers {
			busy.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(1+w)))
				for i := 0; !stop.Load(); i++ {
					p := placed{seed: uint64(w)<<40 | uint64(i)<<20, n: 512 << rnd.IntN(6)}
					at, err := n.append(int64(rnd.IntN(2))<<26, pattern(p.seed, 0, p.n))
					if err != nil {
						t.Errorf("append %d of writer %d: %v", i, w, err)
						return
					}
					p.at = at
					mu.Lock()
					all = append(all, p)
					mu.Unlock()
				}
			})
		}
		count := func() int {
			mu.Lock()
			defer mu.Unlock()
			return len(all)
		}
		for range kills {
			more := count() + rnd.IntN(100)
			h.wait("appends are answered", func() bool { return t.Failed() || count() > more })
			d.killed()
			d.recovered()
		}
		stop.Store(true)
		busy.Wait()
	})
	slices.SortFunc(all, func(a, b placed) int { return int(a.at - b.at) })
	k := d.open()
	var end, answered int64
	for _, p := range all {
		if p.at < end {
			t.Fatalf("two appends went to %#x", p.at)
		}
		end = p.at + int64(p.n)
		answered += int64(p.n)
		k.same(p.at, pattern(p.seed, 0, p.n))
	}
	written := k.zone(0).written() + k.zone(1).written()
	t.Logf("%d appends, %d bytes, were answered; %d bytes are written", len(all), answered, written)
	if most := answered + int64(kills)*writers*most; written > most {
		t.Errorf("%d bytes are written, at most %d could be", written, most)
	}
	k.close()
	d.detach()
}

// File systems see no error either.
func TestFileSystemsNoticeNoDeathOfTheServer(t *testing.T) {
	for _, fs := range ways(t, 1, []string{"btrfs", "f2fs"}) {
		t.Run(fs, func(t *testing.T) {
			h := begin(t)
			im := h.create("a.qcow2", "size=1G,zone.size=16M,zone.conventional_zones=4")
			d := im.attach("--queues", queues())
			h.mkfs(fs, d)
			dir, unmount := h.mount(fs, d.node)
			_, rng := seeded(t)
			h.survives(d, rng, kills(thoroughly(5, 3)), 40, d.killed, func() *exec.Cmd { return copying(h.dir, dir) })
			unmount()
			d.detach()
		})
	}
}

// mkfs makes a btrfs or an f2fs.
func (h *host) mkfs(fs string, d *device) {
	h.t.Helper()
	if fs == "btrfs" {
		h.tool("mkfs.btrfs", "-q", "-O", "zoned", "-d", "single", "-m", "single", d.node)
	} else {
		h.tool("mkfs.f2fs", "-q", "-m", d.node)
	}
}

// copying copies a file to many in a file system, and compares. dd says what went
// wrong.
func copying(from, to string) *exec.Cmd {
	return exec.Command("sh", "-c", fmt.Sprintf(`set -e
dd if=/dev/urandom of=%[1]s/source bs=1M count=8 2>/dev/null
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do dd if=%[1]s/source of=%[2]s/f$i bs=64k conv=fsync 2>/dev/null; done
for i in 1 2 3 4 5 6 7 8 9 10 11 12; do cmp %[1]s/source %[2]s/f$i; done
rm %[2]s/f*`, from, to))
}

// survives runs a program and kills the server of its device n times meanwhile,
// each after most requests at most.
func (h *host) survives(d *device, rng *rand.Rand, n, most int, kill func(), program func() *exec.Cmd) {
	h.t.Helper()
	var pauses []time.Duration
	h.interrupted(d, rng, n, most, program, func() {
		began := time.Now()
		kill()
		d.recovered()
		pauses = append(pauses, time.Since(began))
	})
	slices.Sort(pauses)
	h.t.Logf("%d kills survived, from a kill to the end of qzbd recover: %v (median), %v (longest)",
		n, pauses[n/2].Round(time.Millisecond), pauses[n-1].Round(time.Millisecond))
}

// interrupted runs a program and interrupts it n times, each after most requests
// at most. A program that ends earlier is run again, and an interruption that it
// did not live to see the end of does not count. It must not fail.
func (h *host) interrupted(d *device, rng *rand.Rand, n, most int, program func() *exec.Cmd, interrupt func()) {
	h.t.Helper()
	var out strings.Builder
	ended := make(chan error, 1)
	begin := func() *exec.Cmd {
		cmd := program()
		out.Reset()
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			h.t.Fatal(err)
		}
		go func() { ended <- cmd.Wait() }()
		return cmd
	}
	done := 0
	well := func(err error) {
		if err != nil {
			h.t.Fatalf("after %d interruptions: %v\n%s", done, err, out.String())
		}
	}
	cmd := begin()
	for done < n {
		// So many requests of this life, and then some.
		load := d.completed() + rng.IntN(most)
		h.wait("requests are completed", func() bool { return len(ended) > 0 || d.completed() >= load })
		if len(ended) > 0 {
			well(<-ended)
			cmd = begin()
			continue
		}
		interrupt()
		if len(ended) == 0 {
			done++
		}
	}
	select {
	case err := <-ended:
		well(err)
	case <-time.After(2 * patience):
		_ = unix.Kill(cmd.Process.Pid, unix.SIGKILL)
		h.t.Fatalf("after %d interruptions the program hangs\n%s", n, out.String())
	}
}
