package vm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/qzbd/qzbd/tests/vm/guest"
)

// Time limits of a machine, generous because other work on the host makes an
// emulated boot several times slower than its usual four to six seconds.
const (
	bootSilent = 45 * time.Second // without a single byte on the console
	bootAlive  = 4 * time.Minute  // until init reports
	bootSystem = 15 * time.Minute // from there until a whole system is up
	afterLimit = 60 * time.Second // from the command's own limit until we kill
	afterExit  = 60 * time.Second // from the exit status to the power off
	afterStop  = 4 * time.Minute  // the same of a system that shuts down
)

// machine is one qemu process and the directory it works in.
type machine struct {
	o      Options
	kernel Kernel
	initrd string
	dir    string
	ports  []net.Listener // stdout, stderr, events

	alive   bool   // init ran
	started bool   // the command ran
	exited  bool   // and ended with
	status  int    // this status
	failure string // the guest's reason for not running it
}

func newMachine(o Options, k Kernel, initrd string) (*machine, error) {
	dir, err := os.MkdirTemp("", "qzbd-vm-")
	if err != nil {
		return nil, err
	}
	m := &machine{o: o, kernel: k, initrd: initrd, dir: dir}
	for _, name := range []string{"share", "out"} {
		if err := os.Mkdir(m.path(name), 0o755); err != nil {
			m.close(true)
			return nil, err
		}
	}
	for _, name := range []string{"stdout", "stderr", "events"} {
		l, err := net.Listen("unix", m.path(name+".sock"))
		if err != nil {
			m.close(true)
			return nil, err
		}
		m.ports = append(m.ports, l)
	}
	if o.Scratch != "" {
		if err := makeDisk(m.path("scratch"), strings.TrimSpace(o.Scratch)); err != nil {
			m.close(true)
			return nil, err
		}
	}
	if o.System != "" {
		if _, err := os.Stat(o.System); err != nil {
			if err := makeDisk(o.System, systemSize); err != nil {
				m.close(true)
				return nil, err
			}
		}
	}
	return m, nil
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, name) }

// systemSize is that of the disk for what a whole system writes.
const systemSize = "8G"

// makeDisk makes a sparse image with an empty ext4.
func makeDisk(path, size string) error {
	out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,nodiscard", path, size).CombinedOutput()
	if err != nil {
		return fmt.Errorf("disk of %s: %w: %s", size, err, out)
	}
	return nil
}

// close removes the machine's directory, but keeps the logs of a failed run.
func (m *machine) close(ok bool) {
	for _, l := range m.ports {
		l.Close()
	}
	if ok {
		os.RemoveAll(m.dir)
		return
	}
	os.Remove(m.path("scratch"))
	fmt.Fprintf(m.o.Log, "vm: logs kept in %s\n", m.dir)
}

// explain shows the end of the console.
func (m *machine) explain() {
	lines := strings.Split(strings.TrimSpace(m.console()), "\n")
	if n := len(lines) - 60; n > 0 {
		lines = lines[n:]
	}
	fmt.Fprintf(m.o.Log, "vm: end of the console:\n  %s\n", strings.Join(lines, "\n  "))
}

// dmesg is the kernel's log: from the guest if it could still hand it over,
// else what reached the console.
func (m *machine) dmesg() string {
	b, err := os.ReadFile(filepath.Join(m.path("share"), guest.DmesgFile))
	if err != nil {
		return m.console()
	}
	return strings.ReplaceAll(string(b), "\r", "")
}

func (m *machine) console() string {
	b, err := os.ReadFile(m.path("console.log"))
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(string(b), "\r", "")
}

