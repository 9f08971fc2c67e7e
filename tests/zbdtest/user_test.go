//go:build kernel

package zbdtest

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// This program on a device, as its users start it.
func start(t *testing.T, node string, args ...string) (output string, code int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "QZBD_ZBD_DEVICE="+node)
	out, _ := cmd.CombinedOutput() // the exit status says it
	return string(out), cmd.ProcessState.ExitCode()
}

func TestADeviceIsOnlyTestedIfItsOwnerSaysSo(t *testing.T) {
	node := makeNullBlk(t, nullBlk{size: 64, zone: 4, capacity: 4, block: 4096, queues: 1})
	d, err := OpenBlockDevice(node)
	if err != nil {
		t.Fatal(err)
	}
	want := painted(1, 0, 65536)
	if err := d.Write(0, want, true); err != nil {
		t.Fatal(err)
	}
	out, code := start(t, node, "--destroy-data") // while it is open here
	if code == 0 || !strings.Contains(out, node+" is in use") {
		t.Errorf("on a device that is held: exit status %d: %s", code, out)
	}
	d.Close()

	out, code = start(t, node)
	if code == 0 || !strings.Contains(out, "--destroy-data") || !strings.Contains(out, "16 zones") || !strings.Contains(out, rules()[0].name) {
		t.Errorf("without the flag: exit status %d: %s", code, out)
	}
	if d, err = OpenBlockDevice(node); err != nil {
		t.Fatal(err)
	}
	got := aligned(int64(len(want)))
	if err := d.Read(0, got); err != nil {
		t.Fatal(err)
	}
	if diff := differ(0, got, want); diff != "" {
		t.Errorf("without the flag, it was changed: %s", diff)
	}
	d.Close()

	name := "TestTheDeviceKeepsToTheRules/" + strings.ReplaceAll(rules()[0].name, " ", "_")
	out, code = start(t, node, "--destroy-data", "-test.v", "-test.run=^"+name+"$")
	if code != 0 || !strings.Contains(out, "--- PASS: "+name) {
		t.Errorf("with the flag: exit status %d: %s", code, out)
	}
}

func TestWhatIsNoZonedBlockDeviceIsRefused(t *testing.T) {
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	node := makeNullBlk(t, nullBlk{size: 64, block: 4096, queues: 1})
	for path, words := range map[string]string{
		node: "is not host-managed", file: "is no block device", "/dev/null": "is no block device", "/dev/nothing": unix.ENOENT.Error(),
	} {
		if out, code := start(t, path, "--destroy-data"); code == 0 || !strings.Contains(out, path) || !strings.Contains(out, words) {
			t.Errorf("%s: exit status %d: %s", path, code, out)
		}
	}
}
