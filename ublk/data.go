package ublk

import (
	"bytes"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/uring"
	"github.com/qzbd/qzbd/zns"
)

// maxRetries bounds how often an I/O on the data file that the kernel says to
// try again is tried again without any progress.
const maxRetries = 100

// transfer is the data of a request on its way between the kernel's request
// and the extents of the data file: by way of a buffer, or straight.
type transfer struct {
	straight bool   // see zerocopy.go; there is no buf
	buf      []byte // as long as the request
	slot     int    // of buf
	next     int    // first extent not yet started
	at       int    // where in the request it begins
	inflight int
	err      error // the first error
	reads    bool  // from the file, else to it
	compare  bool  // with the data of the request, which is a write
	pieces   [window]piece
}

// piece is an extent in flight, or what is left of it.
type piece struct {
	used    bool
	retries uint8
	off     int64 // in the data file
	at, len int   // in the request
}

// startTransfer begins the IO step of a request, or its Compare step. True means
// that it is over already, with its outcome in data.err.
func (q *queue) startTransfer(r *request, compare bool) (over bool) {
	t := &r.data
	t.reads, t.compare = compare || r.Op == zns.OpRead, compare
	if allHoles(r) && !compare {
		t.err = q.copyOut(r, 0, q.dev.zeros[:r.Len])
		return true
	}
	t.next, t.at, t.err = 0, 0, nil
	if t.straight = q.goesStraight(r); t.straight {
		return q.continueTransfer(r)
	}
	return q.startCopying(r)
}

// startCopying begins a transfer by way of a buffer.
func (q *queue) startCopying(r *request) (over bool) {
	t := &r.data
	t.next, t.at, t.err = 0, 0, nil
	t.slot, t.buf = q.bufs.take()
	t.buf = t.buf[:r.Len]
	if !t.reads {
		if t.err = q.copyIn(r, t.buf); t.err != nil {
			return q.endTransfer(r)
		}
	}
	return q.continueTransfer(r)
}

// allHoles says that a read needs no I/O, after it has checked that the
// extents are what they must be: they cover the request, and a write has a
// place for every byte.
func allHoles(r *request) bool {
	var sum int64
	holes := true
	for _, e := range r.Extents {
		sum += e.Len
		if e.Off != zns.Hole {
			holes = false
		} else if !r.data.reads {
			panic("ublk: the target gave a write a hole")
		}
	}
	if sum != int64(r.Len) {
		panic(fmt.Sprintf("ublk: the target gave %d bytes of extents for a request of %d", sum, r.Len))
	}
	return holes
}

// continueTransfer starts as many extents as the window has room for.
func (q *queue) continueTransfer(r *request) (over bool) {
	t := &r.data
	for t.err == nil && t.next < len(r.Extents) && t.inflight < window {
		e := r.Extents[t.next]
		p := piece{used: true, off: e.Off, at: t.at, len: int(e.Len)}
		t.next, t.at = t.next+1, t.at+p.len
		switch {
		case e.Off == zns.Hole:
			t.err = q.zero(r, p.at, p.len)
		case q.inMemory && !t.straight:
			q.moveNow(r, &p)
		default:
			slot := 0
			for t.pieces[slot].used {
				slot++
			}
			t.pieces[slot] = p
			t.inflight++
			q.submitPiece(r, slot)
		}
	}
	switch {
	case t.inflight > 0:
		return false
	case t.straight && t.err != nil:
		// Whatever it is, the copy will say so, or will do what zero copy could not.
		t.straight = false
		return q.startCopying(r)
	case t.straight:
		return true
	case t.err != nil || !t.reads:
	case t.compare:
		t.err = q.differs(r, t.buf)
	default:
		t.err = q.copyOut(r, 0, t.buf)
	}
	return q.endTransfer(r)
}

// zero makes a part of a read's data zeros.
func (q *queue) zero(r *request, at, n int) error {
	if r.data.straight {
		return q.copyOut(r, at, q.dev.zeros[:n])
	}
	clear(r.data.buf[at : at+n])
	return nil
}

// differs compares the data of a write with what has been read. It happens only
// after the death of a server, so it may allocate.
func (q *queue) differs(r *request, have []byte) error {
	want := make([]byte, len(have))
	err := q.copyIn(r, want)
	if err == nil && !bytes.Equal(have, want) {
		err = zns.ErrDiffers
	}
	return err
}

// endTransfer lets go of the buffer.
func (q *queue) endTransfer(r *request) (over bool) {
	q.bufs.give(r.data.slot)
	r.data.buf = nil
	return true
}

