//go:build !kernel

package zbdtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/tests/zonemodel"
	"github.com/qzbd/qzbd/zns"
)

// inProcess is the engine over an image file, and just enough of a block layer
// above it: the rules for ranges, and the splitting of what is large or goes
// over into the next zone.
type inProcess struct {
	g     zns.Geometry
	dev   *zns.Device
	image *qcow2.Image
	file  *os.File
}

func newInProcess(t *testing.T, block uint32, o qcow2.CreateOptions) *inProcess {
	t.Helper()
	o.ClusterSize = 4 << 10
	path := filepath.Join(t.TempDir(), "image")
	if err := qcow2.Create(path, o); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	image, err := qcow2.Open(hasty{qcow2.NewOSFile(file)}, qcow2.Options{SyncInterval: qcow2.DefaultSyncInterval})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := image.Close(); err != nil {
			t.Error(err)
		}
	})
	z := image.Header().Zoned
	p := &inProcess{file: file, image: image, g: zns.Geometry{
		Size: o.Size, ZoneSize: z.ZoneSize, ZoneCapacity: z.ZoneCapacity, NrZones: z.NrZones,
		Conventional: z.Conventional, MaxOpen: z.MaxOpen, MaxActive: z.MaxActive,
		MaxAppend: uint64(block), BlockSize: block,
	}}
	if p.dev, err = zns.New(p.g, image); err != nil {
		t.Fatal(err)
	}
	return p
}

// hasty is a file that nobody needs after a power cut.
type hasty struct{ *qcow2.OSFile }

func (hasty) Sync() error { return nil }

func (f hasty) WriteDurable(p []byte, off int64) error {
	_, err := f.WriteAt(p, off)
	return err
}

func (p *inProcess) String() string { return "in-process device" }

func (p *inProcess) Kind() Kind { return QZBD }

func (p *inProcess) Shape() zonemodel.Shape {
	s := zonemodel.Shape{
		Zones: int(p.g.NrZones), Conventional: int(p.g.Conventional),
		ZoneSize: int64(p.g.ZoneSize), Capacity: int64(p.g.ZoneCapacity),
		MaxOpen: int(p.g.MaxOpen), MaxActive: int(p.g.MaxActive), Block: int64(p.g.BlockSize),
	}
	if s.MaxActive >= s.Sequential() {
		s.MaxActive = 0
	}
	if s.MaxOpen >= s.Sequential() {
		s.MaxOpen = 0
	}
	return s
}

// errno is how the engine's errors reach a user of the block device.
func errno(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, zns.ErrOpenLimit):
		return fmt.Errorf("%w: %w", syscall.ETOOMANYREFS, err)
	case errors.Is(err, zns.ErrActiveLimit):
		return fmt.Errorf("%w: %w", syscall.EOVERFLOW, err)
	}
	return fmt.Errorf("%w: %w", syscall.EIO, err)
}

func (p *inProcess) do(op zns.Op, at, n int64, data []byte, fua bool) error {
	r := zns.Request{Op: op, Start: uint64(at), Len: uint64(n), FUA: fua}
	return errno(zns.Do(p.dev, &r, p.file, data))
}

func (p *inProcess) Report(from int64, n int) (zones []Zone, err error) {
	for i := from / int64(p.g.ZoneSize); i < int64(p.g.NrZones) && n > 0; i, n = i+1, n-1 {
		z := p.dev.Zone(uint32(i))
		zones = append(zones, Zone{
			Start: int64(z.Start), Len: int64(z.Len), Capacity: int64(z.Capacity), WP: int64(z.WP),
			Conventional: z.Type == zns.TypeConventional, Cond: z.Cond,
		})
	}
	return zones, nil
}

func (p *inProcess) Manage(op Management, from, n int64) error {
	size, zone := int64(p.g.Size), int64(p.g.ZoneSize)
	switch {
	case n <= 0 || from < 0 || from >= size || from+n > size || from%zone != 0 || n%zone != 0 && from+n != size:
		return syscall.EINVAL
	case op == Reset && n == size:
		return p.do(zns.OpResetAll, 0, 0, nil, false)
	}
	var first error
	for ; n > 0; from, n = from+zone, n-zone {
		if err := p.do([]zns.Op{zns.OpOpen, zns.OpClose, zns.OpFinish, zns.OpReset}[op], from, 0, nil, false); first == nil {
			first = err
		}
	}
	return first
}

// pieces calls f with the parts that a block layer makes of a range.
func (p *inProcess) pieces(at, n int64, f func(at, n int64) error) error {
	const maxIO = 1 << 20
	var first error
	for n > 0 {
		k := min(n, maxIO, int64(p.g.ZoneSize)-at%int64(p.g.ZoneSize))
		if err := f(at, k); first == nil {
			first = err
		}
		at, n = at+k, n-k
	}
	return first
}

func (p *inProcess) Write(at int64, b []byte, sync bool) error {
	return p.pieces(at, int64(len(b)), func(off, n int64) error {
		return p.do(zns.OpWrite, off, n, b[off-at:off-at+n], sync)
	})
}

func (p *inProcess) Read(at int64, b []byte) error {
	return p.pieces(at, int64(len(b)), func(off, n int64) error {
		return p.do(zns.OpRead, off, n, b[off-at:off-at+n], false)
	})
}

func (p *inProcess) Zero(_ Zeroing, at, n int64) error {
	return p.pieces(at, n, func(off, n int64) error {
		return p.do(zns.OpWriteZeroes, off, n, nil, false)
	})
}

func (p *inProcess) Flush() error { return p.do(zns.OpFlush, 0, 0, nil, false) }

func runOnMade(t *testing.T) {
	for _, c := range []struct {
		name  string
		block uint32
		o     qcow2.CreateOptions
	}{
		{"no limits", 512, qcow2.CreateOptions{Size: 16 << 20, ZoneSize: 1 << 20}},
		{"everything at once", 512, qcow2.CreateOptions{
			Size: 24 << 20, ZoneSize: 1 << 20, ZoneCapacity: 768 << 10, Conventional: 3, MaxOpen: 4, MaxActive: 6,
		}},
		{"blocks of 4096", 4096, qcow2.CreateOptions{
			Size: 20 << 20, ZoneSize: 2 << 20, ZoneCapacity: 1<<20 + 12<<10, Conventional: 1, MaxOpen: 3, MaxActive: 3,
		}},
		{"only an open limit", 512, qcow2.CreateOptions{Size: 8 << 20, ZoneSize: 1 << 20, ZoneCapacity: 512 << 10, MaxOpen: 2}},
		{"limits of one", 512, qcow2.CreateOptions{Size: 8 << 20, ZoneSize: 1 << 20, MaxOpen: 1, MaxActive: 1}},
		{"an open limit of one", 4096, qcow2.CreateOptions{Size: 8 << 20, ZoneSize: 1 << 20, MaxOpen: 1, MaxActive: 4}},
		{"limits that bind nothing", 512, qcow2.CreateOptions{Size: 6 << 20, ZoneSize: 1 << 20, Conventional: 1, MaxOpen: 5, MaxActive: 5}},
	} {
		t.Run(c.name, func(t *testing.T) { Run(t, newInProcess(t, c.block, c.o)) })
	}
}
