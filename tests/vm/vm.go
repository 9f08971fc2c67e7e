// Package vm runs a command as root under a real kernel that has zoned block
// devices and ublk, on machines whose own kernel has neither.
//
// The kernels are Debian's, fetched into the user's cache ([Ensure]) and never
// installed. qemu emulates the machine in software, so no right to
// virtualisation is needed. The guest sees the host's root directory through
// 9p: the host's tools and the build's output are there, and whatever the
// command writes stays in the guest's memory. See package guest for the side
// inside. Tools that are newer than the host's come from a tree of their own
// ([EnsureTools]).
//
// A run fails not only with its command: a kernel that logged a warning, a
// BUG, an oops or a hung task fails it as well.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/qzbd/qzbd/tests/vm/guest"
)

// Series names a line of kernels; [Ensure] finds its newest member.
type Series string

// The kernels we test under: the long-term one most distributions ship, and
// the newest.
const (
	Series612 Series = "6.12"
	Series7   Series = "7"
)

// AllSeries lists every [Series], oldest first.
var AllSeries = []Series{Series612, Series7}

// Exit statuses of a run beyond those of its command, in the tradition of
// timeout(1) and env(1).
const (
	ExitDmesg   = 123 // the command succeeded but the kernel complained
	ExitTimeout = guest.ExitTimeout
	ExitMachine = 125 // no machine, or it died before the command ended
)

// Options describe a machine. The zero value is usable.
type Options struct {
	Series  Series        // default: 7
	CPUs    int           // default: 2, or 1 with a virtual clock
	Memory  string        // in qemu's notation; default: 4G
	Timeout time.Duration // of the command; default: 10 minutes

	Dir string   // working directory; default: the current one
	Env []string // in addition to PATH, HOME, GO* and QZBD_* of this process

	NBD     []string // unix sockets of NBD servers with a volatile cache, /dev/vda and on
	Disks   []string // raw images, after those
	Scratch string   // size of an ext4 file system at $QZBD_VM_SCRATCH, for example 8G
	Out     string   // host's directory to appear as $QZBD_VM_OUT
	Tools   bool     // have $QZBD_TOOLS name the root of [EnsureTools]

	// VirtualClock has the guest's clock advance by 1 ns with each instruction
	// that it executes, on one CPU: a duration then counts instructions, whatever
	// else the host does. While the guest is idle, as when it waits for a file of
	// the host, its timers expire at once. Timeout is by the host's clock.
	VirtualClock bool

	// System names an ext4 image, made if it is not there. The machine then
	// boots the tree of EnsureTools with systemd, runs the command as a service
	// and shuts down in order; what it writes stays in the image. Of the host it
	// sees only the module that Dir is in.
	System string

	Stdout, Stderr io.Writer // default: those of this process
	Log            io.Writer // what the harness has to say; default: stderr

	tools string // where that root is
}

// The errors a caller may want to tell apart.
var (
	ErrTimeout = errors.New("time limit reached")
	ErrDmesg   = errors.New("the kernel complained")
	ErrDied    = errors.New("the machine died before the command ended")

	errBootHung = errors.New("the kernel did not come up")
)

