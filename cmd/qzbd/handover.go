package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/systemd"
	"github.com/qzbd/qzbd/ublk"
)

// An upgrade is a recovery within one process. The server makes durable what it
// has, leaves the device, closes the image and becomes the new program by
// execve(2), which then goes on as after a death. So the process keeps its
// number, which a service manager knows it by, and the image its lock, whose open
// file description is inherited. Whatever goes wrong after the device was left
// ends the process, and the device waits for qzbd recover.

// upgradeOrder is what POST /upgrade takes.
type upgradeOrder struct {
	Program string `json:"program"` // absolute path
	Version string `json:"version"` // that it says it is of

	image int // descriptor that it is to inherit
}

// handover is what the old program tells the new one, in the environment.
type handover struct {
	Image int    `json:"image"` // descriptor of the locked image
	Left  int64  `json:"left"`  // when its users began to wait, CLOCK_BOOTTIME in nanoseconds
	From  string `json:"from"`  // version of the old program
}

const (
	handoverEnv = "QZBD_HANDOVER"
	// deviceWaits is the exit status of a server that something is wrong with and
	// whose device waits: unlike after 1, to start another one helps.
	deviceWaits = 3
	// upgradeWait bounds what comes before the device is left, and how long the
	// whole is waited for.
	upgradeWait = 10 * time.Minute
)

// boottime returns CLOCK_BOOTTIME in nanoseconds, which two programs agree on.
func boottime() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // there is no machine without it
	return t.Nano()
}

// upgradeOrdered answers POST /upgrade: the server goes on, for the reason given,
// or is about to become the program.
func (srv *server) upgradeOrdered(o *attachOptions, w http.ResponseWriter, r *http.Request) {
	var order upgradeOrder
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&order); err != nil {
		http.Error(w, "the order is not understood: "+err.Error(), http.StatusBadRequest)
		return
	}
	if !srv.upgrading.TryLock() {
		http.Error(w, "another upgrade is under way", http.StatusConflict)
		return
	}
	answer := http.NewResponseController(w)
	_ = answer.SetWriteDeadline(time.Now().Add(upgradeWait))
	ctx, cancel := context.WithTimeout(r.Context(), upgradeWait)
	defer cancel()
	if err := srv.prepareUpgrade(ctx, o, &order); err != nil {
		srv.upgrading.Unlock()
		srv.control.log.Warn("not upgraded", zap.String("program", order.Program), zap.Error(err))
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Length", "0") // so that it is whole when it is flushed
	w.WriteHeader(http.StatusAccepted)
	_ = answer.Flush() // who does not wait for it sees the record
	srv.upgrades <- order
}

// prepareUpgrade finds out what is in the way while the device is served, and
// leaves little to do for the time when it is not.
func (srv *server) prepareUpgrade(ctx context.Context, o *attachOptions, order *upgradeOrder) error {
	if err := srv.canBeLeft(); err != nil {
		return fmt.Errorf("it cannot be left to another program, %w", err)
	}
	if err := srv.try(ctx, o, order); err != nil {
		return err
	}
	if err := srv.image.Round(); err != nil && !errors.Is(err, qcow2.ErrFailed) {
		return err
	}
	// The lock belongs to the open file description, which this keeps open.
	var err error
	if order.image, err = unix.FcntlInt(srv.file.Fd(), unix.F_DUPFD, readyFD+1); err != nil {
		return fmt.Errorf("duplicate the image's descriptor: %w", err)
	}
	return nil
}

// canBeLeft says why nobody could go on with the device, nil if somebody can.
func (srv *server) canBeLeft() error {
	if srv.journal == nil {
		return errors.New("it was attached with --no-recovery")
	}
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if _, err := os.Lstat(srv.state.journalPath()); err != nil {
		return fmt.Errorf("somebody has taken away its journal (%w)", err)
	}
	return nil
}

