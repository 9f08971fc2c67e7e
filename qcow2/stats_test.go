package qcow2

import (
	"errors"
	"strings"
	"testing"
)

func TestStatsSayWhatRoundsHaveDone(t *testing.T) {
	f, im := fresh(t, small, Options{})
	allocated := im.Stats().Allocated
	grow(t, im, 1, 4096, 512)
	grow(t, im, 2, 512, 512)
	s := im.Stats()
	if s.Rounds != (RoundStats{}) || s.Allocated <= allocated || s.Allocated != im.Allocated() {
		t.Errorf("before a round: %+v", s)
	}
	must(t, im.Round())
	must(t, im.Round())
	s = im.Stats()
	if r := s.Rounds; r.Rounds != 2 || r.Flushes != 2 || r.Unasked != 0 || r.Failed != 0 || r.Pointers != 2 ||
		r.MetaBytes != sectorSize || r.Time <= 0 || r.Longest <= 0 || r.Longest > r.Time {
		t.Errorf("two rounds: %+v", r)
	}
	before := s
	must(t, im.Reset([]uint32{1}))
	s = im.Stats()
	if gone := before.Allocated - s.Allocated; gone <= 0 || s.Quarantined <= 0 || s.Quarantined > gone {
		t.Errorf("a reset has taken %d bytes out of use, and %d are in quarantine", gone, s.Quarantined)
	}
	if s.Rounds.MetaBytes != before.Rounds.MetaBytes+sectorSize {
		t.Errorf("the reset's pointer is not counted: %+v", s.Rounds)
	}
	must(t, im.syncer.drain())
	must(t, im.syncer.drain())
	if s = im.Stats(); s.Quarantined != 0 || s.Rounds.Unasked != 2 || s.Failure != "" {
		t.Errorf("after two more rounds: %+v", s)
	}

	fault := errors.New("the disk is gone")
	f.mu.Lock()
	f.onOp = func(op string, _, _ int64) error {
		if op == "sync" {
			return fault
		}
		return nil
	}
	f.mu.Unlock()
	grow(t, im, 2, 512, 512)
	if err := im.Round(); !errors.Is(err, fault) {
		t.Fatal(err)
	}
	if s = im.Stats(); s.Rounds.Failed != 1 || !strings.Contains(s.Failure, fault.Error()) {
		t.Errorf("after a failure: %+v", s)
	}
}

func TestStatsCountTablesThatAreRead(t *testing.T) {
	f, im := fresh(t, small, Options{})
	grow(t, im, 1, 512, 512)
	must(t, im.Close())
	next := open(t, f.cut(nil), Options{})
	t.Cleanup(next.Abandon)
	for range 3 {
		_, err := next.MapSlow(nil, small.zoneSize, 512, false)
		must(t, err)
	}
	if n := next.Stats().TableReads; n != 1 {
		t.Errorf("%d pieces of tables were read for one mapping", n)
	}
}

func TestStatsCountTheSyncsOfAFile(t *testing.T) {
	f := openOS(t, lockFile(t))
	must(t, f.Sync())
	if n, took := f.counts.syncs.Load(), f.counts.time.Load(); n != 1 || took <= 0 {
		t.Errorf("%d syncs in %d ns", n, took)
	}
	must(t, f.Close())
	if err := f.Sync(); err == nil || f.counts.failed.Load() != 1 {
		t.Errorf("sync of a closed file: %v, %d failed", err, f.counts.failed.Load())
	}
}
