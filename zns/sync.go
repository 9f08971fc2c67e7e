package zns

import (
	"bytes"
	"fmt"
	"io"
)

// ExtentIO is the image file as an executor of extents sees it.
type ExtentIO interface {
	io.ReaderAt
	io.WriterAt
}

// Do carries r through to its answer on the calling goroutine and returns its
// error. data is what a write or append stores and what a read fills; it has
// r.Len bytes, or is ignored by the other operations. r.Wake is overwritten.
func Do(d *Device, r *Request, file ExtentIO, data []byte) error {
	woken := make(chan struct{}, 1)
	r.Wake = func(*Request) { woken <- struct{}{} }
	step := d.Begin(r)
	for {
		switch step {
		case Answer:
			return r.Err
		case IO:
			step = d.End(r, Transfer(r, file, data))
		case Compare:
			step = d.End(r, compare(r, file, data))
		case Work:
			step = d.Work(r)
		case Wait:
			<-woken
			step = r.Next
		}
	}
}

// Transfer moves the data of r's extents between file and data, whose length
// is r.Len. Holes read as zeros.
func Transfer(r *Request, file ExtentIO, data []byte) error {
	if uint64(len(data)) != r.Len {
		panic(fmt.Sprintf("zns: %d bytes of data for a %s of %d", len(data), r.Op, r.Len))
	}
	for _, e := range r.Extents {
		p := data[:e.Len]
		data = data[e.Len:]
		var err error
		switch {
		case r.Op != OpRead:
			_, err = file.WriteAt(p, e.Off)
		case e.Off == Hole:
			clear(p)
		default:
			err = readFull(file, p, e.Off)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// compare reads the data of r's extents and returns ErrDiffers if it is not
// data.
func compare(r *Request, file ExtentIO, data []byte) error {
	there := make([]byte, len(data))
	p := there
	for _, e := range r.Extents {
		if e.Off != Hole {
			if err := readFull(file, p[:e.Len], e.Off); err != nil {
				return err
			}
		}
		p = p[e.Len:]
	}
	if !bytes.Equal(there, data) {
		return ErrDiffers
	}
	return nil
}

// readFull reads len(p) bytes; what lies beyond the end of the file is zeros.
func readFull(file io.ReaderAt, p []byte, off int64) error {
	n, err := file.ReadAt(p, off)
	if err == io.EOF {
		clear(p[n:])
		return nil
	}
	return err
}
