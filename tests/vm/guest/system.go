package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// A machine that boots as a whole system: its root is Job.Tree, seen through an
// overlay whose upper part is a disk, so that what is written lasts until the
// next boot from that disk. systemd is its first process and starts this
// program once more, as a service, which runs the command and then has the
// machine power off in order.
const (
	runDir  = "/run/qzbd-vm"
	service = "qzbd-vm.service"
)

const serviceText = `[Unit]
Description=Command of the test machine
DefaultDependencies=no
After=basic.target
[Service]
ExecStart=` + runDir + `/init
TimeoutStartSec=infinity
StandardOutput=journal
`

// machineID keeps systemd from taking every boot for the first one.
const machineID = "71a6264e8c0b8db9717a6264e8c0b8db\n"

// bootSystem never returns without an error.
func bootSystem(job *Job) error {
	disk := fmt.Sprintf("/dev/vd%c", 'a'+job.Disks-1)
	if err := waitFor(disk); err != nil {
		return err
	}
	if err := mount(disk, upperDir, "ext4", 0, ""); err != nil {
		return err
	}
	upper, work := upperDir+"/upper", upperDir+"/work"
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	opts := "lowerdir=" + hostDir + job.Tree + ",upperdir=" + upper + ",workdir=" + work
	if err := mount("overlay", newRoot, "overlay", 0, opts); err != nil {
		return err
	}
	for _, m := range []struct{ dir, fs string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}, {"/run", "tmpfs"}} {
		if err := mount(m.fs, newRoot+m.dir, m.fs, 0, ""); err != nil {
			return err
		}
	}
	if err := os.Chmod(newRoot+"/run", 0o755); err != nil {
		return err
	}
	if err := exposeAll(job); err != nil {
		return err
	}
	if err := writeService(job); err != nil {
		return err
	}
	if err := enterRoot(); err != nil {
		return err
	}
	return fmt.Errorf("start systemd: %w", syscall.Exec("/sbin/init", []string{"/sbin/init"}, []string{"PATH=" + systemPath}))
}

// writeService makes the files that start this program again.
func writeService(job *Job) error {
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	b, err := json.Marshal(job)
	if err != nil {
		return err
	}
	wants := "/run/systemd/system/multi-user.target.wants/"
	for _, f := range []struct {
		name string
		data []byte
		mode os.FileMode
	}{
		{runDir + "/init", program, 0o755},
		{runDir + "/" + JobFile, b, 0o644},
		{"/etc/machine-id", []byte(machineID), 0o444},
		{"/run/systemd/system/" + service, []byte(serviceText), 0o644},
	} {
		name := newRoot + f.name
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, f.data, f.mode); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(newRoot+wants, 0o755); err != nil {
		return err
	}
	return os.Symlink("../"+service, newRoot+wants+service)
}

// serve is the service: the command, and then the end of the machine.
func serve() {
	var ports ports
	err := ports.open()
	if err != nil {
		fmt.Fprintf(os.Stderr, "vm: %v\n", err) // in the journal
	}
	job := new(Job)
	b, err := os.ReadFile(filepath.Join(runDir, JobFile))
	if err == nil {
		err = json.Unmarshal(b, job)
	}
	status := 0
	if err == nil {
		ports.event(EventStart, "")
		status, err = runJob(job, &ports)
	}
	if err := errors.Join(err, saveDmesg()); err != nil {
		ports.event(EventFail, err.Error())
	} else {
		ports.event(EventExit, fmt.Sprint(status))
	}
	if out, err := exec.Command("systemctl", "--no-block", "poweroff").CombinedOutput(); err != nil {
		ports.event(EventFail, fmt.Sprintf("power off: %v: %s", err, strings.TrimSpace(string(out))))
	}
}
