//go:build kernel

package kernel

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var upgradesFlag = flag.Int("upgrades", 0, "how often a test upgrades the server of its device; 0: less often than that takes a while")

// upgrades is how often to upgrade; few: where nothing else is asked for.
func upgrades(few int) int {
	if *upgradesFlag > 0 {
		return *upgradesFlag
	}
	return few
}

var upgradedLine = regexp.MustCompile(`^(/dev/ublkb\d+): (\S+) → (\S+), paused for (\d+) ms\n$`)

// upgraded has the server of d become the program, and returns how long the users
// of d had to wait.
func (d *device) upgraded(program string) time.Duration {
	h := d.im.h
	h.t.Helper()
	before := d.server()
	out := h.run(program, "upgrade", d.node)
	m := upgradedLine.FindStringSubmatch(out)
	if m == nil || m[1] != d.node {
		h.t.Fatalf("upgrade said %q", out)
	}
	after := d.server()
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", after)); after != before || exe != program {
		h.t.Errorf("process %d serves, it is %s (%v); want %d and %s", after, exe, err, before, program)
	}
	ms, err := strconv.Atoi(m[4])
	if err != nil {
		h.t.Fatal(err)
	}
	return time.Duration(ms) * time.Millisecond
}

// another is the same program in another file.
func (h *host) another() string {
	h.t.Helper()
	path := filepath.Join(h.dir, "qzbd")
	h.run("cp", qzbd, path)
	return path
}

// pauses tells how long users had to wait.
func (h *host) pauses(all []time.Duration) {
	slices.Sort(all)
	h.t.Logf("%d upgrades unnoticed, pauses of %v (median) and %v (longest)", len(all), all[len(all)/2], all[len(all)-1])
}

// The server becomes another program under load: fio sees no error and finds all
// its data.
func TestFioNoticesNoUpgrade(t *testing.T) {
	for i, way := range ways(t, 1, attaching) {
		t.Run(way.name, func(t *testing.T) {
			h := begin(t)
			h.onExt4()
			im := h.create("a.qcow2", "size=256M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=2,zone.max_open_zones=6,zone.max_active_zones=8")
			d := im.attach(append(way.flags, "--queues", queues())...)
			seed, rng := seeded(t)
			programs := []string{h.another(), qzbd}
			var all []time.Duration
			h.interrupted(d, rng, upgrades(3), 300, func() *exec.Cmd { return verifying(d, "64M", engines[i], seed) }, func() {
				all = append(all, d.upgraded(programs[len(all)%2]))
			})
			h.pauses(all)
			d.detach()
		})
	}
}

// File systems do not notice it either.
func TestFileSystemsNoticeNoUpgrade(t *testing.T) {
	for _, fs := range ways(t, 0, []string{"btrfs", "f2fs"}) {
		t.Run(fs, func(t *testing.T) {
			h := begin(t)
			im := h.create("a.qcow2", "size=1G,zone.size=16M,zone.conventional_zones=4")
			d := im.attach("--queues", queues())
			h.mkfs(fs, d)
			dir, unmount := h.mount(fs, d.node)
			_, rng := seeded(t)
			var all []time.Duration
			h.interrupted(d, rng, upgrades(1), 40, func() *exec.Cmd { return copying(h.dir, dir) }, func() {
				all = append(all, d.upgraded(qzbd))
			})
			h.pauses(all)
			unmount()
			d.detach()
		})
	}
}

// What a device is like survives an upgrade, and what belongs to its server: the
// process, the log, the options and how it stops.
func TestWhatAnUpgradeKeeps(t *testing.T) {
	for _, way := range ways(t, 0, attaching) {
		t.Run(way.name, func(t *testing.T) {
			h := begin(t)
			h.onExt4()
			im := h.create("a.qcow2", mixed)
			s := im.serve(append(way.flags, "--queues", queues(), "--depth", "32")...)
			k := s.open()
			zones := k.zones()
			first := slices.IndexFunc(zones, func(z zone) bool { return z.kind != conventional })
			k.write(1, 4096, 8192) // a conventional zone
			k.write(2, zones[first].start, 69632)
			k.must(blkOpenZone, zones[first+1])
			k.write(3, zones[first+2].start, 4096)
			k.must(blkFinishZone, zones[first+2])
			before, listed := k.zones(), h.list()[0]
			next := h.another()
			for range 3 {
				s.upgraded(next)
			}
			if after := k.zones(); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("zones were\n%v and are\n%v", before, after)
			}
			if now := h.list()[0]; now != listed {
				t.Errorf("list said %+v and says %+v", listed, now)
			}
			k.holds(1, 4096, 8192)
			k.holds(2, zones[first].start, 69632)
			k.holds(3, zones[first+2].start, 4096)
			k.write(2, zones[first].start+69632, 4096)
			says(t, h.refused(qzbd, "attach", im.path), "attached as "+s.node)
			k.close()
			s.terminate()
			if log := s.stderr.String(); strings.Count(log, "upgraded") != 3 || !strings.Contains(log, "stopped") {
				t.Error("the log does not tell of the upgrades and the end")
			}
			im.check()
			k = im.attach(way.flags...).open()
			k.holds(2, zones[first].start, 69632+4096)
		})
	}
}

