package guest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ports are the ways out of the machine.
type ports struct {
	stdout, stderr, events *os.File
}

func (p *ports) open() error {
	for _, port := range []struct {
		nr   int
		file **os.File
	}{{PortStdout, &p.stdout}, {PortStderr, &p.stderr}, {PortEvents, &p.events}} {
		name := fmt.Sprintf("/dev/vport0p%d", port.nr)
		if err := waitFor(name); err != nil {
			return err
		}
		// Blocking on purpose: a write returns when the host has the bytes.
		fd, err := syscall.Open(name, syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		*port.file = os.NewFile(uintptr(fd), name)
	}
	return nil
}

func (p *ports) event(word, text string) {
	if p.events != nil {
		fmt.Fprintln(p.events, strings.TrimSpace(word+" "+strings.ReplaceAll(text, "\n", " ")))
	}
}

// Grace periods around the end of a command.
const (
	graceQuit  = 5 * time.Second // from SIGQUIT (Go prints its stacks) to SIGKILL
	graceDrain = 2 * time.Second // for output held open by what the command left behind
)

// runJob runs the command to its end and returns its exit status, 128+n when
// signal n ended it.
func runJob(job *Job, p *ports) (int, error) {
	setenv(job.Env)
	path, err := exec.LookPath(job.Argv[0])
	if err != nil {
		fmt.Fprintf(p.stderr, "%v\n", err)
		return 127, nil
	}
	dir := job.Dir
	if _, err := os.Stat(dir); err != nil {
		dir = "/tmp"
	}

	// The command gets pipes, not the ports: a port can be opened only once,
	// and "echo >/dev/stderr" opens it again.
	var drained sync.WaitGroup
	pipe := func(port *os.File) (*os.File, error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		drained.Go(func() { io.Copy(port, r) })
		return w, nil
	}
	stdout, err := pipe(p.stdout)
	if err != nil {
		return 0, err
	}
	stderr, err := pipe(p.stderr)
	if err != nil {
		return 0, err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec(path, job.Argv, &syscall.ProcAttr{
		Dir:   dir,
		Env:   job.Env,
		Files: []uintptr{null.Fd(), stdout.Fd(), stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		fmt.Fprintf(p.stderr, "%s: %v\n", path, err)
		return 126, nil
	}
	stdout.Close()
	stderr.Close()

	limit := watch(pid, job.Timeout, p)
	status, err := reap(pid)
	if limit.stop() {
		status = ExitTimeout
	}
	done := make(chan struct{})
	go func() { drained.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(graceDrain):
	}
	return status, err
}

// reap collects every process that ends, as the first process of a machine
// must, until pid is among them.
func reap(pid int) (int, error) {
	for {
		var ws syscall.WaitStatus
		got, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case got == pid && ws.Exited():
			return ws.ExitStatus(), nil
		case got == pid && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		}
	}
}

// limit is the time limit of the command.
type limit struct {
	mu      sync.Mutex
	expired bool
	timer   *time.Timer
}

// watch ends the session of pid when its time is over, after everything that
// helps to understand why has been asked for: the stacks of Go programs and
// the kernel's list of blocked tasks.
func watch(pid int, d time.Duration, p *ports) *limit {
	l := new(limit)
	l.timer = time.AfterFunc(d, func() {
		l.mu.Lock()
		l.expired = true
		l.mu.Unlock()
		fmt.Fprintf(p.stderr, "\nvm: time limit of %v reached, sending SIGQUIT\n", d)
		os.WriteFile("/proc/sysrq-trigger", []byte("w"), 0)
		syscall.Kill(-pid, syscall.SIGQUIT)
		time.Sleep(graceQuit)
		syscall.Kill(-pid, syscall.SIGKILL)
	})
	return l
}

// stop reports whether the limit was reached.
func (l *limit) stop() bool {
	l.timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.expired
}

func setenv(env []string) {
	for _, e := range env {
		if k, v, ok := strings.Cut(e, "="); ok {
			os.Setenv(k, v)
		}
	}
}

// saveDmesg leaves the kernel's log in the shared directory.
func saveDmesg() error {
	const readAll, sizeBuffer = 3, 10 // syslog(2)
	n, err := syscall.Klogctl(sizeBuffer, nil)
	if err != nil {
		return fmt.Errorf("dmesg: %w", err)
	}
	buf := make([]byte, n)
	if n, err = syscall.Klogctl(readAll, buf); err != nil {
		return fmt.Errorf("dmesg: %w", err)
	}
	for _, dir := range []string{runDir + "/share", shareDir} {
		if err = os.WriteFile(filepath.Join(dir, DmesgFile), buf[:n], 0o644); err == nil {
			return nil
		}
	}
	return fmt.Errorf("dmesg: %w", err)
}
