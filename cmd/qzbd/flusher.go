package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// A kernel that runs out of memory writes dirty pages back to have some, also
// those of the device. If its server then waited for memory, both would wait for
// ever. PR_SET_IO_FLUSHER (prctl(2)) says of a thread that its allocations must
// not wait for I/O, and that it is not to be slowed down for the dirty pages of
// others. A thread hands that on to those that it starts, also across exec(2): so
// a server is a program that was started by a flusher, and all its threads are,
// those of the Go runtime among them.

// flush makes the calling thread a flusher; the goroutine has to stay on it.
func flush() error {
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("tell the kernel that the server writes its dirty pages back (needs CAP_SYS_RESOURCE): %w", err)
	}
	return nil
}

// flushes reports whether the calling thread is a flusher.
func flushes() bool {
	set, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
	return err == nil && set == 1
}

// becomeFlusher starts this program again, in the same process, unless all its
// threads are flushers. Nothing must have been opened that is to be closed in
// order. It returns only when it is one, or with what is in the way.
func becomeFlusher() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if flushes() {
		return nil
	}
	if err := flush(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return fmt.Errorf("start %s again: %w", self, syscall.Exec(self, os.Args, os.Environ()))
}

// startFlusher starts a server that need not start itself again.
func startFlusher(cmd *exec.Cmd) error {
	runtime.LockOSThread() // for good: others have no use for a thread like that
	_ = flush()            // the server says what is in the way
	return cmd.Start()
}