// submitPiece queues the I/O of what is left of a piece.
func (q *queue) submitPiece(r *request, slot int) {
	t := &r.data
	p := &t.pieces[slot]
	data := aboutData | uint64(slot)<<slotOff | uint64(r.tag)
	file := uring.Fixed(fileData)
	var err error
	switch {
	case t.straight && t.reads:
		err = q.ring.ReadFixed(file, r.tag, p.at, p.len, p.off, data)
	case t.straight:
		err = q.ring.WriteFixed(file, r.tag, p.at, p.len, p.off, data)
	case t.reads:
		err = q.ring.Read(file, t.buf[p.at:p.at+p.len], p.off, data)
	default:
		err = q.ring.Write(file, t.buf[p.at:p.at+p.len], p.off, data)
	}
	if err != nil {
		q.broken(err)
	}
}

// moveNow moves a piece at once. Only for a file in memory: io_uring cannot read
// or write such a file without waiting, as it believes, and would give the piece
// to another thread, which costs many times what the copy does.
func (q *queue) moveNow(r *request, p *piece) {
	trap := uintptr(unix.SYS_PWRITE64)
	if r.data.reads {
		trap = unix.SYS_PREAD64
	}
	for again := true; again; {
		n, _, errno := syscall.RawSyscall6(trap, uintptr(q.dev.cfg.DataFD),
			uintptr(unsafe.Pointer(&r.data.buf[p.at])), uintptr(p.len), uintptr(p.off), 0, 0)
		res := int32(n)
		if errno != 0 {
			res = -int32(errno)
		}
		again = q.movedPart(r, p, res)
	}
}

// moved handles the outcome of a piece.
func (q *queue) moved(r *request, slot int, res int32) {
	t := &r.data
	p := &t.pieces[slot]
	if !p.used {
		panic("ublk: an I/O completed twice")
	}
	if again := q.movedPart(r, p, res); again {
		q.submitPiece(r, slot)
		return
	}
	*p = piece{}
	t.inflight--
	if q.continueTransfer(r) {
		q.advance(r, q.target.End(&r.Request, t.err))
	}
}

// movedPart accounts for one completion and says whether the rest is to be
// submitted again. The first error ends the request; an error after it is
// only counted off.
func (q *queue) movedPart(r *request, p *piece, res int32) (again bool) {
	t := &r.data
	var err error
	switch n := int(res); {
	case res == -int32(syscall.EINTR), res == -int32(syscall.EAGAIN):
		if p.retries++; t.err == nil && p.retries < maxRetries {
			return true
		}
		err = syscall.EIO
	case res < 0:
		err = syscall.Errno(-res)
	case n > p.len:
		panic("ublk: an I/O moved more than it was asked to")
	case n == p.len:
		return false
	case n > 0 && n%q.dev.cfg.DataAlign == 0:
		p.off, p.at, p.len, p.retries = p.off+int64(n), p.at+n, p.len-n, 0
		return t.err == nil
	case t.reads:
		// The image file ends here, perhaps within a block: the rest reads as
		// zeros, and cannot even be asked for.
		if err = q.zero(r, p.at+n, p.len-n); err == nil {
			return false
		}
	default:
		err = syscall.EIO
	}
	if t.err == nil {
		t.err = fmt.Errorf("%s %d bytes at %d of the image file: %w", r.op.name, p.len, p.off, err)
	}
	return false
}

// copyIn copies the data of a write request into mem.
func (q *queue) copyIn(r *request, mem []byte) error {
	return q.copy(unix.SYS_PREAD64, r, 0, mem)
}

// copyOut copies mem into a read request (or a report), from its byte at on.
func (q *queue) copyOut(r *request, at int, mem []byte) error {
	return q.copy(unix.SYS_PWRITE64, r, at, mem)
}

// copyAll is user copy: the char device moves the bytes of a request, at the
// position that names its tag. It copies memory and never waits, so it is
// called without telling the Go scheduler.
func (q *queue) copyAll(trap uintptr, r *request, at int, mem []byte) error {
	pos := copyPos(q.id, r.tag) + int64(at)
	for len(mem) > 0 {
		n, _, errno := syscall.RawSyscall6(trap, uintptr(q.charFD), uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(pos), 0, 0)
		switch {
		case errno == syscall.EINTR:
		case errno != 0:
			return fmt.Errorf("copy %d bytes of a request: %w", len(mem), errno)
		case n == 0:
			return fmt.Errorf("copy %d bytes of a request: %w", len(mem), syscall.EIO)
		default:
			mem, pos = mem[n:], pos+int64(n)
		}
	}
	return nil
}
