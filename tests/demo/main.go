// Command demo shows in about a minute what qzbd does: images become zoned
// block devices, which blkzone, fio, f2fs and btrfs use; then everything is
// detached, checked, attached again, and all of it is still there.
//
// It runs on this machine's kernel if that has ublk and zoned block devices,
// and otherwise boots one that has in a virtual machine, by itself. It leaves
// nothing behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/qzbd/qzbd/tests/vm"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code, err := start(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// start finds a kernel to run on.
func start(ctx context.Context) (int, error) {
	qzbd, err := program()
	if err != nil {
		return 1, err
	}
	inside := os.Getenv("QZBD_VM") != ""
	if !inside {
		if err := vm.InstallDeps(ctx, os.Stdout); err != nil {
			return 1, err
		}
	}
	if vm.HostHasUblk() {
		return 0, show(ctx, qzbd)
	}
	if inside {
		return 1, errors.New("the virtual machine's kernel lacks ublk or zoned block devices")
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	fmt.Println("This kernel has no zoned ublk devices (or we are not root): booting one that has.")
	return vm.Run(ctx, vm.Options{Series: vm.Series7}, []string{self})
}

// program finds qzbd itself.
func program() (string, error) {
	if bin := os.Getenv("QZBD_BIN"); bin != "" {
		return filepath.Abs(bin)
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			bin := filepath.Join(dir, "bin", "qzbd")
			if _, err := exec.LookPath(bin); err != nil {
				return "", fmt.Errorf("%w: build it with make", err)
			}
			return bin, nil
		}
	}
	return "", errors.New("run this from the source directory, or set QZBD_BIN")
}

// disk is an image, a file of the stage's directory, and while it is attached
// its device.
type disk struct {
	image string
	node  string
}

// show is the demonstration.
func show(ctx context.Context, qzbd string) (err error) {
	s, err := newStage(ctx, qzbd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.end()) }()

	kernel, err := s.run("uname", "-sr")
	if err != nil {
		return err
	}
	fmt.Printf("On %s, %d CPUs; images in %s.\n", strings.TrimSpace(kernel), runtime.NumCPU(), s.dir)

	var (
		example = &disk{image: "example.qcow2"}
		f2fs    = &disk{image: "f2fs.qcow2"}
		btrfs   = &disk{image: "btrfs.qcow2"}
		all     = []*disk{example, f2fs, btrfs}
		zones   string
		sum     string
		trees   = map[*disk]*tree{f2fs: newTree(1), btrfs: newTree(2)}
	)
	const hashed = 128 << 20 // the zones that fio fills
	for _, step := range []step{
		{"Create the example image of the format: 768M, 12 zones of 64M, 6 open, 8 active.", func() error {
			return s.create(example, "zone.size=64M,zone.capacity=64M,zone.max_open_zones=6,zone.max_active_zones=8,zone.max_append_bytes=4096", "768M")
		}},
		{"Attach it. blkzone sees a host-managed zoned disk.", func() error {
			if err := s.attach(example); err != nil {
				return err
			}
			out, err := s.run("blkzone", "report", example.node)
			lines := strings.SplitAfter(out, "\n")
			s.print(lines[0] + fmt.Sprintf("  (and %d more like it)\n", len(lines)-2))
			return err
		}},
		{"fio fills two zones in sequence and reads them back, comparing checksums.", func() error {
			return s.fio(example, "--name=seq", "--rw=write", "--bs=64k", "--iodepth=8", "--size=128M")
		}},
		{"fio writes blocks of 4k to 128k all over four more zones, 16 at a time, and verifies them.", func() error {
			return s.fio(example, "--name=random", "--rw=randwrite", "--bsrange=4k-128k", "--blockalign=4k", "--iodepth=16",
				"--max_open_zones=4", "--offset=256M", "--size=256M", "--io_size=64M")
		}},
		{"The zones now: full, open, empty.", func() (err error) {
			if zones, err = s.run("blkzone", "report", example.node); err != nil {
				return err
			}
			s.print(zones)
			sum, err = s.sum(example.node, hashed)
			return err
		}},
		{"f2fs on a device of its own, with conventional zones for its tables: make, mount, fill.", func() error {
			if err := s.create(f2fs, "zone.size=8M,zone.conventional_zones=16,zone.max_open_zones=6", "768M"); err != nil {
				return err
			}
			return s.fill(f2fs, trees[f2fs], "mkfs.f2fs", "-f", "-m")
		}},
		{"btrfs on another one, all zones sequential; its data goes by zone append.", func() error {
			if err := s.create(btrfs, "zone.size=16M,zone.max_open_zones=12,zone.max_active_zones=16,zone.max_append_bytes=1M", "1G"); err != nil {
				return err
			}
			return s.fill(btrfs, trees[btrfs], "mkfs.btrfs", "-q", "-O", "zoned", "-m", "single", "-d", "single")
		}},
		{"Three devices are attached. Detach them, by the names of their images.", func() error {
			out, err := s.qzbd("list")
			if err != nil {
				return err
			}
			s.print(out)
			for _, d := range all {
				if err := s.detach(d, d.image); err != nil {
					return err
				}
			}
			return nil
		}},
		{"Check the images.", func() error {
			for _, d := range all {
				out, err := s.qzbd("check", d.image)
				if err != nil {
					return err
				}
				s.print(out)
			}
			return nil
		}},
		{"Attach them again: write pointers are where they were, open zones are closed now.", func() error {
			for _, d := range all {
				if err := s.attach(d); err != nil {
					return err
				}
			}
			again, err := s.run("blkzone", "report", example.node)
			if err != nil {
				return err
			}
			s.print(again)
			if want := strings.ReplaceAll(zones, "zcond: 2(oi)", "zcond: 4(cl)"); again != want {
				return fmt.Errorf("the zones are not what they were; want\n%s", want)
			}
			return nil
		}},
		{"Everything that was written is there.", func() error {
			now, err := s.sum(example.node, hashed)
			if err != nil {
				return err
			}
			if now != sum {
				return fmt.Errorf("sha256 of %s was %s and is %s", example.image, sum, now)
			}
			s.print(fmt.Sprintf("what fio wrote: sha256 %.16s…, as before\n", now))
			for _, d := range []*disk{f2fs, btrfs} {
				if err := s.compare(d, trees[d]); err != nil {
					return err
				}
			}
			return nil
		}},
		{"Detach them for good.", func() error {
			for _, d := range all {
				if err := s.detach(d, d.node); err != nil {
					return err
				}
			}
			return nil
		}},
	} {
		if err := s.play(step); err != nil {
			return err
		}
	}
	return nil
}
