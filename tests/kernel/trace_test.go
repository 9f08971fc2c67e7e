//go:build kernel

package kernel

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// logged returns the lines of the server's log with a word, once there are as
// many of them as expected.
func (d *device) logged(word string, n int) []string {
	h := d.im.h
	h.t.Helper()
	var lines []string
	h.wait(fmt.Sprintf("%d lines with %q in the log", n, word), func() bool {
		b, err := os.ReadFile(d.logFile())
		if err != nil {
			h.t.Fatal(err)
		}
		lines = nil
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, word) {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		return len(lines) >= n
	})
	return lines
}

func TestTheZoneTraceHasALineForEveryChange(t *testing.T) {
	h := begin(t)
	d := h.create("a.qcow2", mixed+",zone.max_open_zones=1").attach("--trace", "zones")
	k := d.open()
	k.write(1, 0, 4096) // conventional: nothing to say
	k.write(1, 2*zlen, 4096)
	k.write(1, 3*zlen, 8192)
	k.must(blkFinishZone, k.zone(3))
	k.must(blkResetZone, k.zone(3))
	want := []string{
		fmt.Sprintf(`"zone": 2, "from": "empty", "to": "implicit-open", "wp": %d, "written": 0, "open": 1, "active": 1`, 2*zlen),
		fmt.Sprintf(`"zone": 2, "from": "implicit-open", "to": "implicit-open", "wp": %d, "written": 4096, "open": 1, "active": 1`, 2*zlen+4096),
		fmt.Sprintf(`"zone": 2, "from": "implicit-open", "to": "closed", "wp": %d, "written": 4096, "open": 0, "active": 1`, 2*zlen+4096),
		`"zone": 3, "from": "empty", "to": "implicit-open"`,
		`"zone": 3, "from": "implicit-open", "to": "implicit-open"`,
		fmt.Sprintf(`"zone": 3, "from": "implicit-open", "to": "full", "wp": %d, "written": %d, "open": 0, "active": 1`, 3*zlen+zcap, zcap),
		fmt.Sprintf(`"zone": 3, "from": "full", "to": "empty", "wp": %d, "written": 0, "open": 0, "active": 1`, 3*zlen),
	}
	got := d.logged(`"written":`, len(want))
	for i, line := range got {
		if i >= len(want) || !strings.Contains(line, want[i]) {
			t.Errorf("line %d: %s", i, line)
		}
	}
}

func TestVerboseLogsEveryRequest(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", mixed)
	d := im.attach("-v")
	k := d.open()
	k.write(1, 2*zlen, 8192)
	says(t, d.logged(`"op": "write"`, 1)[0], fmt.Sprintf(`"sector": %d`, 2*zlen/512), `"bytes": 8192`, `"result": 8192`)
	k.close()
	d.detach()
	s := im.serve("--verbose")
	k = s.open()
	k.write(1, 2*zlen+8192, 512)
	k.close()
	s.terminate()
	if !strings.Contains(s.stderr.String(), `"bytes": 512, "fua": false, "result": 512`) {
		t.Errorf("the server in the foreground logged\n%s", s.stderr.Bytes())
	}
}

func TestCompletionsKnowWhatIsAttached(t *testing.T) {
	h := begin(t)
	a, b := h.create("a.qcow2", mixed), h.create("b.qcow2", mixed)
	da, db := a.attach("--id", "3"), b.attach("--id", "5")
	complete := func(args ...string) string {
		t.Helper()
		return h.run(qzbd, append([]string{"__complete"}, args...)...)
	}
	says(t, complete("detach", ""), da.node+"\t"+a.path, db.node+"\t"+b.path)
	says(t, complete("detach", a.path[:5]), a.path+"\t"+da.node)
	says(t, complete("zones", "/dev/ublk"), da.node, db.node)
	ids := complete("attach", "--id", "")
	if says(t, ids, "0\n", "4\n", "6\n"); strings.Contains(ids, "3\n") || strings.Contains(ids, "5\n") {
		t.Errorf("numbers in use are offered: %q", ids)
	}
	if out := complete("detach", da.node, ""); strings.Contains(out, "/dev") {
		t.Errorf("detach offers a second device: %q", out)
	}
}
