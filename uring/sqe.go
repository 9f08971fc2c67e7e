package uring

import (
	"errors"
	"structs"
	"unsafe"
)

// sqe is struct io_uring_sqe in the 64 bytes that every ring has. The unions
// carry the name of what this package uses them for.
type sqe struct {
	_           structs.HostLayout
	opcode      uint8
	flags       uint8
	ioprio      uint16
	fd          int32
	off         uint64 // of a command the low half is cmd_op
	addr        uint64
	len         uint32
	opFlags     uint32
	data        uint64 // user_data
	bufIndex    uint16
	personality uint16
	spliceFD    int32
	cmd         [16]byte // of a Wide ring it goes on for 64 bytes more
}

var _ = [1]int{}[unsafe.Sizeof(sqe{})-64]
var _ = [1]int{}[unsafe.Offsetof(sqe{}.cmd)-48]

// enum io_uring_op, as far as used.
const (
	opFsync       = 3
	opReadFixed   = 4
	opWriteFixed  = 5
	opPollAdd     = 6
	opAsyncCancel = 14
	opRead        = 22
	opWrite       = 23
	opURingCmd    = 46
)

const (
	sqeFixedFile  = 1 << 0 // IOSQE_FIXED_FILE
	fsyncDatasync = 1 << 0 // IORING_FSYNC_DATASYNC
)

// File is what an SQE works on: a descriptor or a registered file.
type File struct {
	n     int32
	flags uint8
}

// FD is the open file with descriptor fd.
func FD(fd int) File { return File{n: int32(fd)} }

// Fixed is the registered file with index i (RegisterFiles).
func Fixed(i int) File { return File{n: int32(i), flags: sqeFixedFile} }

var errFull = errors.New("uring: the submission queue stays full after a submit")

// slot takes the next SQE, cleared. A full queue is submitted first.
func (r *Ring) slot() (*sqe, error) {
	e := r.ring.GetSQE()
	if e == nil {
		if err := r.Submit(); err != nil {
			return nil, err
		}
		if e = r.ring.GetSQE(); e == nil {
			return nil, errFull
		}
	}
	s := (*sqe)(unsafe.Pointer(e))
	*s = sqe{}
	if r.wide {
		*(*sqe)(unsafe.Add(unsafe.Pointer(e), unsafe.Sizeof(sqe{}))) = sqe{}
	}
	return s, nil
}

func (r *Ring) queue(opcode uint8, f File, data uint64) (*sqe, error) {
	s, err := r.slot()
	if err != nil {
		return nil, err
	}
	s.opcode, s.fd, s.flags, s.data = opcode, f.n, f.flags, data
	return s, nil
}

// Read queues a read of len(p) bytes at offset off.
func (r *Ring) Read(f File, p []byte, off int64, data uint64) error {
	return r.transfer(opRead, f, p, off, data)
}

// Write queues a write of p at offset off.
func (r *Ring) Write(f File, p []byte, off int64, data uint64) error {
	return r.transfer(opWrite, f, p, off, data)
}

func (r *Ring) transfer(opcode uint8, f File, p []byte, off int64, data uint64) error {
	s, err := r.queue(opcode, f, data)
	if err != nil {
		return err
	}
	s.addr, s.len, s.off = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))), uint32(len(p)), uint64(off)
	return nil
}

// ReadFixed queues a read of n bytes at offset off into the registered buffer
// (RegisterBuffers), from its byte at on.
func (r *Ring) ReadFixed(f File, buffer uint16, at, n int, off int64, data uint64) error {
	return r.transferFixed(opReadFixed, f, buffer, at, n, off, data)
}

// WriteFixed queues a write of n bytes of the registered buffer, from its byte at
// on, at offset off.
func (r *Ring) WriteFixed(f File, buffer uint16, at, n int, off int64, data uint64) error {
	return r.transferFixed(opWriteFixed, f, buffer, at, n, off, data)
}

func (r *Ring) transferFixed(opcode uint8, f File, buffer uint16, at, n int, off int64, data uint64) error {
	s, err := r.queue(opcode, f, data)
	if err != nil {
		return err
	}
	s.bufIndex, s.addr, s.len, s.off = buffer, uint64(at), uint32(n), uint64(off)
	return nil
}

// Fsync queues an fdatasync, or an fsync when metadata is to be synced too. It
// is not ordered with anything queued before it.
func (r *Ring) Fsync(f File, metadata bool, data uint64) error {
	s, err := r.queue(opFsync, f, data)
	if err != nil {
		return err
	}
	if !metadata {
		s.opFlags = fsyncDatasync
	}
	return nil
}

// Cmd queues the driver command op of f with its 16 bytes (IORING_OP_URING_CMD). addr
// is the SQE's, if the driver wants one there.
func (r *Ring) Cmd(f File, op uint32, cmd *[16]byte, addr, data uint64) error {
	s, err := r.queue(opURingCmd, f, data)
	if err != nil {
		return err
	}
	s.off, s.cmd, s.addr = uint64(op), *cmd, addr
	return nil
}

// CmdWide queues the driver command op of f with its 80 bytes; the ring must
// be Wide.
func (r *Ring) CmdWide(f File, op uint32, cmd *[80]byte, data uint64) error {
	if !r.wide {
		panic("uring: CmdWide on a ring that is not Wide")
	}
	s, err := r.queue(opURingCmd, f, data)
	if err != nil {
		return err
	}
	s.off = uint64(op)
	*(*[80]byte)(unsafe.Pointer(&s.cmd)) = *cmd
	return nil
}

// Cancel queues the cancellation of what was queued with Data target. Only
// the target's own CQE is seen.
func (r *Ring) Cancel(target uint64) error {
	s, err := r.queue(opAsyncCancel, File{n: -1}, quietData)
	if err != nil {
		return err
	}
	s.addr = target
	return nil
}
