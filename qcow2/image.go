package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrFailed says that a sync, a durable write or a write of metadata has
	// failed: the image takes no more changes until it has been opened again
	// (I8). The error that wraps it wraps the cause, too, and is EIO whatever
	// the cause.
	ErrFailed error = failedError{}

	// ErrReadOnly refuses changes of an image that was opened so.
	ErrReadOnly = errors.New("the image is open read-only")

	errClosed = errors.New("the image is closed")
)

type failedError struct{}

func (failedError) Error() string { return "the image has failed and takes no more writes" }

func (failedError) Is(target error) bool { return target == unix.EIO }

// Options say how to open an image.
type Options struct {
	ReadOnly bool
	// CacheBytes bounds the L2 cache; 0 means DefaultCacheBytes.
	CacheBytes int64
	// SyncInterval is the time between background rounds, which take place
	// only when there is something to do; 0 means none at all.
	SyncInterval time.Duration
	// Progress is called now and then while the mappings are read, which every
	// writable open does, with the number of L2 tables.
	Progress func(done, total int64)
	// OnFail is called once, before anybody is told, when the image fails (I8).
	// It must not call the image.
	OnFail func(error)
	// Pointers are the write pointers, absolute byte offsets, that a process
	// had reached which was killed with the image open, if they are known: the
	// page cache has everything below them (I9). They count instead of those in
	// the file, and the next round makes them durable. nil: those in the file.
	Pointers func(zone uint32) (wp uint64, known bool)
	// Failed, unless empty, is why the image had failed, as Image.Failed said it,
	// when a process that had it open ended (I8): it comes up failed. Nothing is
	// mended or written; what the pointers in the file cover can be read, and
	// what lies between them and Pointers cannot. OnFail is not called.
	Failed string
	// Warn is told, while the image is opened, what may be lost of what an
	// earlier user had written to it.
	Warn func(string)

	repair bool // also an image that is clean: its refcounts are not believed
}

// Image is an open image. All methods but Close and Abandon may be called
// concurrently. Map, Stage and Pointer are pure memory; the others block.
//
// Locks: the syncer's mutex; then the token, which is a channel because it is
// held across I/O; then alloc.mu or cache.mu, never both; then pointers.mu.
// The syncer's goroutine never takes the token, so its holder may wait for it.
type Image struct {
	f        File
	readOnly bool
	onFail   func(error)

	clusterBits uint32
	cs          int64 // cluster size
	tableBits   uint32
	tableLen    int64 // entries of an L2 table
	sliceBits   uint32
	sliceLen    int64  // entries of a slice
	sliceShift  uint32 // device offset to slice
	size        uint64 // of the device
	zoneSize    uint64
	nrZones     uint32
	maxActive   uint32

	hdr      atomic.Pointer[Header]  // replaced by the holder of the token
	places   atomic.Pointer[[]place] // of that header
	failure  atomic.Pointer[error]
	attached atomic.Bool // the dirty bit is durable, and metadata has its space
	writable atomic.Bool // attached and not failed: Map may map for writing

	l1       []uint64 // atomic access; the holder of the token stores
	cache    cache
	alloc    allocator
	pointers pointers
	syncer   syncer

	token chan struct{} // guards what follows; see lock
	ref   refcounts
	// Zones that may have mappings, and those that have since been mapped
	// ahead of their data.
	mapped, ahead bitmap
	reserved      clusterSet // metadata that has its space
	scratch       []byte
	vals          []uint64
}

