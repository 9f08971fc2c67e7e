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
	ours   bool            // must and goal are of such
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

	freshName     = "qzbd, fresh image"
	allocatedName = "qzbd, allocated image"

	ext4Name           = "qzbd, ext4"
	ext4CopyName       = "qzbd, ext4, copying"
	ext4DirectName     = "qzbd, ext4, direct"
	ext4DirectCopyName = "qzbd, ext4, direct, copying"
)

// Flags of attach. Without the first, data goes straight between requests and an
// image on a disk.
const (
	noZeroCopy = "--no-zero-copy"
	direct     = "--direct"
)

var kinds = []kind{
	{name: nullBlkName, zoned: true, attach: (*bench).nullBlk},
	{name: qemuNBDName, attach: (*bench).qemuNBD},
	// To be read it is filled: no more fresh.
	{name: plainFreshName, only: cell.writes, attach: plainFile(false)},
	{name: plainAllocatedName, attach: plainFile(true)},
	{name: ublkNullName, zoned: true, attach: (*bench).ublkNull},
	{name: freshName, zoned: true, ours: true, attach: qzbd("off")},
	{name: allocatedName, zoned: true, ours: true, attach: qzbd("full")},
	{name: ext4Name, zoned: true, attach: onExt4()},
	{name: ext4CopyName, zoned: true, attach: onExt4(noZeroCopy)},
	{name: ext4DirectName, zoned: true, attach: onExt4(direct)},
	{name: ext4DirectCopyName, zoned: true, attach: onExt4(direct, noZeroCopy)},
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

// qzbd attaches one of our images.
func qzbd(preallocation string) func(*bench) (*device, error) {
	return func(b *bench) (*device, error) { return b.attach(b.dir, preallocation) }
}

// onExt4 attaches an image on a disk in memory.
func onExt4(flags ...string) func(*bench) (*device, error) {
	return func(b *bench) (*device, error) {
		dir, unmount, err := b.ext4()
		if err != nil {
			return nil, err
		}
		d, err := b.attach(dir, "off", flags...)
		if err != nil {
			return nil, errors.Join(err, unmount())
		}
		return &device{d.node, func() error { return errors.Join(d.detach(), unmount()) }}, nil
	}
}

// disk brings the kernel's disk in memory, once, with room for a file system with
// an image. All of its memory is there before anything is measured, and nothing is
// written back to it before a file is synced.
func (b *bench) disk() (string, error) {
	const node = "/dev/ram0"
	if _, err := os.Stat(node); err == nil {
		return node, nil
	}
	for name, percent := range map[string]string{"dirty_background_ratio": "80", "dirty_ratio": "90"} {
		if err := os.WriteFile("/proc/sys/vm/"+name, []byte(percent), 0); err != nil {
			return "", err
		}
	}
	const mib = sizeMiB * 5 / 4
	if err := b.run("modprobe", "brd", "rd_nr=1", fmt.Sprintf("rd_size=%d", mib<<10)); err != nil {
		return "", err
	}
	return node, b.run("dd", "if=/dev/zero", "of="+node, "bs=1M", fmt.Sprintf("count=%d", mib), "oflag=direct")
}

// ext4 mounts a new file system on the disk.
func (b *bench) ext4() (dir string, unmount func() error, err error) {
	disk, err := b.disk()
	if err != nil {
		return "", nil, err
	}
	if err := b.run("mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", disk); err != nil {
		return "", nil, err
	}
	dir = b.path("ext4")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, err
	}
	if err := unix.Mount(disk, dir, "ext4", 0, ""); err != nil {
		return "", nil, fmt.Errorf("mount %s: %w", disk, err)
	}
	return dir, func() error { return unix.Unmount(dir, 0) }, nil
}

// attach attaches a new image in dir, with queues of depth 128.
func (b *bench) attach(dir, preallocation string, flags ...string) (*device, error) {
	if err := b.run("modprobe", "ublk_drv"); err != nil {
		return nil, err
	}
	program, image := b.path("qzbd"), filepath.Join(dir, "zoned.qcow2")
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