func (o Options) withDefaults() (Options, error) {
	if o.Series == "" {
		o.Series = Series7
	}
	switch {
	case o.VirtualClock && o.CPUs > 1:
		return o, fmt.Errorf("a virtual clock counts the instructions of one CPU, not of %d: have one", o.CPUs)
	case o.VirtualClock:
		o.CPUs = 1
	case o.CPUs == 0:
		o.CPUs = 2
	}
	if o.Memory == "" {
		o.Memory = "4G"
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Minute
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Log == nil {
		o.Log = os.Stderr
	}
	var err error
	if o.Dir == "" {
		o.Dir = "."
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return o, err
	}
	if o.Out != "" {
		if o.Out, err = filepath.Abs(o.Out); err != nil {
			return o, err
		}
		if err = os.MkdirAll(o.Out, 0o755); err != nil {
			return o, err
		}
	}
	if o.System != "" {
		if o.System, err = filepath.Abs(o.System); err != nil {
			return o, err
		}
	}
	for i, d := range o.Disks {
		if _, err := os.Stat(d); err != nil {
			return o, fmt.Errorf("disk: %w", err)
		}
		if o.Disks[i], err = filepath.Abs(d); err != nil {
			return o, err
		}
	}
	return o, nil
}

// Run boots a machine, runs argv in it and returns its exit status. The error
// is nil when the command ran to its end, whatever its status, and the kernel
// had nothing to complain about; with an error the status is one of the Exit
// constants, or the command's own if it failed as well.
func Run(ctx context.Context, o Options, argv []string) (int, error) {
	if len(argv) == 0 {
		return ExitMachine, errors.New("no command given")
	}
	o, err := o.withDefaults()
	if err != nil {
		return ExitMachine, err
	}
	kernel, err := Ensure(ctx, o.Series, o.Log)
	if err != nil {
		return ExitMachine, err
	}
	initrd, err := ensureInitrd(ctx, kernel)
	if err != nil {
		return ExitMachine, err
	}
	if o.Tools || o.System != "" {
		if o.tools, err = EnsureTools(ctx, o.Log); err != nil {
			return ExitMachine, err
		}
	}
	status, err := runOnce(ctx, o, kernel, initrd, argv)
	if errors.Is(err, errBootHung) {
		// Under software emulation about one boot in twenty never gets
		// anywhere. Nothing of ours has run yet, so trying again hides
		// nothing.
		fmt.Fprintf(o.Log, "vm: %v, trying once more\n", err)
		status, err = runOnce(ctx, o, kernel, initrd, argv)
	}
	return status, err
}

// runOnce is one boot.
func runOnce(ctx context.Context, o Options, k Kernel, initrd string, argv []string) (status int, err error) {
	m, err := newMachine(o, k, initrd)
	if err != nil {
		return ExitMachine, err
	}
	defer func() { m.close(err == nil || ctx.Err() != nil) }() // the logs are for who asks why

	job, err := newJob(o, k, argv)
	if err != nil {
		return ExitMachine, err
	}
	if err := m.run(ctx, job); err != nil {
		if ctx.Err() == nil { // else the caller knows why
			m.explain()
		}
		return ExitMachine, err
	}
	if !m.alive && m.failure == "" {
		// The emulator can lose a race with the kernel's patching of its own
		// code: a panic before the first line of ours.
		m.explain()
		return ExitMachine, fmt.Errorf("%w: it ended before init", errBootHung)
	}
	bad := scanDmesg(m.dmesg())
	if o.System != "" { // what its end had to say
		bad = scanDmesg(m.console())
	}
	if len(bad) > 0 {
		fmt.Fprintf(o.Log, "vm: linux %s complained:\n%s\n", k.Release, strings.Join(bad, "\n"))
	}
	switch {
	case m.failure != "":
		m.explain()
		return ExitMachine, fmt.Errorf("guest: %s", m.failure)
	case !m.exited:
		m.explain()
		return ExitMachine, ErrDied
	case m.status == ExitTimeout:
		return ExitTimeout, fmt.Errorf("%w (%v)", ErrTimeout, o.Timeout)
	case len(bad) > 0 && m.status == 0:
		return ExitDmesg, ErrDmesg
	case len(bad) > 0:
		return m.status, ErrDmesg
	}
	return m.status, nil
}

// newJob tells the guest what to run and what it must be able to see.
func newJob(o Options, k Kernel, argv []string) (*guest.Job, error) {
	job := &guest.Job{
		Argv:    append([]string(nil), argv...),
		Env:     environment(os.Environ(), o),
		Dir:     o.Dir,
		Timeout: o.Timeout,
		Release: k.Release,
		Modules: k.modules(),
		Disks:   len(o.NBD) + len(o.Disks),
	}
	if o.VirtualClock {
		job.Timeout = math.MaxInt64 // the guest's clock runs ahead
	}
	if o.Scratch != "" {
		job.Disks++
		job.Scratch = true
	}
	if o.System != "" {
		job.Disks++
		job.Tree = o.tools
	}
	if strings.Contains(argv[0], "/") {
		// The working directory may be another one in the guest.
		abs, err := filepath.Abs(argv[0])
		if err != nil {
			return nil, err
		}
		job.Argv[0] = abs
	}
	if o.System != "" {
		job.Expose = []string{moduleRoot(o.Dir)}
		return job, nil
	}
	job.Expose = expose(append([]string{moduleRoot(o.Dir), o.tools}, job.Argv...))
	return job, nil
}

// covered are the directories which the guest covers with a tmpfs.
var covered = []string{"/tmp", "/run", "/mnt", "/var/tmp", "/dev/shm"}

// expose picks the existing files and directories which the guest would not
// see otherwise: a checkout or a script below /tmp, and the test binaries of
// go test -exec, which are always there.
func expose(candidates []string) []string {
	var list []string
	for _, p := range candidates {
		for _, c := range covered {
			if !strings.HasPrefix(p, c+"/") || slices.Contains(list, p) {
				continue
			}
			if _, err := os.Stat(p); err == nil {
				list = append(list, p)
			}
		}
	}
	return list
}

// moduleRoot is the directory above dir with the go.mod, or else dir: tests
// look at files of their whole module.
func moduleRoot(dir string) string {
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d
		}
		if d == filepath.Dir(d) {
			return dir
		}
	}
}

// environment is what the command finds in its environment: enough to work
// with and nothing that depends on who started us.
func environment(host []string, o Options) []string {
	const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// Whatever looks for its language opens thirty files for it, each of which is
	// a question to the host: in C there are none.
	lang := "C"
	if o.System != "" {
		lang = "C.UTF-8"
	}
	env := []string{"LANG=" + lang, "TERM=dumb", "USER=root"}
	path := systemPath
	for _, e := range host {
		k, v, _ := strings.Cut(e, "=")
		switch {
		case k == "PATH":
			path = joinPath(v, systemPath)
		case k == "HOME", k == "CI", strings.HasPrefix(k, "GO"), strings.HasPrefix(k, "QZBD_"):
			env = append(env, e)
		}
	}
	env = append(env, "PATH="+path, "QZBD_VM=1", "QZBD_VM_OUT="+guest.OutDir)
	if o.Scratch != "" {
		env = append(env, "QZBD_VM_SCRATCH="+guest.ScratchDir)
	}
	if o.Tools {
		env = append(env, "QZBD_TOOLS="+o.tools)
	}
	return append(env, o.Env...)
}

// joinPath appends the directories of b that a lacks.
func joinPath(a, b string) string {
	dirs := filepath.SplitList(a)
	for _, d := range filepath.SplitList(b) {
		if !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	return strings.Join(dirs, ":")
}
