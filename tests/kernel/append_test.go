//go:build kernel

package kernel

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/zns"
)

// No system call appends to a zone of a block device. But the kernel can offer
// a zoned device as an NVMe namespace to itself, and to that one it passes any
// command on: a Zone Append becomes a REQ_OP_ZONE_APPEND of our device.

// namespace is our device as an NVMe namespace.
type namespace struct {
	t  *testing.T
	fd int
}

const (
	nvmet = "/sys/kernel/config/nvmet"
	nqn   = "nqn.2024-01.org.example:qzbd"
)

// overNVMe offers a device without conventional zones as a namespace, until the
// end of the test.
func (d *device) overNVMe() *namespace {
	h := d.im.h
	h.t.Helper()
	h.run("modprobe", "nvmet")
	h.run("modprobe", "nvme-loop")
	put := func(name, value string) {
		h.t.Helper()
		if err := os.WriteFile(name, []byte(value), 0); err != nil {
			h.t.Fatal(err)
		}
	}
	subsystem, port := filepath.Join(nvmet, "subsystems", nqn), filepath.Join(nvmet, "ports", "1")
	ns, link := filepath.Join(subsystem, "namespaces", "1"), filepath.Join(port, "subsystems", nqn)
	for _, dir := range []string{subsystem, ns, port} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				h.t.Error(err)
			}
		})
	}
	put(filepath.Join(subsystem, "attr_allow_any_host"), "1")
	put(filepath.Join(ns, "device_path"), d.node)
	put(filepath.Join(ns, "enable"), "1")
	h.t.Cleanup(func() { put(filepath.Join(ns, "enable"), "0") })
	put(filepath.Join(port, "addr_trtype"), "loop")
	if err := os.Symlink(subsystem, link); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := os.Remove(link); err != nil {
			h.t.Error(err)
		}
	})
	put("/dev/nvme-fabrics", "transport=loop,nqn="+nqn)
	// Whatever else this machine has of NVMe is nobody's business.
	ours := func(pattern, nqnFile string) string {
		all, _ := filepath.Glob(pattern)
		for _, name := range all {
			if strings.Contains(filepath.Base(name), "c") {
				continue // a hidden path to a namespace, nvme0c0n1
			}
			if b, err := os.ReadFile(filepath.Join(name, nqnFile)); err == nil && strings.TrimSpace(string(b)) == nqn {
				return name
			}
		}
		return ""
	}
	var controller, node string
	h.wait("the namespace appears", func() bool {
		controller = ours("/sys/class/nvme/nvme*", "subsysnqn")
		node = filepath.Join("/dev", filepath.Base(ours("/sys/block/nvme*n1", "device/subsysnqn")))
		st, err := os.Stat(node)
		return controller != "" && err == nil && st.Mode().Type() == os.ModeDevice
	})
	h.t.Cleanup(func() {
		put(filepath.Join(controller, "delete_controller"), "1")
		h.wait("the namespace is gone", func() bool {
			_, err := os.Stat(node)
			return errors.Is(err, os.ErrNotExist)
		})
	})
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { unix.Close(fd) })
	return &namespace{h.t, fd}
}

// nvmeCommand is struct nvme_passthru_cmd64 of linux/nvme_ioctl.h.
type nvmeCommand struct {
	opcode, flags        uint8
	_                    uint16
	nsid, cdw2, cdw3     uint32
	metadata, addr       uint64
	metadataLen, dataLen uint32
	cdw10, cdw11, cdw12  uint32
	cdw13, cdw14, cdw15  uint32
	timeout, _           uint32
	result               uint64
}

var _ = [1]int{}[unsafe.Sizeof(nvmeCommand{})-80]

const nvmeIO64 = 0xc0504e48 // NVME_IOCTL_IO64_CMD

// append appends b to the zone at a place and returns where it went.
func (n *namespace) append(start int64, b []byte) (at int64, err error) {
	lba := uint64(start) / 512
	c := nvmeCommand{
		opcode: 0x7d, nsid: 1, addr: uint64(uintptr(unsafe.Pointer(&b[0]))), dataLen: uint32(len(b)),
		cdw10: uint32(lba), cdw11: uint32(lba >> 32), cdw12: uint32(len(b)/512 - 1),
	}
	status, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(n.fd), nvmeIO64, uintptr(unsafe.Pointer(&c)))
	runtime.KeepAlive(b) // the command holds its address as a number
	switch {
	case e != 0:
		return 0, e
	case status != 0:
		return 0, fmt.Errorf("NVMe status %#x", status)
	}
	return int64(c.result) * 512, nil
}

