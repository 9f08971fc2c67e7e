package main

import (
	"os"
	"os/exec"
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

func TestProcessStartReadsTheOwnProcess(t *testing.T) {
	if n, err := processStart(os.Getpid()); err != nil || n == 0 {
		t.Errorf("start %d, %v", n, err)
	}
}
