package ublk

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/qzbd/qzbd/zns"
)

func TestWhatCanBeRecovered(t *testing.T) {
	const mark = 7
	for what, c := range map[string]struct {
		info Info
		mark uint64
		want error
	}{
		"quiesced":           {Info{State: StateQuiesced, Features: recovery, Mark: mark}, mark, nil},
		"alive":              {Info{State: StateLive, Features: recovery, Mark: mark, PID: os.Getppid()}, mark, ErrAlive},
		"an earlier program": {Info{State: StateLive, Features: recovery, Mark: mark, PID: os.Getpid()}, mark, errDying},
		"dying":              {Info{State: StateLive, Features: recovery, Mark: mark, PID: -1}, mark, errDying},
		"stopped":            {Info{State: StateDead, Features: recovery, Mark: mark}, mark, ErrLost},
		"fails I/O":          {Info{State: StateFailIO, Features: recovery, Mark: mark}, mark, ErrLost},
		"without recovery":   {Info{State: StateLive, Mark: mark}, mark, ErrLost},
		"without reissue":    {Info{State: StateQuiesced, Features: fUserRecovery, Mark: mark}, mark, ErrLost},
		"foreign":            {Info{State: StateQuiesced, Features: recovery, Mark: mark + 1}, mark, ErrForeign},
		"nobody's, no mark":  {Info{State: StateQuiesced, Features: recovery}, 0, ErrForeign},
		"alive, but foreign": {Info{State: StateLive, Features: recovery, Mark: 1, PID: os.Getpid()}, mark, ErrForeign},
	} {
		if err := recoverable(c.info, c.mark); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
}

func TestParametersThatDifferAreNamed(t *testing.T) {
	g := toyGeometry(8, 1, mib, mib)
	c := Config{}.withDefaults()
	want, err := deviceParams(c, g)
	if err != nil {
		t.Fatal(err)
	}
	have := want
	have.Types |= paramDevt // the kernel's own
	have.Devt.CharMajor = 240
	if err := sameParams(have, want); err != nil {
		t.Errorf("the same: %v", err)
	}
	for word, change := range map[string]func(*zns.Geometry, *Config){
		"16384 sectors and the target 32768":         func(g *zns.Geometry, _ *Config) { g.NrZones, g.Size = 16, 16*mib },
		"2048 sectors per zone and the target 4096":  func(g *zns.Geometry, _ *Config) { g.NrZones, g.ZoneSize = 4, 2*mib },
		"9 bits of a block's size and the target 12": func(g *zns.Geometry, _ *Config) { g.BlockSize = 4096 },
		"active zones": func(g *zns.Geometry, _ *Config) { g.MaxActive = 3 },
		"open zones":   func(g *zns.Geometry, _ *Config) { g.MaxOpen = 3 },
		"append":       func(g *zns.Geometry, _ *Config) { g.MaxAppend = 4096 },
		"read-only":    func(_ *zns.Geometry, c *Config) { c.ReadOnly = true },
		"parameters":   func(_ *zns.Geometry, c *Config) { c.MaxIO = 2 * mib },
	} {
		g, c := g, c
		change(&g, &c)
		other, err := deviceParams(c, g)
		if err != nil {
			t.Fatal(err)
		}
		if err := sameParams(want, other); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", word, err)
		}
	}
}

// TestALeavingQueueFinishesAndBeginsNothing leaves with a flush in the target's
// hands and another request on its way.
func TestALeavingQueueFinishesAndBeginsNothing(t *testing.T) {
	x := newToy(t, 4, 1, mib, mib)
	x.block = make(chan struct{})
	b := newBench(t, x, x.file, 4, mib)
	b.live = 4
	b.give(0, opFlush, 1<<64-1, 0)
	b.leave()
	b.give(1, opWrite, zoneS, 8)
	close(x.block)
	if err := b.loop(); err != nil {
		t.Fatal(err)
	}
	if a, ok := b.answers[0]; !ok || a != (answer{}) {
		t.Errorf("the flush in flight: %+v, answered: %v", a, ok)
	}
	if _, ok := b.answers[1]; ok || x.calls[zns.OpWrite] != 0 {
		t.Error("a request that came after was begun")
	}
}