// The series' own test, appends included.
func TestAppendsThroughTheKernelGoWhereTheyShould(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", "size=768M,zone.size=64M,zone.max_open_zones=6,zone.max_active_zones=8,zone.max_append_bytes=64K")
	d := im.attach("--queues", queues())
	func() { // the namespace goes before the device does
		k := d.open()
		defer k.close()
		t.Run("append", func(t *testing.T) {
			d := &device{im: &image{&host{t, h.dir}, im.path}, node: d.node}
			n := d.overNVMe()
			k.t = t
			defer func() { k.t = h.t }()
			for zone := range int64(2) {
				start := zone << 26
				for i, size := range []int{0x1000, 0x2000, 0x1000, 0x2000} {
					at, err := n.append(start, pattern(uint64(i), start, size))
					if want := start + []int64{0, 8, 0x18, 0x20}[i]*512; err != nil || at != want {
						t.Fatalf("append %d to zone %d: placed at %#x, want %#x (%v)", i, zone, at, want, err)
					}
					k.isIn(int(zone), impOpen, at-start+int64(size))
					k.same(at, pattern(uint64(i), start, size))
				}
			}
			k.isIn(1, impOpen, 0x30*512)
			if at, err := n.append(2<<26, pattern(1, 0, 128<<10)); err == nil {
				t.Errorf("an append above the limit was placed at %#x", at)
			}
			k.isIn(2, empty, 0)
			for _, zone := range []int64{3, 8} {
				if _, err := n.append(zone<<26, pattern(1, 0, 0x1000)); err != nil {
					t.Error(err)
				}
				k.isIn(int(zone), impOpen, 0x1000)
			}
			k.must(blkFinishZone, zone{start: 9 << 26, length: 1 << 26})
			if at, err := n.append(9<<26, pattern(1, 0, 0x1000)); err == nil {
				t.Errorf("an append to a full zone was placed at %#x", at)
			}
		})
	}()
	d.detach()
	d = im.attach()
	k := d.open()
	k.are(closed, closed, empty, closed, empty, empty, empty, empty, closed, full, empty, empty)
	k.isIn(0, closed, 0x30*512)
	k.isIn(1, closed, 0x30*512)
	k.same(1<<26+0x18*512, pattern(2, 1<<26, 0x1000))
	h.run("blkzone", "reset", d.node)
	k.are(empty, empty, empty, empty, empty, empty, empty, empty, empty, empty, empty, empty)
}

// placed is an append that was answered.
type placed struct {
	at   int64
	seed uint64
	n    int
}

// Many appends in flight in the same zone, of which some fail and take those
// above along: what was answered is where the answer says, there are no holes,
// and whatever a report shows has been answered or will be.
func TestAppendsInFlightThatFailLeaveNoHoles(t *testing.T) {
	h := begin(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	im := h.create("a.qcow2", small)
	s := im.serveHere(2)
	var dice atomic.Uint64
	var failed, aborted atomic.Int32
	dice.Store(seed)
	s.failData(func(r *zns.Request) error {
		x := dice.Add(0x9e3779b97f4a7c15)
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		if (x^x>>27)%10 == 0 {
			failed.Add(1)
			return unixEIO
		}
		return nil
	})
	var mu sync.Mutex
	var all []placed
	t.Run("append", func(t *testing.T) {
		d := &device{im: &image{&host{t, h.dir}, im.path}, node: s.node}
		n := d.overNVMe()
		var writers sync.WaitGroup
		for w := range 8 {
			writers.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(w)))
				for i := range 60 {
					p := placed{seed: uint64(w)<<40 | uint64(i)<<20, n: 512 << rnd.IntN(6)}
					zone := int64(rnd.IntN(2))
					at, err := n.append(zone*zlen, pattern(p.seed, 0, p.n))
					if err != nil {
						aborted.Add(1)
						continue
					}
					p.at = at
					mu.Lock()
					all = append(all, p)
					mu.Unlock()
				}
			})
		}
		writers.Wait()
	})
	s.failData(nil)
	t.Logf("%d appends answered, %d writes of data failed, %d appends refused", len(all), failed.Load(), aborted.Load())
	if failed.Load() == 0 || aborted.Load() < failed.Load() {
		t.Errorf("%d failures, %d refusals", failed.Load(), aborted.Load())
	}
	slices.SortFunc(all, func(a, b placed) int { return int(a.at - b.at) })
	verify := func(k *disk) {
		t.Helper()
		var want [2][]byte // of each zone
		for _, p := range all {
			z := p.at / zlen
			if end := z*zlen + int64(len(want[z])); p.at != end {
				t.Fatalf("zone %d: an append at %#x, the one before ends at %#x", z, p.at, end)
			}
			want[z] = append(want[z], pattern(p.seed, 0, p.n)...)
		}
		for i, b := range want {
			if z := k.zone(i); z.written() != int64(len(b)) {
				t.Errorf("zone %d is %v with %#x written, appends are %#x", i, z.cond, z.written(), len(b))
			}
			k.same(int64(i)*zlen, append(b, make([]byte, 1<<20)...))
		}
	}
	k := s.open()
	verify(k)
	k.close()
	s.stop()
	verify(im.attach().open())
}
