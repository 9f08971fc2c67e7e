package ublk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/uring"
)

const controlPath = "/dev/ublk-control"

// openControl opens the driver's control node, loads the module if need be,
// and explains what is in the way.
func openControl() (fd int, err error) {
	if fd, err = unix.Open(controlPath, unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		return fd, nil
	}
	var loaded error
	if errors.Is(err, syscall.ENOENT) && os.Geteuid() == 0 {
		if loaded = modprobe(); loaded == nil {
			if fd, err = unix.Open(controlPath, unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
				return fd, nil
			}
		}
	}
	return -1, explainControl(err, loaded, os.Geteuid())
}

// modprobe loads the driver, with the program that the kernel itself uses for
// that and nothing of the caller's environment.
func modprobe() error {
	program := "/sbin/modprobe"
	if b, err := os.ReadFile("/proc/sys/kernel/modprobe"); err == nil && len(bytes.TrimSpace(b)) > 0 {
		program = string(bytes.TrimSpace(b))
	}
	cmd := exec.Command(program, "ublk_drv")
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	if line := strings.TrimSpace(string(bytes.TrimSpace(out))); line != "" {
		return errors.New(strings.ReplaceAll(line, "\n", "; "))
	}
	return err
}

// explainControl says why the control node did not open: err of open(2) and,
// if it was tried, what modprobe said.
func explainControl(err, loaded error, euid int) error {
	switch {
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), euid != 0:
		return fmt.Errorf("ublk: open %s: zoned devices need root: run as root (sudo): %w", controlPath, err)
	case errors.Is(err, syscall.ENOENT) && loaded != nil:
		return fmt.Errorf("ublk: there is no %s and `modprobe ublk_drv` failed (%v): use a kernel built with CONFIG_BLK_DEV_UBLK, Linux 6.6 or newer, and its modules: %w", controlPath, loaded, err)
	case errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("ublk: there is no %s though the module is loaded: mount devtmpfs on /dev, or pass the node into this container: %w", controlPath, err)
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return fmt.Errorf("ublk: %s has no driver behind it: run `modprobe ublk_drv`: %w", controlPath, err)
	}
	return fmt.Errorf("ublk: open %s: %w", controlPath, err)
}

// newControlRing makes a ring for control commands.
func newControlRing() (*uring.Ring, error) { return uring.New(controlEntries, uring.Wide) }

// controlEntries is room for the wake-up, a command and its cancellation.
const controlEntries = 4