// Open opens the image in f, which stays the caller's if that fails. To be
// written to, an image must have every reference right: all mapping tables are
// read, and an image that contradicts itself is refused and left as it is. One
// that was not closed cleanly is then repaired: mappings above the write
// pointers are dropped and refcounts recomputed (I5). Read-only, nothing is
// written, and neither the mappings nor the refcounts are looked at.
func Open(f File, o Options) (*Image, error) {
	if o.Failed != "" {
		dropCache(f) // believe nothing that was not read from the disk
	} else if err := settle(f, &o); err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	h, meta, err := readHeader(f)
	if err != nil {
		return nil, err
	}
	if err := h.Built(); err != nil {
		return nil, err
	}
	if h.Dirty() && !o.repair && o.Pointers == nil && o.Failed == "" {
		o.warn("the image was not closed in order: what was written after its last completed flush may be lost")
	}
	if !o.ReadOnly && o.Failed == "" {
		if err := h.checkForm(); err != nil {
			return nil, err
		}
	}
	im := &Image{
		f: f, readOnly: o.ReadOnly, onFail: o.OnFail,
		clusterBits: h.ClusterBits, cs: h.ClusterSize(),
		tableBits: h.ClusterBits - 3, tableLen: h.l2Entries(),
		size: h.Size, zoneSize: h.Zoned.ZoneSize,
		nrZones: h.Zoned.NrZones, maxActive: h.Zoned.MaxActive,
		token: make(chan struct{}, 1),
	}
	im.sliceLen = min(im.tableLen, maxSliceBytes/8)
	im.sliceBits = uint32(bits.TrailingZeros64(uint64(im.sliceLen)))
	im.sliceShift = im.clusterBits + im.sliceBits
	im.setHeader(h)
	if o.Failed != "" {
		err := fmt.Errorf("%w: %s", ErrFailed, strings.TrimPrefix(o.Failed, ErrFailed.Error()+": "))
		im.failure.Store(&err)
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	im.cache.init(im, o.CacheBytes)
	if err := im.load(h, meta, o); err != nil {
		return nil, err
	}
	if !o.ReadOnly {
		im.syncer.start(im, o.SyncInterval)
		if im.syncer.waiting() { // for pointers that a predecessor has reached
			im.syncer.changed()
		}
	}
	return im, nil
}

// Forget makes sure that an image which nobody serves, and which was not closed,
// is read from the disk: see settle.
func Forget(f File) { _ = settle(f, &Options{ReadOnly: true}) }

// ErrLost is an image that is to be opened where a process that was killed had got
// to (Options.Pointers), but what that has written is not all there: the host
// could not write it to its disk, and says so only this once. So whoever hears it
// has to see to it that nobody opens the image in that way once more.
var ErrLost = errors.New("the host could not write to its disk what the last server has written: what was not flushed is lost")

// settle makes the file's page cache and its disk the same. What is only in the
// cache is not durable: a predecessor may have been killed. Worse, what the
// kernel could not write it calls clean and keeps, and tells of that only once
// and only whom it likes. So after a failure, or where nobody was left to hear
// of one, nothing is believed that was not read from the disk.
func settle(f File, o *Options) error {
	var err error
	if !o.ReadOnly {
		err = f.Sync()
	}
	if err == nil && !looksDirty(f) {
		return nil
	}
	dropCache(f)
	switch {
	case err != nil && o.Pointers != nil:
		return fmt.Errorf("%w: %w", ErrLost, err)
	case err != nil:
		o.warn("the host could not write the image to its disk earlier (%v): what was written to it then may be lost", err)
		err = f.Sync()
	}
	return err
}

// dropCache drops what a page cache has of f, if there is one.
func dropCache(f File) {
	if c, ok := f.(interface{ dropCache() }); ok {
		c.dropCache()
	}
}

func (o *Options) warn(format string, args ...any) {
	if o.Warn != nil {
		o.Warn(fmt.Sprintf(format, args...))
	}
}

// looksDirty reports whether the dirty bit is set in a file that need not be an
// image.
func looksDirty(f File) bool {
	var b [8]byte
	_, err := f.ReadAt(b[:], offIncompatible)
	return err == nil && binary.BigEndian.Uint64(b[:])&incompatDirty != 0
}

// load reads what is kept in memory, and repairs the image if it must.
func (im *Image) load(h *Header, meta []byte, o Options) error {
	wps, err := decodePointers(h, meta, h.storedPointer)
	if err != nil {
		return err
	}
	im.pointers.init(h, wps)
	if err := im.takePointers(h, o.Pointers); err != nil {
		return err
	}
	fileSize, err := im.f.Size()
	if err != nil {
		return err
	}
	im.mapped, im.ahead = newBitmap(int64(im.nrZones)), newBitmap(int64(im.nrZones))
	im.alloc.homes = make(map[uint32]run)
	im.alloc.fileEnd.Store(h.roundUp(fileSize) >> im.clusterBits)
	im.alloc.limit = max(im.fullLength(h), im.alloc.length())
	im.ref.order = h.RefcountOrder
	im.ref.blockBits = uint32(bits.TrailingZeros64(uint64(h.refBlockEntries())))
	if im.readOnly || im.Failed() != nil {
		return im.loadL1()
	}
	switch {
	case h.Dirty():
		r := &rebuilder{im: im}
		if err := r.survey(o.Progress); err != nil {
			return err
		}
		if err := r.rebuild(); err != nil {
			return err
		}
		// A full disk refuses what is going to be changed, but no open.
		if err := im.attach(); im.Failed() != nil {
			return err
		}
	case o.repair:
		if err := im.rebuildClean(o.Progress); err != nil {
			return err
		}
	default:
		r := &rebuilder{im: im, clean: true}
		if err := r.survey(o.Progress); err != nil {
			return err
		}
		if err := im.loadRefcounts(&r.used); err != nil {
			return err
		}
	}
	return im.loadL1()
}

// takePointers stages the pointers that a process had reached which was killed.
func (im *Image) takePointers(h *Header, reached func(zone uint32) (wp uint64, known bool)) error {
	if reached == nil {
		return nil
	}
	for zone := h.Zoned.Conventional; zone < im.nrZones; zone++ {
		start, end := im.zoneStart(zone), im.zoneStart(zone)+h.ZoneCapacity(zone)
		wp, known := reached(zone)
		switch {
		case !known:
		case wp < start || wp > end || wp%sectorSize != 0:
			return fmt.Errorf("zone %d cannot have been written up to %d: it lies in [%d, %d]", zone, wp, start, end)
		case wp == min(im.pointers.get(zone), end):
		case !h.Dirty() && im.Failed() == nil:
			return fmt.Errorf("zone %d was written up to %d, but the image has been closed since: these pointers are of an earlier time", zone, wp)
		default:
			im.pointers.stage(zone, wp)
		}
	}
	return nil
}

// loadL1 reads the L1 table and notes which zones may have mappings.
func (im *Image) loadL1() error {
	h := im.header()
	buf := make([]byte, int64(h.L1Size)*8) // at most maxL1Bytes
	if err := readPadded(im.f, buf, h.L1Offset); err != nil {
		return fmt.Errorf("read L1 table: %w", err)
	}
	im.l1 = make([]uint64, h.L1Size)
	span := uint64(im.tableLen) << im.clusterBits
	for t := range im.l1 {
		e := L1Entry(binary.BigEndian.Uint64(buf[t*8:]))
		im.l1[t] = uint64(e)
		bad := ""
		switch off := e.Offset(); {
		case e.Reserved() != 0:
			bad = "has reserved bits set"
		case off&(im.cs-1) != 0:
			bad = "is not cluster aligned"
		case off>>im.clusterBits >= im.alloc.length():
			bad = "lies beyond the end of the file"
		case off != 0 && im.isMetadata(off):
			bad = "points into the image's own metadata"
		}
		if bad != "" {
			return fmt.Errorf("image is corrupt: L1 entry %d, %#x, %s", t, uint64(e), bad)
		}
		if e.Offset() == 0 {
			continue
		}
		for at := uint64(t) * span; at < min(im.size, uint64(t+1)*span); at = (at/im.zoneSize + 1) * im.zoneSize {
			im.mapped.set(int64(at / im.zoneSize))
		}
	}
	return nil
}

// fullLength is how many clusters a file has whose device is written
// completely, with something over for what does not fit together.
func (im *Image) fullLength(h *Header) int64 {
	n := im.clusterUp(im.size)
	n += n>>im.tableBits + int64(h.L1Size)
	for _, p := range h.places() {
		n += p.n >> im.clusterBits
	}
	n += n>>bits.TrailingZeros64(uint64(h.refBlockEntries())) + 2
	return n + n/16 + 256
}

func (im *Image) setHeader(h *Header) {
	p := h.places()
	im.places.Store(&p)
	im.hdr.Store(h)
}

// isMetadata reports whether the file offset is in a structure that the header
// names.
func (im *Image) isMetadata(off int64) bool {
	for _, p := range *im.places.Load() {
		if off >= p.off && off < p.off+p.n {
			return true
		}
	}
	return false
}

// Failed returns why the image has failed (I8), or nil.
func (im *Image) Failed() error {
	if p := im.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// fail marks the image failed and returns the error that everybody gets from
// now on.
func (im *Image) fail(cause error) error {
	if !errors.Is(cause, ErrFailed) {
		err := fmt.Errorf("%w: %w", ErrFailed, cause)
		if im.failure.CompareAndSwap(nil, &err) {
			im.writable.Store(false)
			if im.onFail != nil {
				im.onFail(err)
			}
		}
	}
	return im.Failed()
}

// Allocated returns how many bytes of the file are in use. It is the length of
// the file while the image is open read-only.
func (im *Image) Allocated() int64 { return im.alloc.used() << im.clusterBits }

func (im *Image) conventional(zone uint32) bool { return zone < im.header().Zoned.Conventional }

func (im *Image) zoneStart(zone uint32) uint64 { return uint64(zone) * im.zoneSize }

// zoneEnd is where the zone's capacity ends.
func (im *Image) zoneEnd(zone uint32) uint64 {
	return im.zoneStart(zone) + im.header().ZoneCapacity(zone)
}

// lastCluster returns the guest cluster behind the zone.
func (im *Image) lastCluster(zone uint32) int64 {
	return im.clusterUp(min(im.zoneStart(zone)+im.zoneSize, im.size))
}

// active reports whether a zone with this write pointer is neither empty nor
// full.
func (im *Image) active(zone uint32, wp uint64) bool {
	return wp > im.zoneStart(zone) && wp < im.zoneEnd(zone)
}

// enters reports whether m makes a zone active on disk.
func (im *Image) enters(m move) bool {
	return im.active(m.zone, m.wp) && !im.active(m.zone, im.pointers.synced(m.zone))
}

func (im *Image) clusterOf(off uint64) int64 { return int64(off >> im.clusterBits) }
func (im *Image) clusterUp(off uint64) int64 {
	return int64((off + uint64(im.cs) - 1) >> im.clusterBits)
}
