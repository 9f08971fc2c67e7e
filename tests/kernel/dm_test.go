//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mapped is a device of the device mapper on top of others.
type mapped struct {
	h          *host
	name, node string
}

// dm makes a mapped device of a table, until the end of the test at the
// latest.
func (h *host) dm(name, table string) *mapped {
	h.t.Helper()
	h.tool("dmsetup", "create", name, "--table", table)
	return h.mapped(name)
}

// mapped is the device that has just been made, whoever made it.
func (h *host) mapped(name string) *mapped {
	h.t.Helper()
	m := &mapped{h: h, name: name}
	h.t.Cleanup(m.remove)
	// The kernel's own name of it is there in any case, the other one only
	// with udev.
	names, _ := filepath.Glob("/sys/block/dm-*/dm/name")
	for _, n := range names {
		if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == name {
			m.node = "/dev/" + strings.Split(n, "/")[3]
			return m
		}
	}
	h.t.Fatalf("no mapped device has the name %s: %s", name, names)
	return nil
}

// remove may be called any number of times.
func (m *mapped) remove() {
	m.h.t.Helper()
	if m.name == "" {
		return
	}
	// Who listens to its events may have it open for a moment.
	if r := m.h.tryTool("dmsetup", "remove", "--retry", m.name); r.code != 0 {
		m.h.t.Error(r)
	}
	m.name = ""
}

func (m *mapped) open() *disk { return m.h.openDisk(m.node) }

// sysfs reads an attribute of the mapped device.
func (m *mapped) sysfs(attribute string) string {
	m.h.t.Helper()
	b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(m.node), attribute))
	if err != nil {
		m.h.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// stacked goes through the life of zones on a mapped device whose zone i is
// zone under(i) of ours, and says how they look from below.
func stacked(t *testing.T, d *device, m *mapped, under func(int) int) {
	h := d.im.h
	if z := m.sysfs("queue/zoned"); z != "host-managed" {
		t.Errorf("zoned model %q", z)
	}
	k, below := m.open(), d.open()
	const n = 256 << 10
	at := func(zone int) int64 { return int64(zone) * zlen }
	k.write(7, at(1), n)
	k.write(7, at(1)+n, n)
	k.write(7, at(3), zcap)
	k.refuse(unix.EIO, at(1), 4096) // behind the write pointer
	k.isIn(1, impOpen, 2*n)         // which a report mends
	below.isIn(under(1), impOpen, 2*n)
	k.isIn(3, full, zcap)
	k.must(blkFinishZone, k.zone(1))
	k.isIn(1, full, zcap)
	k.write(7, at(2), n)
	k.must(blkResetZone, k.zone(2))
	k.isIn(2, empty, 0)
	below.isIn(under(2), empty, 0)
	below.zeros(int64(under(2))*zlen, n) // above they are zeros decrypted
	k.write(8, at(2), n)
	k.must(blkCloseZone, k.zone(2))
	below.isIn(under(2), closed, n)
	k.holds(7, at(1), 2*n)
	k.holds(8, at(2), n)
	k.holds(7, at(3), zcap)
	k.write(9, at(5), n)
	below.isIn(under(5), impOpen, n)
	k.sync()
	below.close()
	k.close()
	says(t, h.refused(qzbd, "detach", d.node), d.node, m.name)
}

// Two ranges of zones in another order: what the device mapper reports and
// where it writes differ from what we see.
func TestDmLinear(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=128M,zone.size=8M,zone.capacity=6M,zone.max_open_zones=5,zone.max_active_zones=6")
	d := im.attach("--queues", queues())
	const sectors, half = zlen / 512, 4
	m := h.dm("qzbd-linear", fmt.Sprintf("0 %d linear %s %d\n%d %d linear %s %d\n",
		half*sectors, d.node, 8*sectors, half*sectors, half*sectors, d.node, 2*sectors))
	stacked(t, d, m, func(i int) int {
		if i < half {
			return 8 + i
		}
		return 2 + i - half
	})
	m.remove()
	d.detach()

	d = im.attach()
	k := d.open()
	k.are(empty, empty, empty, closed, empty, empty, empty, empty, empty, full, closed, full, empty)
	k.same(11*zlen, pattern(7, 3*zlen, zcap)) // written as zone 3
	k.same(3*zlen, pattern(9, 5*zlen, 256<<10))
}

// dm-crypt knows no zone append and makes one of writes, by its own account
// of our write pointers.
func TestDmCrypt(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=512M,zone.size=8M,zone.capacity=6M,zone.max_open_zones=12,zone.max_active_zones=16")
	key := filepath.Join(h.dir, "key")
	if err := os.WriteFile(key, pattern(1, 0, 64), 0o600); err != nil {
		t.Fatal(err)
	}
	d := im.attach("--queues", queues())
	crypt := func() *mapped {
		t.Helper()
		h.tool("cryptsetup", "open", "--type", "plain", "--cipher", "aes-xts-plain64", "--key-size", "512", "--key-file", key, d.node, "qzbd-crypt")
		return h.mapped("qzbd-crypt")
	}
	m := crypt()
	stacked(t, d, m, func(i int) int { return i })
	m.remove()
	d.detach()

	d = im.attach()
	k := d.open()
	k.are(empty, full, closed, full, empty, closed)
	k.differs(8, 2*zlen, 64<<10)
	k.close()
	m = crypt()
	k = m.open()
	k.holds(8, 2*zlen, 256<<10)
	k.holds(7, 3*zlen, zcap)
	k.close()

	h.tool("mkfs.btrfs", "-q", "-f", "-O", "zoned", "-m", "single", "-d", "single", m.node)
	tr := newTree(t)
	dir, unmount := h.mount("btrfs", m.node)
	tr.add(dir, "a", thoroughly(24<<20, 12<<20))
	unmount()
	h.tool("btrfs", "check", m.node)
	m.remove()
	d.detach()

	d = im.attach()
	m = crypt()
	dir, unmount = h.mount("btrfs", m.node)
	tr.check(dir)
	unmount()
	m.remove()
	d.detach()
}
