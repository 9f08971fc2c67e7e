//go:build machine

package vm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// boot runs a shell script in a machine.
func boot(t *testing.T, o Options, script string) (status int, stdout, stderr string, err error) {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir()) // where logs of failed runs would stay
	var out, errOut, log bytes.Buffer
	o.Stdout, o.Stderr, o.Log = &out, &errOut, &log
	status, err = Run(context.Background(), o, []string{"sh", "-c", script})
	t.Logf("log: %s", log.String())
	return status, out.String(), errOut.String(), err
}

func TestMachineRunsACommandOnEveryKernel(t *testing.T) {
	for _, series := range AllSeries {
		t.Run(string(series), func(t *testing.T) {
			dir := t.TempDir()
			status, stdout, stderr, err := boot(t, Options{
				Series: series, Out: dir, Scratch: "64M", Env: []string{"QZBD_X=a b"},
			}, `
				set -e
				uname -r; id -u; pwd; echo "$QZBD_X"
				modprobe null_blk zoned=1 memory_backed=1 gb=1 zone_size=64
				blkzone report -c 1 /dev/nullb0 | grep -o SEQ_WRITE_REQUIRED
				modprobe ublk_drv; test -c /dev/ublk-control
				for m in f2fs btrfs zonefs; do modprobe $m; done
				echo x >/etc/qzbd-vm-test; echo artifact >"$QZBD_VM_OUT/a"
				echo scratch >"$QZBD_VM_SCRATCH/f"; test "$(stat -f -c %T "$QZBD_VM_SCRATCH")" = ext2/ext3
				echo to stderr >/dev/stderr
				exit 7`)
			if err != nil || status != 7 {
				t.Fatalf("status %d, %v; stderr: %s", status, err, stderr)
			}
			lines := strings.Split(strings.TrimSpace(stdout), "\n")
			pwd, _ := os.Getwd()
			if len(lines) != 5 || !strings.HasPrefix(lines[0], string(series)+".") || lines[1] != "0" ||
				lines[2] != pwd || lines[3] != "a b" || lines[4] != "SEQ_WRITE_REQUIRED" {
				t.Errorf("stdout: %q", lines)
			}
			if stderr != "to stderr\n" {
				t.Errorf("stderr: %q", stderr)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "a")); string(b) != "artifact\n" {
				t.Errorf("artifact: %q, %v", b, err)
			}
			if _, err := os.Stat("/etc/qzbd-vm-test"); err == nil {
				t.Error("the guest wrote to the host's root")
			}
		})
	}
}

func TestMachineFailsWithItsKernel(t *testing.T) {
	status, _, _, err := boot(t, Options{}, `echo '<4>WARNING: CPU: 0 PID: 1 at made/up.c' >/dev/kmsg`)
	if status != ExitDmesg || !errors.Is(err, ErrDmesg) {
		t.Errorf("a warning: status %d, %v", status, err)
	}
	status, _, _, err = boot(t, Options{}, `echo c >/proc/sysrq-trigger; sleep 60`)
	if status != ExitMachine || !errors.Is(err, ErrDied) {
		t.Errorf("a panic: status %d, %v", status, err)
	}
}

func TestMachineEndsWhatIsLate(t *testing.T) {
	status, stdout, _, err := boot(t, Options{Timeout: 2 * time.Second}, `echo begun; exec sleep 1000`)
	if status != ExitTimeout || !errors.Is(err, ErrTimeout) || stdout != "begun\n" {
		t.Errorf("status %d, %v, stdout %q", status, err, stdout)
	}
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	began := time.Now()
	status, err = Run(ctx, Options{Log: t.Output()}, []string{"sleep", "1000"})
	if status != ExitMachine || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 20*time.Second {
		t.Errorf("cancelled: status %d, %v after %v", status, err, time.Since(began))
	}
}

// arrivals notes when lines come out of the machine.
type arrivals struct{ at []time.Time }

func (a *arrivals) Write(p []byte) (int, error) {
	for range bytes.Count(p, []byte("\n")) {
		a.at = append(a.at, time.Now())
	}
	return len(p), nil
}

// A guest whose seconds are too short runs into every time limit early. It
// measures its clock while it boots, so keep it from doing that undisturbed.
func TestMachineSecondsAreNotShorterThanOurs(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range runtime.GOMAXPROCS(0) {
		go func() {
			for ctx.Err() == nil {
			}
		}()
	}
	t.Setenv("TMPDIR", t.TempDir())
	var lines arrivals
	status, err := Run(context.Background(), Options{Stdout: &lines, Log: t.Output()},
		[]string{"sh", "-c", "echo; sleep 5; echo"})
	if status != 0 || err != nil || len(lines.at) != 2 {
		t.Fatalf("status %d, %v, %d lines", status, err, len(lines.at))
	}
	if d := lines.at[1].Sub(lines.at[0]); d < 4*time.Second {
		t.Errorf("five seconds of the guest took %v", d)
	}
}

// An idle guest does not wait for its clock.
func TestMachineWithAVirtualClockSleepsAnHourInNoTime(t *testing.T) {
	status, stdout, stderr, err := boot(t, Options{VirtualClock: true, Timeout: 48 * time.Hour}, `
		nproc
		read began rest </proc/uptime; sleep 3600; read ended rest </proc/uptime
		echo $((${ended%.*} - ${began%.*} >= 3600))`)
	if err != nil || status != 0 || stdout != "1\n1\n" {
		t.Errorf("status %d, %v; stdout %q, stderr %q", status, err, stdout, stderr)
	}
}

func TestMachineHasNewerTools(t *testing.T) {
	status, stdout, stderr, err := boot(t, Options{Tools: true}, `
		set -e
		test -d "$QZBD_TOOLS/proc"
		for tool in mkfs.xfs mkzonefs fio cryptsetup btrfs systemctl; do chroot "$QZBD_TOOLS" $tool -V || chroot "$QZBD_TOOLS" $tool --version; done >/dev/null
		chroot "$QZBD_TOOLS" mkfs.xfs -V
		touch "$QZBD_TOOLS/etc/written-by-the-guest"`)
	if err != nil || status != 0 || !strings.HasPrefix(stdout, "mkfs.xfs version") {
		t.Fatalf("status %d, %v; stdout %q, stderr %q", status, err, stdout, stderr)
	}
	dir, err := EnsureTools(context.Background(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "etc/written-by-the-guest")); err == nil {
		t.Error("the guest wrote to the cache")
	}
}
