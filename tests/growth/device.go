package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

// slots is how many requests a device of one queue can have in flight.
const slots = ublk.DefaultDepth

// countedFile counts what makes things durable.
type countedFile struct {
	*qcow2.OSFile
	durable
}

// durable is what an image file was asked to make durable.
type durable struct{ syncs, writes, bytes int64 }

func (f *countedFile) Sync() error {
	f.syncs++
	return f.OSFile.Sync()
}

func (f *countedFile) WriteDurable(p []byte, off int64) error {
	f.writes++
	f.bytes += int64(len(p))
	return f.OSFile.WriteDurable(p, off)
}

// device is what a server has of an image, but for the queues: they are the same
// whatever the image is.
type device struct {
	file    *countedFile
	image   *qcow2.Image
	zones   *zns.Device
	journal []byte
	request zns.Request
}

// create makes an image of so many zones.
func create(path string, zones uint32, zoneSize uint64) error {
	return qcow2.Create(path, qcow2.CreateOptions{Size: uint64(zones) * zoneSize, ZoneSize: zoneSize})
}

// open goes the way of qzbd attach, up to where the kernel comes in.
func open(path string) (*device, error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := qcow2.Lock(file, true); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	d := &device{file: &countedFile{OSFile: qcow2.NewOSFile(file)}}
	if err := d.open(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return d, nil
}

func (d *device) open() error {
	h, _, err := qcow2.ReadPointers(d.file)
	if err != nil {
		return err
	}
	z := h.Zoned
	g := zns.Geometry{
		Size: h.Size, ZoneSize: z.ZoneSize, ZoneCapacity: z.ZoneCapacity, NrZones: z.NrZones, Conventional: z.Conventional,
		MaxOpen: z.MaxOpen, MaxActive: z.MaxActive, MaxAppend: ublk.DefaultMaxIO, BlockSize: 512,
	}
	if err := ublk.CheckGeometry(g); err != nil {
		return err
	}
	// There are no rounds but those that are asked for: they would be counted.
	if d.image, err = qcow2.Open(d.file, qcow2.Options{}); err != nil {
		return err
	}
	n := int(zns.JournalBytes(g.NrZones, slots))
	if d.journal, err = unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_POPULATE); err != nil {
		return fmt.Errorf("map a journal of %d bytes: %w", n, err)
	}
	j, err := zns.NewJournal(d.journal, g.NrZones, slots)
	if err != nil {
		return err
	}
	d.zones, err = zns.New(g, d.image, zns.WithJournal(j))
	return err
}

func (d *device) close() error { return errors.Join(d.image.Close(), unix.Munmap(d.journal)) }

// writer appends data to a zone.
type writer func(d *device, zone uint32, data []byte) error

// write appends data to a zone.
func (d *device) write(zone uint32, data []byte) error { return d.append(zone, d.file, data) }

// append appends data to a zone, which file is to keep.
func (d *device) append(zone uint32, file zns.ExtentIO, data []byte) error {
	d.request = zns.Request{Op: zns.OpAppend, Start: uint64(zone) * d.zones.Geometry().ZoneSize, Len: uint64(len(data)), Extents: d.request.Extents}
	return zns.Do(d.zones, &d.request, file, data)
}

func (d *device) flush() error {
	d.request = zns.Request{Op: zns.OpFlush, Extents: d.request.Extents}
	return zns.Do(d.zones, &d.request, d.file, nil)
}
