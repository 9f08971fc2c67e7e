//go:build kernel

package kernel

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// kill ends the server of d, which was attached with --no-recovery, as the
// kernel's out-of-memory killer would.
func (d *device) kill() {
	h := d.im.h
	h.t.Helper()
	d.killed()
	h.wait("the node goes with its server", func() bool {
		_, err := os.Stat(d.node)
		return errors.Is(err, os.ErrNotExist)
	})
	d.gone = true
}

func TestWhatWasFlushedOutlivesItsServer(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	d := im.attach("--no-recovery")
	k := d.open()
	k.write(1, 0, 65536)
	k.write(2, 3*zlen, 4096)
	k.sync()
	k.close()
	d.kill()
	if l := h.list(); len(l) != 1 || !strings.Contains(h.run(qzbd, "list"), "dead") {
		t.Errorf("list says %v", l)
	}

	// The next attach finds the leftovers, mends the image and shows the data.
	d = im.attach()
	if l := h.list(); len(l) != 1 {
		t.Errorf("list after the next attach says %v", l)
	}
	k = d.open()
	k.holds(1, 0, 65536)
	k.holds(2, 3*zlen, 4096)
	k.close()
	d.detach()
}

func TestDetachRemovesWhatADeadServerLeft(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	d := im.attach("--no-recovery")
	d.kill()
	h.run(qzbd, "detach", im.path)
	if l := h.list(); len(l) != 0 {
		t.Errorf("list says %v", l)
	}
	im.attach().detach() // clears the dirty bit
}

func TestTheNumberOfADeviceIsFreeOnlyWhenItsImageIsClosed(t *testing.T) {
	h := begin(t)
	// Closing takes longest with many zones mapped ahead in small clusters.
	a := h.create("a.qcow2", "size=1G,zone.size=4M,cluster_size=4K")
	b := h.create("b.qcow2", small)
	d := a.attach()
	k := d.open()
	for z := range int64(200) {
		k.write(uint64(z), z*4<<20, 4096)
	}
	k.close()
	done := make(chan result, 1)
	go func() { done <- h.try(qzbd, "detach", d.node) }()
	h.wait("the node goes", func() bool {
		_, err := os.Stat(d.node)
		return errors.Is(err, os.ErrNotExist)
	})
	other := b.attach()
	if r := <-done; r.code != 0 {
		t.Error(r)
	}
	d.gone = true
	if l := h.list(); len(l) != 1 {
		t.Errorf("list says %v", l)
	}
	other.detachBy(b.path)
}
