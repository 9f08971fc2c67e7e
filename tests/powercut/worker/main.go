// Command worker is the guest's side of the power-cut tests: it lives on a disk
// that loses power under it.
//
// usage: worker KIND FIRST|NEXT|LAST SEED
//
// The seed decides besides how the image is attached, with --direct or not.
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
	"math/rand/v2"
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
	// work goes on until the power goes off. What it prints is durable, but
	// for what begins with a #, which is for whoever watches.
	work(node string, rng *rand.Rand) error
}

var kinds = map[string]kind{
	"fio":   rawZones{},
	"f2fs":  fileSystem{"f2fs", []string{"mkfs.f2fs", "-f", "-m"}, []string{"fsck.f2fs", "-f"}, "zone.size=8M,zone.conventional_zones=16", "1G", []use{{"defaults", true}}},
	"btrfs": fileSystem{"btrfs", []string{"mkfs.btrfs", "-q", "-O", "zoned", "-m", "single", "-d", "single"}, []string{"btrfs", "check"}, "zone.size=16M,zone.max_append_bytes=1M", "1G", btrfsUses},
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
	r := runner{k, rand.New(rand.NewPCG(seed, 0))}
	if err := command("modprobe", "ext4"); err != nil {
		return err
	}
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	if args[1] == "FIRST" {
		err = r.prepare()
	} else {
		err = r.verify()
	}
	if err != nil || args[1] == "LAST" {
		return err
	}
	fmt.Println("# work")
	if err := command("mount", "-t", "ext4", disk, home); err != nil {
		return err
	}
	node, err := r.attach()
	if err != nil {
		return err
	}
	return k.work(node, r.rng)
}

// runner takes a kind of use through one boot.
type runner struct {
	kind
	rng *rand.Rand
}

func (r runner) prepare() error {
	if err := command("mke2fs", "-q", "-t", "ext4", disk); err != nil {
		return err
	}
	return withDisk(func() error {
		options, size := r.create()
		if err := command(qzbd(), "create", "-o", options, image, size); err != nil {
			return err
		}
		return r.withDevice(r.kind.prepare)
	})
}

func (r runner) verify() error {
	lines, err := durable()
	if err != nil {
		return err
	}
	return withDisk(func() error {
		// A cut may leave leaks, never corruption (I5).
		fmt.Println("# check")
		if err := check(0, 3); err != nil {
			return err
		}
		err := r.withDevice(func(node string) error { return r.kind.verify(node, lines) })
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
func (r runner) withDevice(f func(node string) error) error {
	node, err := r.attach()
	if err != nil {
		return err
	}
	err = f(node)
	return errors.Join(err, command(qzbd(), "detach", node))
}

func (r runner) attach() (string, error) {
	args := []string{"attach", image}
	if r.rng.IntN(2) == 0 {
		args = append(args, "--direct")
	}
	fmt.Println("#", strings.Join(args, " "))
	out, err := output(qzbd(), args...)
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
