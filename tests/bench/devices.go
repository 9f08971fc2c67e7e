package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Every device has 1 GiB, and if it is zoned, zones of 64 MiB.
const (
	sizeMiB = 1024
	zoneMiB = 64
)

// kind is a sort of device to be measured. What it keeps lies in the guest's
// memory.
type kind struct {
	name   string
	zoned  bool
	fio    []string        // more of its arguments
	ours   bool            // must and goal are of such
	file   string          // of ours: the plain file like its image, name of a kind
	only   func(cell) bool // the cells to measure; nil: all
	attach func(*bench) (*device, error)
}

// Names of kinds. Ours are compared with the first two.
const (
	nullBlkName = "null_blk"
	qemuNBDName = "qemu-nbd"

	plainFreshName     = "plain file, fresh"
	plainAllocatedName = "plain file, allocated"

	ublkNullName = "ublk null"
	fioAloneName = "fio alone"

	freshName         = "qzbd, fresh image"
	allocatedName     = "qzbd, allocated image"
	freshCopyName     = "qzbd, fresh, copying"
	allocatedCopyName = "qzbd, allocated, copying"
)

// noZeroCopy has a server copy the data of requests.
const noZeroCopy = "--no-zero-copy"

var kinds = []kind{
	{name: nullBlkName, zoned: true, attach: (*bench).nullBlk},
	{name: qemuNBDName, attach: (*bench).qemuNBD},
	// To be read it is filled: no more fresh.
	{name: plainFreshName, only: cell.writes, attach: plainFile(false)},
	{name: plainAllocatedName, attach: plainFile(true)},
	{name: ublkNullName, zoned: true, attach: (*bench).ublkNull},
	{name: fioAloneName, fio: []string{"--direct=0", fmt.Sprintf("--size=%dM", sizeMiB)}, attach: (*bench).zero},
	{name: freshName, zoned: true, ours: true, file: plainFreshName, attach: qzbd("off")},
	{name: allocatedName, zoned: true, ours: true, file: plainAllocatedName, attach: qzbd("full")},
	// Must and goal are of what attach does by itself.
	{name: freshCopyName, zoned: true, only: cell.copies, attach: qzbd("off", noZeroCopy)},
	{name: allocatedCopyName, zoned: true, only: cell.copies, attach: qzbd("full", noZeroCopy)},
}

// selection is those of the cells that are for the kind.
func (k kind) selection(cells []cell) []cell {
	return slices.DeleteFunc(slices.Clone(cells), func(c cell) bool { return k.only != nil && !k.only(c) })
}

// device is an attached device, or a file.
type device struct {
	node   string
	detach func() error
}

// zero is /dev/zero, which is done with every I/O at once.
func (b *bench) zero() (*device, error) {
	return &device{"/dev/zero", func() error { return nil }}, nil
}

// nullBlk makes a zoned device of the kernel's own, in memory.
func (b *bench) nullBlk() (*device, error) {
	if err := b.run("modprobe", "null_blk", "nr_devices=0"); err != nil {
		return nil, err
	}
	const name = "nullb0"
	dir := filepath.Join("/sys/kernel/config/nullb", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	for _, a := range []struct {
		name  string
		value int
	}{
		{"size", sizeMiB}, {"zoned", 1}, {"zone_size", zoneMiB}, {"memory_backed", 1}, {"blocksize", 4096},
		{"queue_mode", 2}, {"irqmode", 0}, {"submit_queues", b.queues}, {"power", 1},
	} {
		if err := os.WriteFile(filepath.Join(dir, a.name), fmt.Appendln(nil, a.value), 0); err != nil {
			return nil, err
		}
	}
	return &device{"/dev/" + name, func() error { return os.Remove(dir) }}, nil
}

// qemuNBD has QEMU serve a plain qcow2 image to the kernel's nbd.
func (b *bench) qemuNBD() (*device, error) {
	if err := b.run("modprobe", "nbd", "nbds_max=1"); err != nil {
		return nil, err
	}
	image := b.path("plain.qcow2")
	if err := b.run("qemu-img", "create", "-q", "-f", "qcow2", image, fmt.Sprintf("%dM", sizeMiB)); err != nil {
		return nil, err
	}
	const node = "/dev/nbd0"
	var said strings.Builder
	server := exec.Command(b.path("qemu-nbd"), "--connect="+node, "--socket="+b.path("nbd.sock"),
		"--verbose", // it stays in the foreground
		"--cache=none", "--format=qcow2", image)
	server.Stdout, server.Stderr = &said, &said
	if err := server.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	for !connected("/sys/block/nbd0") {
		select {
		case err := <-ended:
			return nil, fmt.Errorf("qemu-nbd ended: %v: %s", err, said.String())
		default:
			// No sleep: the clock of an idle machine runs ahead.
			unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
		}
	}
	return &device{node, func() error {
		if err := b.run("qemu-nbd", "--disconnect", node); err != nil {
			return err
		}
		if err := <-ended; err != nil {
			return fmt.Errorf("qemu-nbd: %w: %s", err, said.String())
		}
		return os.Remove(image)
	}}, nil
}

// connected reports whether an nbd device has a server and its size.
func connected(sys string) bool {
	if _, err := os.Stat(filepath.Join(sys, "pid")); err != nil {
		return false
	}
	size, err := os.ReadFile(filepath.Join(sys, "size"))
	return err == nil && strings.TrimSpace(string(size)) != "0"
}

// qzbd attaches one of our images, with queues of depth 128.
func qzbd(preallocation string, flags ...string) func(*bench) (*device, error) {
	return func(b *bench) (*device, error) {
		if err := b.run("modprobe", "ublk_drv"); err != nil {
			return nil, err
		}
		program, image := b.path("qzbd"), b.path("zoned.qcow2")
		options := fmt.Sprintf("zone.size=%dM,preallocation=%s", zoneMiB, preallocation)
		if err := b.run(program, "create", "-o", options, image, fmt.Sprintf("%dM", sizeMiB)); err != nil {
			return nil, err
		}
		args := append([]string{"attach", fmt.Sprintf("--queues=%d", b.queues), "--depth=128", image}, flags...)
		out, err := b.output(program, args...)
		if err != nil {
			return nil, err
		}
		node := strings.TrimSpace(out)
		return &device{node, func() error {
			return errors.Join(b.run(program, "detach", node), os.Remove(image))
		}}, nil
	}
}
