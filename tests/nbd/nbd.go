// Package nbd serves a block device to a virtual machine, so that a test
// decides what its disk does: the part of the NBD protocol that qemu speaks
// (the network block device protocol, doc/proto.md of the NBD project: fixed
// newstyle negotiation, simple replies).
package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
)

// Device is what a server shows. Offsets and lengths are bytes.
type Device interface {
	io.ReaderAt
	io.WriterAt
	// WriteDurable returns when p, and nothing else, is on stable storage.
	WriteDurable(p []byte, off int64) error
	// Sync makes everything durable.
	Sync() error
	// Punch makes a range read as zeros.
	Punch(off, n int64) error
}

// Constants of the protocol.
const (
	magicServer = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption = 0x49484156454f5054 // "IHAVEOPT"
	magicReply  = 0x0003e889045565a9 // of an option
	magicAsk    = 0x25609513
	magicAnswer = 0x67446698

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optExportName = 1
	optAbort      = 2
	optInfo       = 6
	optGo         = 7

	repAck         = 1
	repInfo        = 3
	repErrUnsup    = 1<<31 + 1
	infoExport     = 0
	maxOption      = 64 << 10
	maxTransfer    = 64 << 20
	transmitFlags  = 1<<0 | 1<<2 | 1<<3 | 1<<5 | 1<<6 // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdFlagFUA     = 1 << 0
)

// Server serves one device on a unix socket, to one client at a time.
type Server struct {
	l    net.Listener
	dev  Device
	size int64
	wg   sync.WaitGroup
}

// Serve starts a server on a new unix socket at path; size is in bytes.
func Serve(path string, dev Device, size int64) (*Server, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	s := &Server{l: l, dev: dev, size: size}
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = s.client(c) // the client is gone or speaks something else
			c.Close()
		}
	})
	return s, nil
}

// Close ends the server; the client must be gone.
func (s *Server) Close() error {
	err := s.l.Close()
	s.wg.Wait()
	return err
}

type client struct {
	*Server
	r *bufio.Reader
	w *bufio.Writer
}

func (s *Server) client(conn net.Conn) error {
	c := &client{s, bufio.NewReaderSize(conn, 1<<20), bufio.NewWriterSize(conn, 1<<20)}
	if err := c.negotiate(); err != nil {
		return err
	}
	for {
		if c.r.Buffered() == 0 {
			if err := c.w.Flush(); err != nil {
				return err
			}
		}
		if done, err := c.request(); done || err != nil {
			return err
		}
	}
}

// put writes integers big-endian, each in its own width.
func (c *client) put(v ...any) error {
	for _, x := range v {
		if err := binary.Write(c.w, binary.BigEndian, x); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) get(v any) error { return binary.Read(c.r, binary.BigEndian, v) }

// negotiate goes through the client's options until it wants to transmit.
func (c *client) negotiate() error {
	if err := c.put(uint64(magicServer), uint64(magicOption), uint16(flagFixedNewstyle|flagNoZeroes)); err != nil {
		return err
	}
	if err := c.w.Flush(); err != nil {
		return err
	}
	var flags uint32
	if err := c.get(&flags); err != nil {
		return err
	}
	for {
		var opt struct {
			Magic   uint64
			ID, Len uint32
		}
		if err := c.get(&opt); err != nil {
			return err
		}
		if opt.Magic != magicOption || opt.Len > maxOption {
			return fmt.Errorf("option of %d bytes with magic %#x", opt.Len, opt.Magic)
		}
		if _, err := c.r.Discard(int(opt.Len)); err != nil { // there is one export, whatever its name
			return err
		}
		var err error
		switch opt.ID {
		case optExportName:
			err = c.put(uint64(c.size), uint16(transmitFlags))
			if err == nil && flags&flagNoZeroes == 0 {
				_, err = c.w.Write(make([]byte, 124))
			}
			return errors.Join(err, c.w.Flush())
		case optGo, optInfo:
			err = c.put(uint64(magicReply), opt.ID, uint32(repInfo), uint32(12), uint16(infoExport), uint64(c.size), uint16(transmitFlags),
				uint64(magicReply), opt.ID, uint32(repAck), uint32(0))
		case optAbort:
			err = c.put(uint64(magicReply), opt.ID, uint32(repAck), uint32(0))
		default:
			err = c.put(uint64(magicReply), opt.ID, uint32(repErrUnsup), uint32(0))
		}
		if err = errors.Join(err, c.w.Flush()); err != nil || opt.ID == optGo {
			return err
		}
		if opt.ID == optAbort {
			return io.EOF
		}
	}
}

// request serves one request.
func (c *client) request() (done bool, err error) {
	var q struct {
		Magic       uint32
		Flags, Type uint16
		Handle      uint64
		Off         uint64
		Len         uint32
	}
	if err := c.get(&q); err != nil {
		return false, err
	}
	if q.Magic != magicAsk || q.Len > maxTransfer && q.Type <= cmdWrite {
		return false, fmt.Errorf("request %d of %d bytes with magic %#x", q.Type, q.Len, q.Magic)
	}
	off, n := int64(q.Off), int64(q.Len)
	inside := off >= 0 && off <= c.size && n <= c.size-off
	fua := q.Flags&cmdFlagFUA != 0
	var data []byte
	switch q.Type {
	case cmdDisconnect:
		return true, nil
	case cmdRead, cmdWrite:
		data = make([]byte, n)
	}
	if q.Type == cmdWrite {
		if _, err := io.ReadFull(c.r, data); err != nil {
			return false, err
		}
	}
	var failure error
	switch {
	case !inside:
		failure = syscall.EINVAL
	case q.Type == cmdRead:
		if _, failure = c.dev.ReadAt(data, off); errors.Is(failure, io.EOF) {
			failure = nil // what was never written reads as zeros
		}
	case q.Type == cmdWrite && fua:
		failure = c.dev.WriteDurable(data, off)
	case q.Type == cmdWrite:
		_, failure = c.dev.WriteAt(data, off)
	case q.Type == cmdFlush:
		failure = c.dev.Sync()
	case q.Type == cmdTrim, q.Type == cmdWriteZeroes:
		if failure = c.dev.Punch(off, n); failure == nil && fua {
			failure = c.dev.Sync()
		}
	default:
		failure = syscall.EINVAL
	}
	code := uint32(0)
	if failure != nil {
		code = uint32(syscall.EIO)
		var errno syscall.Errno
		if errors.As(failure, &errno) {
			code = uint32(errno)
		}
	}
	if err := c.put(uint32(magicAnswer), code, q.Handle); err != nil {
		return false, err
	}
	if q.Type == cmdRead && code == 0 {
		_, err = c.w.Write(data)
	}
	return false, err
}