// What cannot be is refused, and the server goes on as it was.
func TestUpgradesThatAreRefused(t *testing.T) {
	h := begin(t)
	s := h.addStranger(43, 0)
	says(t, h.refused(qzbd, "upgrade", s.node()), "left alone")
	im := h.create("a.qcow2", small)
	says(t, h.refused(qzbd, "upgrade", im.path), "not attached")
	d := im.attach("--no-recovery")
	says(t, h.refused(qzbd, "upgrade", d.node), "--no-recovery", "detach")
	r := h.try(qzbd, "upgrade", "--all")
	if r.code != 0 || r.stdout != "" {
		t.Error(r)
	}
	says(t, r.stderr, d.node, "--no-recovery")
	d.detach()

	d = im.attach()
	pid := d.server()
	order := func(program, version string) string {
		t.Helper()
		status, text := d.post("/upgrade", map[string]string{"program": program, "version": version})
		if status == http.StatusAccepted {
			t.Fatalf("%s was accepted", program)
		}
		return text
	}
	script := filepath.Join(h.dir, "script")
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(script, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	says(t, order("/nowhere/qzbd", "1"), "/nowhere/qzbd", "no such file")
	says(t, order("bin/qzbd", "1"), "no absolute path")
	says(t, order(h.dir, "1"), h.dir, "cannot start")
	write("#!/bin/sh\necho qzbd 2\n", 0o600)
	says(t, order(script, "2"), script, "permission denied")
	if err := os.Chmod(script, 0o700); err != nil {
		t.Fatal(err)
	}
	says(t, order(script, "3"), script, `"qzbd 2"`, `"qzbd 3"`)
	write("#!/bin/sh\necho 'qzbd: unknown flag: --depth' >&2\nexit 1\n", 0o700)
	says(t, order(script, "3"), script, "cannot take over: unknown flag: --depth")
	says(t, order(qzbd, "another version"), "another version")

	// A record and a journal that this program cannot read.
	record, journal := filepath.Join(d.record(), "state.json"), filepath.Join(d.record(), "journal")
	keep, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(record, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(bytes.Replace(keep, []byte("--depth="), []byte("--deep="), 1))
	says(t, h.refused(qzbd, "upgrade", d.node), "another version", "--deep", "goes on as it was")
	put(keep)
	f, err := os.OpenFile(journal, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, v := range []byte{2, 1} { // in place: the server has it mapped
		if _, err := f.WriteAt([]byte{v}, 8); err != nil {
			t.Fatal(err)
		}
		if v == 2 {
			says(t, h.refused(qzbd, "upgrade", d.node), "journal", "version 2")
		}
	}
	if d.server() != pid || d.state() != "live" {
		t.Errorf("process %d serves, not %d; list says %s", d.server(), pid, d.state())
	}
	k := d.open()
	k.write(1, 0, 4096)
	k.close()
	d.upgraded(qzbd)

	d.killed()
	says(t, h.refused(qzbd, "upgrade", d.node), "no server", "qzbd recover "+d.node)
	if out := h.run(qzbd, "upgrade", "--all"); out != "" {
		t.Errorf("upgrade --all said %q", out)
	}
	d.recovered()
	if out := h.run(qzbd, "upgrade", "--all"); !upgradedLine.MatchString(out) {
		t.Errorf("upgrade --all said %q", out)
	}
	d.detach()
}

// post asks the server for something, and returns its answer.
func (d *device) post(path string, what any) (status int, text string) {
	h := d.im.h
	h.t.Helper()
	body, err := json.Marshal(what)
	if err != nil {
		h.t.Fatal(err)
	}
	client := http.Client{Timeout: patience, Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", filepath.Join(d.record(), "control"))
	}}}
	defer client.CloseIdleConnections()
	r, err := client.Post("http://qzbd"+path, "application/json", bytes.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// A server that is killed while it is upgraded, whenever that is, leaves a device
// that recover goes on with.
func TestAServerKilledInAnUpgrade(t *testing.T) {
	h := begin(t)
	h.onExt4()
	im := h.create("a.qcow2", "size=256M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=2,zone.max_open_zones=6,zone.max_active_zones=8")
	d := im.attach("--queues", queues())
	seed, rng := seeded(t)
	outcomes := map[string]int{}
	var took time.Duration // by the quickest upgrade that nobody disturbed
	h.interrupted(d, rng, kills(thoroughly(6, 4)), 200, func() *exec.Cmd { return verifying(d, "64M", engines[0], seed) }, func() {
		pid := d.server()
		began := time.Now()
		if took == 0 {
			d.upgraded(qzbd)
			took = time.Since(began)
			return
		}
		done := make(chan result, 1)
		go func() { done <- h.try(qzbd, "upgrade", d.node) }()
		select {
		case <-time.After(time.Duration(rng.Int64N(int64(took)))):
		case r := <-done:
			took = min(took, time.Since(began))
			done <- r
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		h.wait("the server is gone", func() bool { return !alive(pid) })
		r := <-done
		switch {
		case r.code == 0:
			outcomes["after the upgrade"]++
		case r.code == 1 && strings.Contains(r.stderr, "qzbd recover"), strings.Contains(r.stderr, "qzbd list"):
			outcomes["before or in it"]++
		default:
			t.Error(r)
		}
		d.recovered()
	})
	t.Logf("killed: %v; an upgrade takes %v as a whole", outcomes, took)
	d.detach()
}
