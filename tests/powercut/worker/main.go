// Command worker is the guest's side of the power-cut tests: it lives on a disk
// that loses power under it.
//
// usage: worker KIND FIRST|NEXT|LAST SEED
//
// The disk is /dev/vda with an ext4 on it, and there the image. FIRST makes
// both. NEXT and LAST are boots after a power cut: whatever was said to be
// durable, a line each in $QZBD_VM_OUT/durable, must be there. All but LAST then
// work until the power goes off, and say on standard output what is durable.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	disk  = "/dev/vda"
	home  = "/mnt/disk"
	image = home + "/z.qcow2"
)

// kind is what uses the device.
type kind interface {
	// create returns the options of the image, and its size.
	create() (options, size string)
	// prepare makes the new device usable.
	prepare(node string) error
	// verify checks the device after a power cut; durable are the lines of
	// work that reached the host.
	verify(node string, durable []string) error
	// work goes on until the power goes off. What it prints is durable.
	work(node string, seed uint64) error
}

var kinds = map[string]kind{
	"fio":   rawZones{},
	"f2fs":  fileSystem{"f2fs", []string{"mkfs.f2fs", "-f", "-m"}, []string{"fsck.f2fs", "-f"}, "zone.size=8M,zone.conventional_zones=16", "1G"},
	"btrfs": fileSystem{"btrfs", []string{"mkfs.btrfs", "-q", "-O", "zoned", "-m", "single", "-d", "single"}, []string{"btrfs", "check"}, "zone.size=16M,zone.max_append_bytes=1M", "1G"},
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 || kinds[args[0]] == nil {
		return errors.New("usage: worker KIND FIRST|NEXT|LAST SEED")
	}
	k := kinds[args[0]]
	seed, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	if err := command("modprobe", "ext4"); err != nil {
		return err
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	if args[1] == "FIRST" {
		err = prepare(k)
	} else {
		err = verify(k)
	}
	if err != nil || args[1] == "LAST" {
		return err
	}
	if err := command("mount", "-t", "ext4", disk, home); err != nil {
		return err
	}
	node, err := attach()
	if err != nil {
		return err
	}
	return k.work(node, seed)
}

func prepare(k kind) error {
	if err := command("mke2fs", "-q", "-t", "ext4", disk); err != nil {
		return err
	}
	return withDisk(func() error {
		options, size := k.create()
		if err := command(qzbd(), "create", "-o", options, image, size); err != nil {
			return err
		}
		return withDevice(k.prepare)
	})
}

func verify(k kind) error {
	lines, err := durable()
	if err != nil {
		return err
	}
	return withDisk(func() error {
		// A cut may leave leaks, never corruption (I5).
		if err := check(0, 3); err != nil {
			return err
		}
		err := withDevice(func(node string) error { return k.verify(node, lines) })
		if err != nil {
			return err
		}
		return check(0)
	})
}

// durable returns what the host was told.
func durable() ([]string, error) {
	f, err := os.Open(filepath.Join(os.Getenv("QZBD_VM_OUT"), "durable"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var lines []string
	s := bufio.NewScanner(f)
	for s.Scan() {
		lines = append(lines, s.Text())
	}
	return lines, s.Err()
}

// check runs qzbd check, whose exit status must be one of want.
func check(want ...int) error {
	cmd := exec.Command(qzbd(), "check", image)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	for _, w := range want {
		if cmd.ProcessState.ExitCode() == w {
			return nil
		}
	}
	return fmt.Errorf("check: exit status %d, want %v: %s", cmd.ProcessState.ExitCode(), want, out)
}

// withDisk runs f with the disk mounted.
func withDisk(f func() error) error {
	if err := command("mount", "-t", "ext4", disk, home); err != nil {
		return err
	}
	err := f()
	return errors.Join(err, command("umount", home))
}

// withDevice runs f with the image attached.
func withDevice(f func(node string) error) error {
	node, err := attach()
	if err != nil {
		return err
	}
	err = f(node)
	return errors.Join(err, command(qzbd(), "detach", node))
}

func attach() (string, error) {
	out, err := output(qzbd(), "attach", image)
	return strings.TrimSpace(out), err
}

func qzbd() string { return os.Getenv("QZBD_BIN") }

func command(name string, args ...string) error {
	_, err := output(name, args...)
	return err
}

func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out, errs.String())
	}
	return string(out), nil
}
