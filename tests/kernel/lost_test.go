//go:build kernel

package kernel

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What the host could not write to its disk between a death and the recovery is
// lost, and nobody goes on as if it were there: the image has failed (I8), and
// shows what was flushed.
func TestWhatTheDiskLostBeforeARecoveryIsMissed(t *testing.T) {
	h := begin(t)
	disk := h.moodyDisk()
	h.onFileSystem("ext4", disk.node)
	im := h.create("a.qcow2", mixed+",preallocation=full")
	d := im.attach("--sync-interval", "0")
	k := d.open()
	k.write(1, 2*zlen, 1<<20)
	k.sync()
	content, err := os.ReadFile(im.path)
	if err != nil {
		t.Fatal(err)
	}
	off := int64(strings.Index(string(content), string(pattern(1, 2*zlen, 65536))))
	if off < 0 {
		t.Fatal("the image does not hold what was written")
	}
	disk.failsAt(extentOf(t, im.path, off+1<<20), 65536)
	k.write(1, 2*zlen+1<<20, 65536) // to the page cache
	k.close()
	d.killed()
	h.run("sync") // has no way to say that it failed
	disk.well()
	d.recovered()
	if s := d.state(); s != "failed" {
		t.Errorf("after the recovery the image is %s", s)
	}
	says(t, h.try(qzbd, "list").stderr, "what was not flushed is lost")
	k = d.open()
	k.holds(1, 2*zlen, 1<<20)
	if _, err := k.tryRead(2*zlen+1<<20, 4096); !errors.Is(err, unix.EIO) {
		t.Errorf("read of what is lost: %v, want %v", err, unix.EIO)
	}
	k.close()
	if r := h.try(qzbd, "detach", d.node); r.code != 1 || !strings.Contains(r.stderr, "not in order") {
		t.Error(r)
	}
	d.gone = true
	d = im.attach()
	k = d.open()
	k.isIn(2, closed, 1<<20)
	k.holds(1, 2*zlen, 1<<20)
	k.zeros(2*zlen+1<<20, 65536)
	k.write(2, 2*zlen+1<<20, 65536)
	k.close()
	d.detach()
}
