package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/qzbd/qzbd/zns"
)

// slowLog takes nothing before it is told to go on.
type slowLog struct {
	strings.Builder
	begun, goOn chan struct{}
	held        bool
}

func (l *slowLog) Write(p []byte) (int, error) {
	if !l.held {
		l.held = true
		close(l.begun)
		<-l.goOn
	}
	return l.Builder.Write(p)
}

func TestATraceNeverWaitsForItsLogAndCountsWhatItDrops(t *testing.T) {
	log := &slowLog{begun: make(chan struct{}), goOn: make(chan struct{})}
	tr := startZoneTrace(1<<20, newLogger("info", log, false))
	event := func(i int) zns.Event {
		return zns.Event{Zone: uint32(i), From: zns.CondEmpty, To: zns.CondImpOpen, WP: uint64(i)<<20 + 512, Open: 1, Active: 2}
	}
	tr.add(event(0))
	<-log.begun // the log hangs, with the first line in its hands
	for i := range traceQueue + 100 {
		tr.add(event(1 + i))
	}
	if n := testing.AllocsPerRun(100, func() { tr.add(event(1)) }); n != 0 {
		t.Errorf("%v allocations per event, want 0", n)
	}
	dropped := tr.dropped.Load()
	close(log.goOn)
	tr.close()
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if want := 1 + traceQueue + 1; len(lines) != want || dropped != 100+101 {
		t.Errorf("%d lines and %d events dropped, want %d and 201", len(lines), dropped, want)
	}
	if !strings.Contains(log.String(), fmt.Sprintf(`{"dropped": %d}`, dropped)) {
		t.Error("no line says how many events were dropped")
	}
	if !strings.HasSuffix(lines[0], `info zone {"zone": 0, "from": "empty", "to": "implicit-open", "wp": 512, "written": 512, "open": 1, "active": 2}`) {
		t.Errorf("a line is %s", lines[0])
	}
}