// qemuArgs is the machine as qemu's command line.
func (m *machine) qemuArgs() []string {
	out := m.o.Out
	if out == "" {
		out = m.path("out")
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-smp", strconv.Itoa(m.o.CPUs), "-m", m.o.Memory,
		"-serial", "file:" + comma(m.path("console.log")),
		"-kernel", m.kernel.image(), "-initrd", m.initrd,
		"-append", m.kernelArgs() + m.systemArgs(),
		"-device", "virtio-serial-pci,max_ports=8",
	}
	args = append(args, m.cpuArgs()...)
	for i, l := range m.ports {
		args = append(args,
			"-chardev", fmt.Sprintf("socket,id=port%d,path=%s", i+1, comma(l.Addr().String())),
			"-device", fmt.Sprintf("virtserialport,chardev=port%d,nr=%d,name=qzbd.%d", i+1, i+1, i+1))
	}
	for _, share := range []struct{ tag, path, more string }{
		{guest.TagRoot, "/", ",readonly=on"},
		{guest.TagShare, m.path("share"), ""},
		{guest.TagOut, out, ""},
	} {
		args = append(args, "-virtfs", fmt.Sprintf("local,path=%s,mount_tag=%s,security_model=none,multidevs=remap%s",
			comma(share.path), share.tag, share.more))
	}
	for _, socket := range m.o.NBD {
		args = append(args, "-drive", "if=virtio,format=raw,cache=writeback,discard=unmap,file.driver=nbd,file.server.type=unix,file.server.path="+comma(socket))
	}
	disks := m.o.Disks
	if m.o.Scratch != "" {
		disks = append(disks[:len(disks):len(disks)], m.path("scratch"))
	}
	if m.o.System != "" {
		disks = append(disks[:len(disks):len(disks)], m.o.System)
	}
	for _, d := range disks {
		args = append(args, "-drive", "if=virtio,format=raw,cache=unsafe,discard=unmap,file="+comma(d))
	}
	return args
}

// byEights is a CPU without erms and fsrm, on which kernel and programs copy and
// clear memory eight bytes or more at a time: emulated, a string instruction does
// a single byte at a time, and that takes eight times as long.
const byEights = "max,-erms,-fsrm"

// cpuArgs say how the guest's instructions are executed. An emulated
// machine does without la57, a fifth level of page tables, which every miss of the
// emulator's own table of pages has to walk, and without smap, for which it keeps
// two such tables for the kernel and leaves its code at each access to user memory.
func (m *machine) cpuArgs() []string {
	if m.o.VirtualClock {
		return []string{"-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-cpu", byEights}
	}
	if a := os.Getenv("QZBD_VM_ACCEL"); a != "" {
		return []string{"-accel", a, "-cpu", "max"}
	}
	return []string{"-accel", "tcg,thread=multi", "-cpu", byEights + ",-la57,-smap"}
}

// kernelArgs is the kernel's command line.
func (m *machine) kernelArgs() string {
	args := "console=ttyS0 loglevel=7 panic=-1 mitigations=off log_buf_len=4M rdinit=/init" +
		// On a busy host the guest would give up its clock and become slow.
		" tsc=reliable"
	if m.o.VirtualClock {
		// Every boot has the same addresses, and nobody takes a clock that jumps
		// while the guest is idle for one that is wrong, or for a task that hangs.
		return args + " nokaslr norandmaps nowatchdog no_timer_check sysctl.kernel.hung_task_timeout_secs=0"
	}
	// A host that is too busy to run the guest for a while is no soft lockup. To
	// clear each page and object that the kernel takes is a lot of work.
	args += " watchdog_thresh=60 init_on_alloc=0"
	if khz := tscKHz(); khz > 0 {
		args += fmt.Sprintf(" tsc_early_khz=%d", khz)
	}
	return args
}

// masked are units that a system does without: what takes a minute of an emulated
// one, and what would cover a checkout below /tmp.
var masked = []string{
	"tmp.mount",
	"systemd-hwdb-update.service", "ldconfig.service", "systemd-journal-catalog-update.service",
	"systemd-binfmt.service", "systemd-random-seed.service", "modprobe@drm.service",
}

// unused are modules for hardware of the machine that nobody uses.
var unused = []string{"kvm", "kvm_amd", "kvm_intel", "ata_piix", "ata_generic", "floppy", "psmouse", "pcspkr", "i2c_piix4", "powernow_k8"}

// systemArgs are those of the kernel that systemd reads.
func (m *machine) systemArgs() string {
	if m.o.System == "" {
		return ""
	}
	args := " systemd.unit=multi-user.target systemd.getty_auto=no systemd.show_status=no systemd.default_device_timeout_sec=600 module_blacklist=" + strings.Join(unused, ",")
	for _, unit := range masked {
		args += " systemd.mask=" + unit
	}
	return args
}

