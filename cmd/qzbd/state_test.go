package main

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
)

func TestAServerIsAliveOnlyWhileItsVeryProcessRuns(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started, err := processStart(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	s := &state{PID: cmd.Process.Pid, Started: started}
	if !s.alive() {
		t.Error("a running process is not alive")
	}
	if other := (&state{PID: s.PID, Started: started + 1}); other.alive() {
		t.Error("a process that started at another time is alive")
	}
	done := make(chan error)
	go func() { done <- cmd.Wait() }()
	if err := s.signalAndWait(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-done
	if s.alive() {
		t.Error("a process that was killed is alive")
	}
	if err := s.signalAndWait(syscall.SIGTERM); err != nil {
		t.Errorf("a process that is gone: %v", err)
	}
}

// A process that executes another program, as an upgrade does, is alive all the
// time.
func TestWhoIsKilledAndNotGoneIsDying(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if dying(pid) || dying(os.Getpid()) {
		t.Error("who lives is dying")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for !dying(pid) { // soon, until it is waited for
		runtime.Gosched()
	}
	cmd.Wait()
	if dying(pid) {
		t.Error("who is gone is still dying")
	}
}

func TestAServerIsAliveWhileItBecomesAnotherProgram(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=TestExecuteOnAndOn")
	cmd.Env = append(os.Environ(), "QZBD_TEST_EXECUTE=40")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &state{PID: cmd.Process.Pid}
	var err error
	if s.Started, err = processStart(s.PID); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		ps, err := cmd.Process.Wait()
		if err == nil && !ps.Success() {
			err = errors.New(ps.String())
		}
		done <- err
	}()
	looks := 0
	for ; len(done) == 0; looks++ {
		if !s.alive() && len(done) == 0 && syscall.Kill(s.PID, 0) == nil {
			// It may have ended, but then for good.
			if _, err := processStart(s.PID); err == nil {
				t.Fatalf("after %d looks it was not alive, and now it is", looks)
			}
		}
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	t.Logf("looked %d times", looks)
}

// TestExecuteOnAndOn is that process.
func TestExecuteOnAndOn(t *testing.T) {
	left, err := strconv.Atoi(os.Getenv("QZBD_TEST_EXECUTE"))
	if err != nil || left == 0 {
		return
	}
	t.Setenv("QZBD_TEST_EXECUTE", strconv.Itoa(left-1))
	failed := make(chan error)
	var execute func()
	execute = func() {
		runtime.LockOSThread()
		if syscall.Gettid() == os.Getpid() { // it would take nobody's place
			go execute()
			select {}
		}
		failed <- syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	go execute()
	t.Fatal(<-failed)
}

func TestProcessStartReadsTheOwnProcess(t *testing.T) {
	if n, err := processStart(os.Getpid()); err != nil || n == 0 {
		t.Errorf("start %d, %v", n, err)
	}
}

// A file that gets the number of one that was removed is another one.
func TestAnImageIsKnownByItsBirth(t *testing.T) {
	old := &state{Dev: 1, Ino: 2, Birth: 3}
	for _, c := range []struct {
		now  state
		same bool
	}{
		{state{Dev: 1, Ino: 2, Birth: 3}, true},
		{state{Dev: 1, Ino: 2, Birth: 4}, false},
		{state{Dev: 1, Ino: 2}, true}, // its file system does not say
		{state{Dev: 1, Ino: 4, Birth: 3}, false},
		{state{Dev: 5, Ino: 2, Birth: 3}, false},
	} {
		if err := old.sameImage(&c.now); (err == nil) != c.same || err != nil && !errors.Is(err, errOtherImage) {
			t.Errorf("%+v: %v", c.now, err)
		}
	}
}
