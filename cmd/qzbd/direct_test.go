package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
)

func TestWhatDirectIOCannotDoIsRefusedWithAWayOut(t *testing.T) {
	for _, c := range []struct {
		needs qcow2.Direct
		block int
		size  int64 // of a cluster
		want  []string
	}{
		{qcow2.Direct{Offset: 512, Memory: 4, Block: 4096}, 512, 65536, nil},
		{qcow2.Direct{Offset: 4096, Memory: 512, Block: 4096}, 4096, 65536, nil},
		{qcow2.Direct{Offset: 512, Memory: 512, Block: 4096}, 512, 4096, nil},
		{qcow2.Direct{Offset: 4096, Memory: 512, Block: 4096}, 512, 65536, []string{"multiples of 4096", "--block-size 4096"}},
		{qcow2.Direct{Offset: 512, Memory: 4096, Block: 4096}, 512, 65536, []string{"memory aligned to 4096", "--block-size 4096"}},
		{qcow2.Direct{Offset: 65536, Memory: 4096, Block: 65536}, 4096, 65536, []string{"multiples of 65536", "attach it without --direct"}},
		{qcow2.Direct{Offset: 512, Memory: 4, Block: 4096}, 512, 2048, []string{"clusters of 2048", "attach it without --direct"}},
		{qcow2.Direct{Offset: 512, Memory: 4, Block: 65536}, 512, 4096, []string{"clusters of 4096", "(65536)"}},
	} {
		err := checkDirect("z.qcow2", c.needs, c.block, c.size, "attach it without --direct")
		if (err != nil) != (c.want != nil) {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q lacks %q", err, w)
			}
		}
		if c.needs.Offset == 65536 && strings.Contains(err.Error(), "--block-size") {
			t.Errorf("%q recommends what does not help", err)
		}
	}
}

func TestAFileSystemWithoutLocksTakesAWord(t *testing.T) {
	noLocks := fmt.Errorf("z.qcow2: %w: nothing would keep others away", qcow2.ErrNoLocks)
	started, err := processStart(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	writer := &state{PID: os.Getpid(), Started: started}
	reader := &state{PID: os.Getpid(), Started: started, ReadOnly: true}
	dead := &state{PID: os.Getpid(), Started: started + 1}
	for _, c := range []struct {
		o        attachOptions
		err      error
		attached []*state
		want     string // "" for none
	}{
		{attachOptions{}, nil, nil, ""},
		{attachOptions{}, noLocks, nil, "--no-lock"},
		{attachOptions{noLock: true}, noLocks, nil, ""},
		{attachOptions{noLock: true}, nil, nil, ""},
		// It is about missing locks, not about locks of others,
		{attachOptions{noLock: true}, qcow2.ErrInUse, nil, "in use"},
		// and our own servers are known without any.
		{attachOptions{noLock: true}, noLocks, []*state{writer}, "in use"},
		{attachOptions{noLock: true}, noLocks, []*state{reader}, "in use"},
		{attachOptions{noLock: true}, noLocks, []*state{dead}, ""},
		{attachOptions{noLock: true, readOnly: true}, noLocks, []*state{reader, reader}, ""},
		{attachOptions{noLock: true, readOnly: true}, noLocks, []*state{reader, writer}, "in use"},
	} {
		err := c.o.withoutLocks(c.err, func() []*state { return c.attached })
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v of %v with %d servers: %v, want %q", c.o, c.err, len(c.attached), err, c.want)
		}
	}
}