// comma quotes a value for qemu's comma-separated options.
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// run starts qemu, serves its ports and returns when it has ended.
func (m *machine) run(ctx context.Context, job *guest.Job) error {
	b, err := json.Marshal(job)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(m.path("share"), guest.JobFile), b, 0o644); err != nil {
		return err
	}
	ctx, kill := context.WithCancelCause(ctx)
	defer kill(nil)

	events := make(chan string, 8)
	var ports sync.WaitGroup
	for i, sink := range []io.Writer{m.o.Stdout, m.o.Stderr} {
		ports.Go(func() { accept(m.ports[i], func(c net.Conn) { io.Copy(sink, c) }) })
	}
	ports.Go(func() {
		defer close(events)
		accept(m.ports[2], func(c net.Conn) {
			for s := bufio.NewScanner(c); s.Scan(); {
				events <- s.Text()
			}
		})
	})

	ended := make(chan error, 1)
	go func() { ended <- m.qemu(ctx) }()
	supervised := make(chan struct{})
	go func() {
		defer close(supervised)
		m.supervise(ctx, kill, events)
	}()

	err = <-ended
	for _, l := range m.ports {
		l.Close() // a port that qemu never opened
	}
	ports.Wait()
	<-supervised
	if m.exited || m.failure != "" {
		return nil // the guest has answered: how qemu ended says nothing more
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// accept serves the one connection that qemu makes to a port.
func accept(l net.Listener, serve func(net.Conn)) {
	c, err := l.Accept()
	if err != nil {
		return // closed: qemu ended first
	}
	defer c.Close()
	serve(c)
}

// supervise follows the guest's events and kills a machine that is late.
func (m *machine) supervise(ctx context.Context, kill context.CancelCauseFunc, events <-chan string) {
	late := time.NewTimer(bootSilent)
	defer late.Stop()
	began := time.Now()
	for {
		select {
		case line, ok := <-events:
			if !ok {
				return
			}
			word, rest, _ := strings.Cut(line, " ")
			switch word {
			case guest.EventAlive:
				m.alive = true
				if m.o.System != "" {
					late.Reset(bootSystem)
				} else {
					late.Reset(bootAlive)
				}
			case guest.EventStart:
				m.started = true
				late.Reset(m.o.Timeout + afterLimit)
			case guest.EventExit:
				status, err := strconv.Atoi(rest)
				m.exited, m.status = err == nil, status
				if m.o.System != "" {
					late.Reset(afterStop)
				} else {
					late.Reset(afterExit)
				}
			case guest.EventFail:
				m.failure = rest
				late.Reset(afterExit)
			}
		case <-late.C:
			switch {
			case m.exited && m.o.System != "":
				m.failure = fmt.Sprintf("the system did not shut down within %v", afterStop)
				kill(nil)
			case m.exited || m.failure != "":
				kill(nil) // we know enough: it just does not power off
			case m.started && m.o.VirtualClock: // its own watch is no use
				kill(fmt.Errorf("%w (%v)", ErrTimeout, m.o.Timeout))
			case m.started:
				kill(fmt.Errorf("%w (%v), and the guest did not answer", ErrTimeout, m.o.Timeout))
			case m.alive:
				kill(errors.New("the guest hung while it prepared the command"))
			case !m.consoleSpoke() || time.Since(began) >= bootAlive:
				kill(errBootHung)
			default:
				late.Reset(bootAlive - time.Since(began))
			}
		case <-ctx.Done():
			for range events { // let the port's reader finish
			}
			return
		}
	}
}

func (m *machine) consoleSpoke() bool {
	// The firmware and the boot loader write a few dozen bytes of their own.
	fi, err := os.Stat(m.path("console.log"))
	return err == nil && fi.Size() > 256
}

// qemu runs the emulator to its end, or kills it with ctx.
func (m *machine) qemu(ctx context.Context) error {
	// Pdeathsig is sent when the parent's *thread* ends: keep the thread, so
	// that qemu dies with this process, even by SIGKILL, and not before.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stderr, err := os.Create(m.path("qemu.log"))
	if err != nil {
		return err
	}
	defer stderr.Close()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", m.qemuArgs()...)
	cmd.Stdout, cmd.Stderr = stderr, stderr
	// Its own group: a Ctrl-C at the terminal reaches us, and we decide.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(m.path("qemu.log"))
		return fmt.Errorf("qemu: %w: %s", err, strings.TrimSpace(string(text)))
	}
	return nil
}
