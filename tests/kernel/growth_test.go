//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// What a server may take beyond what one of a device of few zones takes.
const (
	perZone = 64       // bytes
	l2Cache = 32 << 20 // bytes of mapping tables
	// heapSlack is how far two equal Go programs may be apart.
	heapSlack = 2 << 20
)

// A device of 4T, as many zones as a kernel takes, is used here and there.
func TestADeviceOfTheMostZonesTakesLittleMemory(t *testing.T) {
	const (
		zones    = 16384
		few      = 16
		zoneSize = 256 << 20
		used     = 200
		piece    = 64 << 10
	)
	h := begin(t)
	h.smallPages()
	attach := func(n int) (*image, *device) {
		im := h.create(fmt.Sprintf("%d.qcow2", n), fmt.Sprintf("size=%d,zone.size=%d", int64(n)*zoneSize, int64(zoneSize)))
		begun := time.Now()
		d := im.attach()
		t.Logf("%d zones attached in %v", n, time.Since(begun).Round(time.Millisecond))
		if got := strings.Count(h.run("blkzone", "report", d.node), "\n"); got != n {
			t.Errorf("blkzone reports %d zones, want %d", got, n)
		}
		return im, d
	}
	_, small := attach(few)
	fixed := small.memory()
	small.detach()

	im, d := attach(zones)
	most := fixed + perZone*(zones-few)
	idle := d.memory()
	t.Logf("memory of the server, without I/O buffers: %d KiB for %d zones, %d KiB for %d", fixed>>10, few, idle>>10, zones)
	if idle > most+heapSlack {
		t.Errorf("%d bytes, want at most %d", idle, most+heapSlack)
	}
	at := func(i int) int64 { return int64(i) * (zones - 1) / (used - 1) * zoneSize } // the first to the last
	k := d.open()
	for i := range used {
		k.write(uint64(i), at(i), piece)
	}
	k.sync()
	for i := range used {
		k.holds(uint64(i), at(i), piece)
		k.zeros(at(i)+piece, piece)
	}
	busy := d.memory()
	t.Logf("%d KiB with %d of them used", busy>>10, used)
	if busy > most+l2Cache {
		t.Errorf("%d bytes, want at most %d", busy, most+l2Cache)
	}
	k.close()
	d.detach()

	k = im.attach().open()
	written := 0
	for i, z := range k.report(0, zones) {
		want := empty
		if written < used && int64(i)*zoneSize == at(written) {
			written++
			want = closed
		}
		if z.cond != want {
			t.Errorf("zone %d is %v, want %v", i, z.cond, want)
		}
	}
	k.holds(used-1, at(used-1), piece)
}

// smallPages keeps the kernel from giving a program 2M where it uses a few bytes,
// until the end of the test.
func (h *host) smallPages() {
	h.t.Helper()
	const file = "/sys/kernel/mm/transparent_hugepage/enabled"
	b, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return // it never does
	}
	if err != nil {
		h.t.Fatal(err)
	}
	_, was, _ := strings.Cut(string(b), "[")
	was, _, _ = strings.Cut(was, "]")
	set := func(what string) {
		if err := os.WriteFile(file, []byte(what), 0); err != nil {
			h.t.Fatal(err)
		}
	}
	h.t.Cleanup(func() { set(was) })
	set("never")
}

// memory is what the server has for itself, in bytes: its anonymous pages and
// the journal, but not what is locked to move data through.
func (d *device) memory() (sum int64) {
	t := d.im.h.t
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", d.server()))
	if err != nil {
		t.Fatal(err)
	}
	var rss, anonymous, locked int64
	for line := range strings.Lines(string(b)) {
		var n int64
		name, rest, _ := strings.Cut(line, ":")
		switch _, _ = fmt.Sscan(rest, &n); name {
		case "Rss":
			rss = n << 10
		case "Anonymous":
			anonymous = n << 10
		case "Locked":
			locked = n << 10
		case "VmFlags": // the last line of a mapping (proc_pid_smaps(5))
			switch shared := strings.Contains(rest, " sh "); {
			case locked == 0:
				sum += anonymous
			case shared:
				sum += rss
			}
		}
	}
	if sum == 0 {
		t.Fatalf("no memory in the mappings of the server:\n%s", b)
	}
	return sum
}
