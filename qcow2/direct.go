package qcow2

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoDirect is wrapped by UseDirect's error when the file cannot be read and
// written past the page cache.
var ErrNoDirect = errors.New("the file system has no direct I/O for this file")

// Direct is what direct I/O on an image file demands, in bytes.
type Direct struct {
	// Offset divides offsets and lengths in the file.
	Offset int
	// Memory divides addresses.
	Memory int
	// Block is the unit of the page cache and of the file system. Data is
	// never in one with metadata only if clusters are multiples of it.
	Block int
}

// ioctlBlockSize is FIGETBSZ (linux/fs.h).
const ioctlBlockSize = 2

// pageSize bounds from above what memory has to be aligned to.
const pageSize = 4096

// UseDirect makes data clusters go past the page cache; metadata stays in it.
// That needs a second open file description of the same file, since O_DIRECT
// belongs to the description; the locks stay with the first one, but for one
// that outlives a killed process as long as the kernel still writes what it had
// asked for. From then on
// whatever the page cache holds of data clusters is stale or on its way there,
// so nothing reads, copies or zeroes them through it.
func (f *OSFile) UseDirect() (Direct, error) {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return Direct{}, fmt.Errorf("%s: ask for its flags: %w", f.Name(), err)
	}
	readOnly := flags&unix.O_ACCMODE == unix.O_RDONLY
	if !readOnly {
		// What an earlier server has written through the page cache.
		if err := f.Sync(); err != nil {
			return Direct{}, err
		}
	}
	// Not by its name, which may be another file's by now.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags&unix.O_ACCMODE|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EINVAL) {
		return Direct{}, fmt.Errorf("%s: %w", f.Name(), ErrNoDirect)
	}
	if err != nil {
		return Direct{}, fmt.Errorf("open %s for direct I/O: %w", f.Name(), err)
	}
	d, err := directNeeds(fd)
	if err != nil {
		return Direct{}, errors.Join(fmt.Errorf("%s: %w", f.Name(), err), unix.Close(fd))
	}
	// No readahead: it would pull data clusters into the page cache while they
	// are written past it. These are hints: the kernel keeps both views of a
	// file together where it can.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM)
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	f.direct, f.needs = os.NewFile(uintptr(fd), f.Name()), d
	if readOnly {
		return d, nil
	}
	if err := setLock(f.direct, unix.F_RDLCK, lockHeld+permWrite, 1); err != nil && !errors.Is(err, ErrNoLocks) {
		return Direct{}, err
	}
	return d, nil
}

// directNeeds asks the kernel what direct I/O on fd demands, and tries it out
// where it does not say.
func directNeeds(fd int) (Direct, error) {
	d := Direct{Block: os.Getpagesize()}
	if n, err := unix.IoctlGetInt(fd, ioctlBlockSize); err == nil {
		d.Block = max(d.Block, n)
	}
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
	if err == nil && st.Mask&unix.STATX_DIOALIGN != 0 {
		if st.Dio_offset_align == 0 {
			return Direct{}, ErrNoDirect
		}
		d.Offset, d.Memory = int(st.Dio_offset_align), int(st.Dio_mem_align)
		return d, nil
	}
	buf := alignedBytes(2 * pageSize)
	for _, n := range []int{sectorSize, pageSize} {
		// The offset as well as the memory is no multiple of anything larger.
		_, err = unix.Pread(fd, buf[n:2*n], int64(n))
		if err == nil {
			d.Offset, d.Memory = n, n
			return d, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return Direct{}, fmt.Errorf("%w (%w)", ErrNoDirect, err)
}

// DataFD is the descriptor that the extents of requests refer to. It belongs
// to f.
func (f *OSFile) DataFD() int {
	if f.direct != nil {
		return int(f.direct.Fd())
	}
	return int(f.Fd())
}

// Close closes the file and its second description.
func (f *OSFile) Close() error {
	if f.direct == nil {
		return f.File.Close()
	}
	// Whoever reads the file next shall not find what was there before.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	return errors.Join(f.direct.Close(), f.File.Close())
}

// dataIO reads and writes data clusters.
type dataIO interface {
	io.ReaderAt
	io.WriterAt
}

// dataWay returns the way of data clusters to the disk, for memory that
// alignedBytes has made and whole blocks.
func dataWay(f File) dataIO {
	if o, ok := f.(*OSFile); ok && o.direct != nil {
		return o.direct
	}
	return f
}

// punchDirect punches whole blocks and writes zeros past the page cache to the
// rest: of a block that is punched in part the kernel would zero that part in
// the page cache.
func (f *OSFile) punchDirect(off, n int64) error {
	block := int64(f.needs.Block)
	end := off + n
	first, last := (off+block-1)/block*block, end/block*block
	if first >= last {
		return f.zeroDirect(off, end)
	}
	if err := f.zeroDirect(off, first); err != nil {
		return err
	}
	if ok, err := f.deallocate(first, last-first); err != nil {
		return err
	} else if !ok {
		return f.zeroDirect(first, end)
	}
	return f.zeroDirect(last, end)
}

// directZeros is what zeroDirect writes. Nobody changes it.
var directZeros = sync.OnceValue(func() []byte { return alignedBytes(1 << 18) })

// zeroDirect writes zeros to [off, end), as far as it is in the file.
func (f *OSFile) zeroDirect(off, end int64) error {
	if off >= end {
		return nil
	}
	size, err := f.Size()
	if err != nil {
		return err
	}
	zeros := directZeros()
	for end = min(end, size); off < end; {
		n, err := f.direct.WriteAt(zeros[:min(end-off, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// alignedBytes returns n zero bytes that direct I/O accepts.
func alignedBytes(n int) []byte {
	b := make([]byte, n+pageSize)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (pageSize - 1)
	return b[skip : skip+n : skip+n]
}
