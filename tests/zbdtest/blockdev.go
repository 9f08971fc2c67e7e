package zbdtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/tests/zonemodel"
	"github.com/qzbd/qzbd/zns"
)

// The ioctls of linux/blkzoned.h.
const (
	blkReportZone = 0xc0101282
	blkResetZone  = 0x40101283
	blkOpenZone   = 0x40101286
	blkCloseZone  = 0x40101287
	blkFinishZone = 0x40101288
)

const sector = 512

// BlockDevice is a zoned block device of this machine, past the page cache.
type BlockDevice struct {
	node  string
	dir   string // in sysfs
	fd    int
	shape zonemodel.Shape
	kind  Kind

	mu      sync.Mutex
	crossed map[int64]bool // zones where a write across the capacity was refused
}

// OpenBlockDevice opens a device for the tests, which destroy what is on it. A
// device that is no host-managed zoned one, or that somebody holds, is
// refused.
func OpenBlockDevice(node string) (*BlockDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", node, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil, fmt.Errorf("%s is no block device: name the node of a zoned one", node)
	}
	d := &BlockDevice{
		node: node, dir: fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)),
		crossed: make(map[int64]bool),
	}
	zoned, err := os.ReadFile(d.dir + "/queue/zoned")
	switch model := strings.TrimSpace(string(zoned)); {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("%s has no queue of its own in sysfs: name the whole device, not a part of it", node)
	case err != nil:
		return nil, err
	case model != "host-managed":
		return nil, fmt.Errorf("%s is not host-managed but %q: only a zoned device can be tested", node, model)
	}
	// O_EXCL: neither mounted nor held by another driver.
	d.fd, err = unix.Open(node, unix.O_RDWR|unix.O_DIRECT|unix.O_EXCL|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("%s is in use: unmount it, or stop what is built on it", node)
	case err != nil:
		return nil, fmt.Errorf("open %s: %w", node, err)
	}
	if err := d.probe(); err != nil {
		d.Close()
		return nil, fmt.Errorf("%s: %w", node, err)
	}
	return d, nil
}

// Close lets go of the device.
func (d *BlockDevice) Close() { unix.Close(d.fd) }

// probe finds shape and kind.
func (d *BlockDevice) probe() error {
	s := &d.shape
	for attribute, to := range map[string]*int64{"logical_block_size": &s.Block, "chunk_sectors": &s.ZoneSize} {
		n, err := d.attribute(attribute)
		if err != nil {
			return err
		}
		*to = n
	}
	if n, err := d.attribute("zone_write_granularity"); err == nil && n > s.Block {
		s.Block = n // drives with physical blocks of 4096
	}
	s.ZoneSize *= sector
	if bits.OnesCount64(uint64(s.ZoneSize)) != 1 {
		return fmt.Errorf("the zone size is %d, which is no power of two", s.ZoneSize)
	}
	for attribute, to := range map[string]*int{"nr_zones": &s.Zones, "max_open_zones": &s.MaxOpen, "max_active_zones": &s.MaxActive} {
		n, err := d.attribute(attribute)
		if err != nil {
			return err
		}
		*to = int(n)
	}
	zones, err := d.Report(0, s.Zones)
	if err != nil {
		return err
	}
	for _, z := range zones {
		if z.Conventional {
			s.Conventional++
		} else {
			s.Capacity = z.Capacity
		}
	}
	d.kind = kindOf(d.dir)
	if s.Sequential() <= 0 {
		return errors.New("it has no sequential zone")
	}
	return nil
}

// hint is the limit of open zones that the kernel makes up, as a hint to file
// systems, for a device that has none (BLK_ZONE_WPLUG_DEFAULT_POOL_SIZE).
const hint = 128

// Prepare finds out whether a limit that may be the kernel's own is one. It
// resets all zones.
func (d *BlockDevice) Prepare() error {
	s := &d.shape
	if s.MaxOpen != hint || s.MaxActive != 0 {
		return nil
	}
	if err := d.Manage(Reset, 0, s.Size()); err != nil {
		return err
	}
	if d.Manage(Open, s.Start(s.Conventional), (hint+1)*s.ZoneSize) == nil {
		s.MaxOpen = 0
	}
	return d.Manage(Reset, 0, s.Size())
}

// attribute reads a number from the device's queue directory in sysfs.
func (d *BlockDevice) attribute(name string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(d.dir, "queue", name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// Shape implements [Drive].
func (d *BlockDevice) Shape() zonemodel.Shape { return d.shape }

// Kind implements [Drive].
func (d *BlockDevice) Kind() Kind { return d.kind }

func (d *BlockDevice) String() string { return d.node }

func (d *BlockDevice) ioctl(op uint, arg unsafe.Pointer) error {
	for {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), uintptr(op), uintptr(arg))
		if e == 0 {
			return nil
		}
		if e != unix.EINTR {
			return e
		}
	}
}

// Report implements [Drive] by BLKREPORTZONE.
func (d *BlockDevice) Report(from int64, n int) ([]Zone, error) {
	const header, entry = 16, 64
	b := make([]byte, header+n*entry)
	le := binary.LittleEndian
	le.PutUint64(b, uint64(from)/sector)
	le.PutUint32(b[8:], uint32(n))
	if err := d.ioctl(blkReportZone, unsafe.Pointer(&b[0])); err != nil {
		return nil, fmt.Errorf("BLKREPORTZONE of %d zones at %#x: %w", n, from, err)
	}
	zones := make([]Zone, le.Uint32(b[8:]))
	for i := range zones {
		e := b[header+i*entry:]
		bytes := func(off int) int64 { return int64(le.Uint64(e[off:]) * sector) }
		zones[i] = Zone{
			Start: bytes(0), Len: bytes(8), WP: bytes(16), Capacity: bytes(32),
			Conventional: zns.Type(e[24]) == zns.TypeConventional, Cond: zns.Cond(e[25]),
		}
		if le.Uint32(b[12:])&1 == 0 { // BLK_ZONE_REP_CAPACITY
			zones[i].Capacity = zones[i].Len
		}
	}
	return zones, nil
}

