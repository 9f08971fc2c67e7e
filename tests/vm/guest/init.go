package guest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Where things are before the root is switched.
const (
	hostDir  = "/host"
	shareDir = "/share"
	newRoot  = "/root"
	upperDir = "/upper"
)

// Main is the whole life of the machine. It never returns: the machine is
// powered off. Of a machine with systemd it is the beginning, and later a
// service.
func Main() {
	if os.Getpid() != 1 {
		serve()
		return
	}
	var ports ports
	if err := prepare(&ports); err != nil {
		// Before the ports are there only the console listens.
		fmt.Fprintf(os.Stderr, "init: %v\n", err)
		ports.event(EventFail, err.Error())
		powerOff()
	}
	job, err := readJob()
	if err == nil && job.Tree != "" {
		err = bootSystem(job)
	}
	if err == nil {
		err = buildRoot(job)
	}
	if err == nil {
		err = settle(job)
	}
	if err != nil {
		ports.event(EventFail, err.Error())
		saveDmesg()
		powerOff()
	}
	ports.event(EventStart, "")
	status, err := runJob(job, &ports)
	if serr := saveDmesg(); err == nil {
		err = serr
	}
	if err != nil {
		ports.event(EventFail, err.Error())
	} else {
		ports.event(EventExit, fmt.Sprint(status))
	}
	powerOff()
}

// prepare brings up what init itself needs: kernel file systems, the modules
// of the RAM disk, the ports, and both shared directories.
func prepare(p *ports) error {
	for _, m := range []struct{ fs, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"},
	} {
		if err := mount(m.fs, m.dir, m.fs, 0, ""); err != nil {
			return err
		}
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := p.open(); err != nil {
		return err
	}
	p.event(EventAlive, "")

	const opts = "trans=virtio,version=9p2000.L,msize=262144,cache="
	if err := mount(TagRoot, hostDir, "9p", syscall.MS_RDONLY, opts+"loose"); err != nil {
		return err
	}
	// The host looks at these files while we live: no cache.
	return mount(TagShare, shareDir, "9p", 0, opts+"none")
}

func readJob() (*Job, error) {
	b, err := os.ReadFile(filepath.Join(shareDir, JobFile))
	if err != nil {
		return nil, err
	}
	job := new(Job)
	if err := json.Unmarshal(b, job); err != nil {
		return nil, fmt.Errorf("job: %w", err)
	}
	return job, nil
}

// buildRoot makes the host's root ours and moves there. The host's files stay
// as they are: what the command writes goes to memory, through an overlay, and
// where programs write most, directly.
func buildRoot(job *Job) error {
	if err := mount("tmpfs", upperDir, "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	upper, work := upperDir+"/upper", upperDir+"/work"
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	opts := "lowerdir=" + hostDir + ",upperdir=" + upper + ",workdir=" + work
	if err := mount("overlay", newRoot, "overlay", 0, opts); err != nil {
		return err
	}
	for _, m := range []struct {
		dir, fs, opts string
		optional      bool
	}{
		{dir: "/tmp", fs: "tmpfs", opts: "mode=1777"},
		{dir: "/run", fs: "tmpfs", opts: "mode=755"},
		{dir: "/mnt", fs: "tmpfs", opts: "mode=755"},
		{dir: "/var/tmp", fs: "tmpfs", opts: "mode=1777"},
		{dir: "/proc", fs: "proc"},
		{dir: "/sys", fs: "sysfs"},
		{dir: "/sys/fs/cgroup", fs: "cgroup2", optional: true},
		{dir: "/sys/kernel/debug", fs: "debugfs", optional: true},
		{dir: "/sys/kernel/tracing", fs: "tracefs", optional: true},
		{dir: "/dev", fs: "devtmpfs"},
		{dir: "/dev/pts", fs: "devpts", opts: "gid=5,mode=620,ptmxmode=666"},
		{dir: "/dev/shm", fs: "tmpfs", opts: "mode=1777"},
	} {
		if err := mount(m.fs, newRoot+m.dir, m.fs, 0, m.opts); err != nil && !m.optional {
			return err
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
	} {
		if err := os.Symlink(target, newRoot+"/dev/"+name); err != nil && !os.IsExist(err) {
			return err
		}
	}
	if err := exposeAll(job); err != nil {
		return err
	}
	return enterRoot()
}

// exposeAll shows in the new root what the job names of the host.
func exposeAll(job *Job) error {
	for _, p := range job.Expose {
		if fi, err := os.Stat(hostDir + p); err == nil && !fi.IsDir() {
			os.MkdirAll(filepath.Dir(newRoot+p), 0o755)
			os.WriteFile(newRoot+p, nil, 0o755) // a file to mount a file on
		}
		if err := mount(hostDir+p, newRoot+p, "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	modules := newRoot + "/usr/lib/modules/" + job.Release
	if err := mount(hostDir+job.Modules, modules, "", syscall.MS_BIND, ""); err != nil {
		return err
	}
	if err := mount(TagOut, newRoot+OutDir, "9p", 0, "trans=virtio,version=9p2000.L,msize=262144,cache=none"); err != nil {
		return err
	}
	return mount(shareDir, newRoot+runDir+"/share", "", syscall.MS_BIND, "")
}

// enterRoot makes the new root the root, as switch_root(8) does it, so that
// mountinfo tells the truth about "/".
func enterRoot() error {
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := syscall.Mount(newRoot, "/", "", syscall.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return os.Chdir("/")
}

const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// settle does what a distribution's early boot would have done.
func settle(job *Job) error {
	os.Setenv("PATH", systemPath)
	if err := syscall.Sethostname([]byte("qzbd-vm")); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	// The kernel's default of 4096 is too low for anything but a shell.
	nofile := syscall.Rlimit{Cur: 1024, Max: 524288}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &nofile); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	// null_blk and others are set up through it.
	if err := tool("modprobe", "configfs"); err != nil {
		return err
	}
	if err := mount("configfs", "/sys/kernel/config", "configfs", 0, ""); err != nil {
		return err
	}
	if job.Disks == 0 {
		return nil
	}
	if err := tool("modprobe", "virtio_blk"); err != nil {
		return err
	}
	last := fmt.Sprintf("/dev/vd%c", 'a'+job.Disks-1)
	if err := waitFor(last); err != nil {
		return err
	}
	if !job.Scratch {
		return nil
	}
	if err := tool("modprobe", "ext4"); err != nil {
		return err
	}
	return mount(last, ScratchDir, "ext4", 0, "")
}

func tool(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// waitFor waits for a device node, which the kernel makes in its own time.
// There is nobody to notify us: the machine has no udev.
func waitFor(path string) error {
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%s did not appear", path)
}

// mount mounts and makes the mount point where it can.
func mount(source, dir, fs string, flags uintptr, opts string) error {
	os.MkdirAll(dir, 0o755) // a read-only parent shows in the next error
	if err := syscall.Mount(source, dir, fs, flags, opts); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, dir, err)
	}
	return nil
}