// try has the program say whether it could take over, from where the server is:
// a program that this process cannot see or start, or that cannot read the record,
// must be found out while the device is served.
func (srv *server) try(ctx context.Context, o *attachOptions, order *upgradeOrder) error {
	if !filepath.IsAbs(order.Program) {
		return fmt.Errorf("%q is no absolute path", order.Program)
	}
	cmd := exec.CommandContext(ctx, order.Program, srv.successorArgs(o)...)
	cmd.Env = append(os.Environ(), backgroundEnv+"="+tryRole)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	var says, complains bytes.Buffer
	cmd.Stdout, cmd.Stderr = &says, &complains
	err := cmd.Run()
	first, _, _ := strings.Cut(strings.TrimSpace(complains.String()), "\n")
	switch have, want := strings.TrimSpace(says.String()), "qzbd "+order.Version; {
	case err != nil && first != "":
		return fmt.Errorf("%s cannot take over: %s", order.Program, strings.TrimPrefix(first, "qzbd: "))
	case err != nil:
		return fmt.Errorf("the server cannot start %s: %w", order.Program, err)
	case have != want:
		return fmt.Errorf("where the server runs, %s is another program: it says %q instead of %q", order.Program, have, want)
	}
	return nil
}

// successorArgs are the arguments of the next program.
func (srv *server) successorArgs(o *attachOptions) []string {
	next := *o
	srv.mu.Lock()
	defer srv.mu.Unlock()
	next.id = srv.state.ID
	return next.args(srv.state.Image)
}

// tryTakeOver is the new program's side of try.
func (o *attachOptions) tryTakeOver() error {
	s, err := readState(o.id)
	if err == nil {
		err = s.readable()
	}
	if err == nil {
		fmt.Println("qzbd " + version)
	}
	return err
}

// readable says why this program cannot go on with the device of a record.
func (s *state) readable() error {
	var o attachOptions
	if err := o.takeOver(s); err != nil {
		return err
	}
	return s.checkJournal()
}

// become leaves the device and makes this process the program of the order. It
// returns only when that went wrong.
func (srv *server) become(dev *ublk.Device, o *attachOptions, order *upgradeOrder) error {
	srv.log.Info("upgrading: leaving the device to another program", zap.String("program", order.Program),
		zap.String("from", version), zap.String("to", order.Version))
	handed, err := json.Marshal(handover{Image: order.image, Left: boottime(), From: version})
	if err != nil {
		return err
	}
	if err := srv.leave(dev); err != nil {
		return err
	}
	// Set, not appended: of two the first counts.
	if err := errors.Join(os.Setenv(backgroundEnv, upgradeRole), os.Setenv(handoverEnv, string(handed))); err != nil {
		return err
	}
	argv := append([]string{order.Program}, srv.successorArgs(o)...)
	err = syscall.Exec(order.Program, argv, os.Environ())
	return fmt.Errorf("execute %s: %w", order.Program, err)
}

// leave ends the service and closes the image, and leaves device, record and
// journal to the next server. Its error says that the device was not left in
// order, which that will mend. An image that cannot be closed is a failed one.
func (srv *server) leave(dev *ublk.Device) error {
	if err := dev.Leave(context.Background()); err != nil {
		return err
	}
	err := srv.closeImage()
	if err == nil {
		return nil
	}
	srv.log.Error("image not closed in order", zap.Error(err))
	srv.mu.Lock()
	defer srv.mu.Unlock()
	if srv.state.Failure == "" {
		srv.state.Failure = err.Error()
	}
	return srv.state.save()
}

// attachUpgraded is the new program's side of become.
func attachUpgraded(o *attachOptions) error {
	handed := os.Getenv(handoverEnv)
	// The next program gets its own.
	if err := errors.Join(os.Unsetenv(handoverEnv), os.Unsetenv(backgroundEnv)); err != nil {
		return err
	}
	o.handover = new(handover)
	if err := json.Unmarshal([]byte(handed), o.handover); err != nil {
		return fmt.Errorf("%s=%q is no handover: %w", handoverEnv, handed, err)
	}
	syscall.CloseOnExec(o.handover.Image)
	image := os.NewFile(uintptr(o.handover.Image), o.image)
	ready := false
	// stderr is where the old program logged.
	err := serve(o, image, newLogger(o.logLevel, os.Stderr, systemd.JournalOnStderr()), func(*state) error {
		ready = true
		return nil
	})
	if err != nil && !ready {
		err = &exitError{code: deviceWaits, err: fmt.Errorf("%w: the device waits for `qzbd recover`", err)}
	}
	return err
}