// Manage implements [Drive] by BLKOPENZONE and its like.
func (d *BlockDevice) Manage(op Management, from, n int64) error {
	return d.manageSectors(op, uint64(from)/sector, uint64(n)/sector)
}

// manageSectors takes what the ioctl takes, a struct blk_zone_range.
func (d *BlockDevice) manageSectors(op Management, from, n uint64) error {
	r := [2]uint64{from, n}
	if err := d.ioctl([]uint{blkOpenZone, blkCloseZone, blkFinishZone, blkResetZone}[op], unsafe.Pointer(&r)); err != nil {
		return fmt.Errorf("%v of %d sectors at sector %d: %w", op, n, from, err)
	}
	return nil
}

// Write implements [Drive] by pwritev2, with RWF_DSYNC if it shall be durable.
func (d *BlockDevice) Write(at int64, p []byte, sync bool) error {
	flags := 0
	if sync {
		flags = unix.RWF_DSYNC
	}
	err := d.patiently(at, int64(len(p)), func() error {
		for {
			n, err := unix.Pwritev2(d.fd, [][]byte{p}, at, flags)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case err == nil && n != len(p):
				err = io.ErrShortWrite
			}
			return err
		}
	})
	if err != nil {
		return fmt.Errorf("write of %d bytes at %#x: %w", len(p), at, err)
	}
	return nil
}

// patiently writes a range, and does so again where Linux refuses that by a fault
// of its own: when a device has refused a write across the capacity, the kernel
// takes the zone for full and sets what it knows of it (its zone write plug,
// block/blk-zoned.c) aside, but goes on to use that, and refuses every write to the
// zone, for as long as anybody holds a reference to it. That is over in a moment.
// Seen on null_blk and on ublk, 6.12 and 7.2. Only in such a zone a write is tried
// again, only at its write pointer and where it has room, and only if the device
// has not seen it: an error of the device's own is never tried again.
func (d *BlockDevice) patiently(at, n int64, write func() error) error {
	zone := at &^ (d.shape.ZoneSize - 1)
	capacity := zone + d.shape.Capacity
	d.mu.Lock()
	crossed := d.crossed[zone]
	d.mu.Unlock()
	tried := write
	if crossed && at+n <= capacity {
		tried = func() error { return d.whenTheKernelLetsIt(zone, at, write) }
	}
	err := tried()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		delete(d.crossed, zone)
	} else if at < capacity && at+n > capacity {
		d.crossed[zone] = true
	}
	return err
}

// whenTheKernelLetsIt tries a write again and again as long as it is refused
// without having got to the device.
func (d *BlockDevice) whenTheKernelLetsIt(zone, at int64, write func() error) error {
	const pause, most = 10 * time.Millisecond, 1000
	for try := 0; ; try++ {
		before, berr := d.writes()
		err := write()
		if err == nil || !errors.Is(err, unix.EIO) || berr != nil || try == most {
			return errors.Join(err, berr)
		}
		after, aerr := d.writes()
		zones, rerr := d.Report(zone, 1)
		if aerr != nil || rerr != nil || after != before || len(zones) != 1 || zones[0].WP != at {
			return errors.Join(err, aerr, rerr)
		}
		time.Sleep(pause)
	}
}

// writes counts the writes that the device has answered, whatever it said. A write
// counts a moment after its error is seen, and is in flight up to then.
func (d *BlockDevice) writes() (uint64, error) {
	const pause, most = 10 * time.Millisecond, 1000
	for range most {
		b, err := os.ReadFile(d.dir + "/stat") // Documentation/block/stat.rst
		if err != nil {
			return 0, err
		}
		f := strings.Fields(string(b))
		if len(f) < 9 {
			return 0, fmt.Errorf("%s/stat has %d numbers, want at least 9", d.dir, len(f))
		}
		if f[8] == "0" { // in flight
			return strconv.ParseUint(f[4], 10, 64)
		}
		time.Sleep(pause)
	}
	return 0, fmt.Errorf("%s has had something in flight for %v", d.node, most*pause)
}

// Read implements [Drive] by pread.
func (d *BlockDevice) Read(at int64, p []byte) error {
	for {
		n, err := unix.Pread(d.fd, p, at)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n != len(p):
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("read of %d bytes at %#x: %w", len(p), at, err)
		}
		return nil
	}
}

// Zero implements [Drive].
func (d *BlockDevice) Zero(how Zeroing, at, n int64) error {
	err := d.patiently(at, n, func() error {
		switch how {
		case ZeroRange:
			return unix.Fallocate(d.fd, unix.FALLOC_FL_ZERO_RANGE, at, n)
		case PunchHole:
			return unix.Fallocate(d.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n)
		}
		return d.ioctl(unix.BLKZEROOUT, unsafe.Pointer(&[2]uint64{uint64(at), uint64(n)}))
	})
	if err != nil {
		return fmt.Errorf("%v of %d bytes at %#x: %w", how, n, at, err)
	}
	return nil
}

// Flush implements [Drive].
func (d *BlockDevice) Flush() error {
	if err := unix.Fsync(d.fd); err != nil {
		return fmt.Errorf("fsync: %w", err)
	}
	return nil
}
