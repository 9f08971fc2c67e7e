package uring

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
)

// sysctlDisabled says who may use io_uring: 0 all, 1 a group, 2 nobody
// (Linux 6.6).
const sysctlDisabled = "/proc/sys/kernel/io_uring_disabled"

// opNeeded are the operations this package queues, with the kernel version
// that brings each.
var opNeeded = []struct {
	op          uint8
	name, since string
}{
	{opFsync, "FSYNC", "5.1"},
	{opPollAdd, "POLL_ADD", "5.1"},
	{opAsyncCancel, "ASYNC_CANCEL", "5.5"},
	{opRead, "READ", "5.6"},
	{opWrite, "WRITE", "5.6"},
	{opURingCmd, "URING_CMD", "5.19"},
}

// Probe reports in one sentence why io_uring cannot be used here, or nil.
func Probe() error {
	g, err := setup(4, 0)
	if err != nil {
		return explainSetup(err)
	}
	defer g.QueueExit()
	p, err := g.GetProbeRing()
	if err != nil {
		return fmt.Errorf("uring: this kernel does not list its io_uring operations (%w): use Linux 6.6 or newer", err)
	}
	return missing(p.IsSupported)
}

// missing names the operations that the kernel lacks.
func missing(has func(op uint8) bool) error {
	var lack []string
	for _, o := range opNeeded {
		if !has(o.op) {
			lack = append(lack, fmt.Sprintf("%s (Linux %s)", o.name, o.since))
		}
	}
	if lack == nil {
		return nil
	}
	return fmt.Errorf("uring: this kernel's io_uring lacks %s: use a newer kernel, or lift the restriction put on this process", strings.Join(lack, ", "))
}

// explainSetup turns io_uring_setup's errno into what to do about it.
func explainSetup(err error) error {
	state, _ := os.ReadFile(sysctlDisabled)
	return explain(err, strings.TrimSpace(string(state)))
}

// explain is explainSetup with the sysctl's value, "" when there is none.
func explain(err error, disabled string) error {
	switch {
	case errors.Is(err, syscall.EPERM) && disabled == "2":
		return fmt.Errorf("uring: io_uring is disabled (kernel.io_uring_disabled is 2): run `sysctl kernel.io_uring_disabled=0`: %w", err)
	case errors.Is(err, syscall.EPERM) && disabled == "1":
		return fmt.Errorf("uring: io_uring is disabled for this user (kernel.io_uring_disabled is 1): run as root, or `sysctl kernel.io_uring_disabled=0`: %w", err)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return fmt.Errorf("uring: io_uring is forbidden to this process, most likely by a seccomp filter of its container: allow io_uring_setup, io_uring_enter and io_uring_register there: %w", err)
	case errors.Is(err, syscall.ENOSYS):
		return fmt.Errorf("uring: this kernel has no io_uring: use Linux 6.6 or newer, built with CONFIG_IO_URING: %w", err)
	case errors.Is(err, syscall.ENOMEM):
		return fmt.Errorf("uring: no memory for a ring: raise the limit of locked memory (`ulimit -l`) or use a smaller queue depth: %w", err)
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("uring: too many open files for another ring: raise `ulimit -n`: %w", err)
	}
	return fmt.Errorf("uring: make a ring: %w", err)
}
