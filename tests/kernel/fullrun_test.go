//go:build kernel

package kernel

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// crowdRun leaves no room in /run.
func (h *host) crowdRun() {
	h.t.Helper()
	size := func(s string) error { return unix.Mount("", "/run", "", unix.MS_REMOUNT, "size="+s) }
	var st unix.Statfs_t
	if err := unix.Statfs("/run", &st); err != nil {
		h.t.Fatal(err)
	}
	if err := size(fmt.Sprint((st.Blocks - st.Bfree) * uint64(st.Bsize))); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := size("50%"); err != nil {
			h.t.Error(err)
		}
	})
}

// A full /run keeps no server from going on with a device, and nobody from
// knowing.
func TestAFullRunStopsNoServer(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	d := im.attach("--queues", queues())
	another := h.another()
	k := d.open()
	k.write(1, 0, 69632)
	h.crowdRun()
	d.upgraded(another)
	d.upgraded(qzbd)
	for i := range 3 {
		d.killed()
		d.recovered()
		if s := d.state(); s != "live" {
			t.Errorf("recovery %d: list says %q", i, s)
		}
	}
	says(t, h.refused(qzbd, "recover", d.node), "nothing to recover")
	says(t, h.refused(qzbd, "attach", im.path), d.node)
	k.holds(1, 0, 69632)
	k.close()
	d.detach()
	im.check()
}
