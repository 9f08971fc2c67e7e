package ublk

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/qzbd/qzbd/zns"
)

func TestEveryErrorHasItsErrno(t *testing.T) {
	for _, c := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{zns.ErrInvalid, syscall.EIO},
		{zns.ErrBoundary, syscall.EIO},
		{zns.ErrNotAtWP, syscall.EIO},
		{zns.ErrFull, syscall.EIO},
		{zns.ErrReadOnly, syscall.EIO},
		{zns.ErrOffline, syscall.EIO},
		{zns.ErrConventional, syscall.EIO},
		{zns.ErrAppendSize, syscall.EIO},
		{zns.ErrOpenLimit, syscall.ETOOMANYREFS},
		{zns.ErrActiveLimit, syscall.EOVERFLOW},
		{zns.ErrAborted, syscall.EIO},
		{zns.ErrDeviceRO, syscall.EIO},
		{zns.ErrUnsupported, syscall.EOPNOTSUPP},
		{syscall.ENOSPC, syscall.ENOSPC},
		{syscall.EDQUOT, syscall.ENOSPC},
		{syscall.EFBIG, syscall.ENOSPC},
		// Never what the kernel would take for something else.
		{syscall.EAGAIN, syscall.EIO},
		{syscall.ENODEV, syscall.EIO},
		{syscall.EBUSY, syscall.EIO},
		{syscall.EIO, syscall.EIO},
		{fmt.Errorf("%w: %w", syscall.EIO, syscall.ENOSPC), syscall.EIO}, // an image that a full disk has failed
		{errors.New("anything"), syscall.EIO},
	} {
		if got := errnoOf(c.err); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
		if c.err == nil {
			continue
		}
		if got := errnoOf(fmt.Errorf("wrapped: %w", c.err)); got != c.want {
			t.Errorf("wrapped %v: %v, want %v", c.err, got, c.want)
		}
	}
}

func TestMissingFeaturesAreNamed(t *testing.T) {
	all := fUserCopy | fZoned | fCmdIoctlEncode
	if err := all.Check(); err != nil {
		t.Error(err)
	}
	if err := recovery.CheckRecovery(); err != nil {
		t.Errorf("recovery: %v", err)
	}
	if err := fUserRecovery.CheckRecovery(); err == nil || !strings.Contains(err.Error(), "lacks USER_RECOVERY_REISSUE (Linux 6.1)") {
		t.Errorf("recovery without reissue: %v", err)
	}
	err := (all &^ fZoned).Check()
	if err == nil || !strings.Contains(err.Error(), "ZONED (Linux 6.6)") || strings.Contains(err.Error(), "USER_COPY") {
		t.Errorf("without ZONED: %v", err)
	}
	if got := (all | 1<<40).String(); got != "CMD_IOCTL_ENCODE|USER_COPY|ZONED|0x10000000000" {
		t.Error(got)
	}
	for i, f := range FeatureTable {
		if f.Bit != 1<<i {
			t.Errorf("row %d is bit %#x", i, uint64(f.Bit))
		}
	}
}

func TestWhyThereIsNoUblk(t *testing.T) {
	for _, c := range []struct {
		err, loaded error
		euid        int
		want        string
	}{
		{syscall.EACCES, nil, 1000, "run as root"},
		{syscall.ENOENT, nil, 1000, "run as root"},
		{syscall.EPERM, nil, 0, "run as root"},
		{syscall.ENOENT, errors.New("modprobe: FATAL: not found"), 0, "CONFIG_BLK_DEV_UBLK"},
		{syscall.ENOENT, nil, 0, "devtmpfs"},
		{syscall.ENXIO, nil, 0, "modprobe ublk_drv"},
		{syscall.EIO, nil, 0, "input/output error"},
	} {
		err := explainControl(c.err, c.loaded, c.euid)
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v", c.err, err)
		}
	}
}

func TestWhyThereIsNoDevice(t *testing.T) {
	for err, want := range map[syscall.Errno]string{
		syscall.EEXIST: "device 17 exists already: choose another id",
		syscall.EPERM:  "root",
		syscall.EINVAL: "CONFIG_BLK_DEV_ZONED",
		syscall.ENOMEM: "depth 128",
	} {
		got := explainAdd(Config{ID: 17}.withDefaults(), err)
		if !errors.Is(got, err) || !strings.Contains(got.Error(), want) || strings.Contains(got.Error(), "\n") {
			t.Errorf("%v: %v", err, got)
		}
	}
}

func TestLinesAboutFailuresAreLimited(t *testing.T) {
	var l limiter
	for i := range 3 * logBurst {
		if ok, _ := l.allow(); ok != (i < logBurst) {
			t.Fatalf("line %d: %v", i, ok)
		}
	}
	l.since = l.since.Add(-time.Second)
	if ok, dropped := l.allow(); !ok || dropped != 2*logBurst {
		t.Errorf("a second later: %v, %d unlogged", ok, dropped)
	}
}
