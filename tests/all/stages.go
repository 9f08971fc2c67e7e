package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/qzbd/qzbd/tests/vm"
	"github.com/qzbd/qzbd/tests/vm/guest"
)

// kernelTimeout limits the kernel tests of one machine: far above what they
// take, but a hang must not eat the whole evening.
const kernelTimeout = 75 * time.Minute

// stages lists all stages; the parameters are flags of some of them.
func stages(fuzzTime string, longTime time.Duration, run kernelRun, cuts simulated, kills, upgrades disturbed) []stage {
	return []stage{
		{"deps", "install missing tools", func(ctx context.Context, r *report) error {
			return vm.InstallDeps(ctx, r.log)
		}},
		{"build", "compile everything, bin/qzbd and bin/vm", build},
		{"kernels", "bring the cache of kernels and tools up to date", kernels},
		{"lint", "gofmt, vet, staticcheck", lint},
		{"unit", "unit tests of all packages", func(ctx context.Context, r *report) error {
			return goTest(ctx, r, "-timeout=20m", "./...")
		}},
		{"sim", "power cuts of the simulation", func(ctx context.Context, r *report) error {
			return sim(ctx, r, cuts)
		}},
		{"mutants", "what breaks the protocol on purpose is found by the simulation", func(ctx context.Context, r *report) error {
			return goTest(ctx, r, "-tags=mutants", "-timeout=60m", "./tests/mutants")
		}},
		{"race", "unit tests with the race detector", race},
		{"kernel-6.12", "kernel tests on Linux 6.12", func(ctx context.Context, r *report) error {
			return kernelTests(ctx, r, vm.Series612, run)
		}},
		{"kernel-7", "kernel tests on the newest Linux 7.x", func(ctx context.Context, r *report) error {
			return kernelTests(ctx, r, vm.Series7, run)
		}},
		{"copies-7", "those of data and of deaths of the server on 7.x without zero copy", func(ctx context.Context, r *report) error {
			return copies(ctx, r, run)
		}},
		{"machine", "the test machines themselves", func(ctx context.Context, r *report) error {
			return goTest(ctx, r, "-tags=machine", "-run=^TestMachine", "-timeout=15m", "./tests/vm")
		}},
		{"powercut", "power cuts under fio, f2fs and btrfs, three of each", func(ctx context.Context, r *report) error {
			return goTest(ctx, r, "-tags=machine", "-timeout=60m", "./tests/powercut", "-powercuts=3")
		}},
		{"systemd-6.12", "qzbd as a service, in a whole system on Linux 6.12", func(ctx context.Context, r *report) error {
			return systemTests(ctx, r, vm.Series612)
		}},
		{"systemd-7", "the same on the newest Linux 7.x", func(ctx context.Context, r *report) error {
			return systemTests(ctx, r, vm.Series7)
		}},
		{"long-6.12", "long tests under load on Linux 6.12 (not part of the default)", func(ctx context.Context, r *report) error {
			return long(ctx, r, vm.Series612, longTime, run.tests)
		}},
		{"long-7", "the same on the newest Linux 7.x (not part of the default)", func(ctx context.Context, r *report) error {
			return long(ctx, r, vm.Series7, longTime, run.tests)
		}},
		{"kills-6.12", "servers killed again and again on Linux 6.12 (not part of the default)", func(ctx context.Context, r *report) error {
			return disturb(ctx, r, vm.Series612, kills)
		}},
		{"kills-7", "the same on the newest Linux 7.x (not part of the default)", func(ctx context.Context, r *report) error {
			return disturb(ctx, r, vm.Series7, kills)
		}},
		{"upgrades-6.12", "servers upgraded again and again on Linux 6.12 (not part of the default)", func(ctx context.Context, r *report) error {
			return disturb(ctx, r, vm.Series612, upgrades)
		}},
		{"upgrades-7", "the same on the newest Linux 7.x (not part of the default)", func(ctx context.Context, r *report) error {
			return disturb(ctx, r, vm.Series7, upgrades)
		}},
		{"fuzz", "every fuzz target for a while (not part of the default)", func(ctx context.Context, r *report) error {
			return fuzz(ctx, r, fuzzTime)
		}},
	}
}

// command runs a program, with its output in the stage's log and in the error.
func command(ctx context.Context, r *report, name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout = io.MultiWriter(r.log, &out)
	cmd.Stderr = cmd.Stdout
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out.Bytes())
	}
	return nil
}

func build(ctx context.Context, r *report) error {
	if err := command(ctx, r, "go", "build", "./..."); err != nil {
		return err
	}
	// The same recipe as "make build", for the version inside the binary.
	if err := command(ctx, r, "make", "--no-print-directory", "build", "vm"); err != nil {
		return err
	}
	return nil
}

func kernels(ctx context.Context, r *report) error {
	for _, s := range vm.AllSeries {
		k, err := vm.Ensure(ctx, s, r.log)
		if err != nil {
			return err
		}
		fmt.Fprintf(r.log, "%s: linux %s (%s)\n", s, k.Release, k.Version)
	}
	_, err := vm.EnsureTools(ctx, r.log)
	return err
}

// lint has several opinions, each a check of its own.
func lint(ctx context.Context, r *report) error {
	for _, check := range []struct {
		name string
		args []string
	}{
		{"vet", []string{"go", "vet", "./..."}},
		{"vet kernel", []string{"go", "vet", "-tags=kernel,machine,long,mutants,hang", "./..."}},
		{"staticcheck", []string{"go", "tool", "staticcheck", "-tags=kernel,machine,long,mutants,hang", "./..."}},
	} {
		if err := command(ctx, r, check.args[0], check.args[1:]...); err != nil {
			r.failCheck(check.name, err.Error())
		} else {
			r.passCheck()
		}
	}
	out, err := exec.CommandContext(ctx, "gofmt", "-l", ".").CombinedOutput()
	if err != nil || len(out) > 0 {
		r.failCheck("gofmt", string(out))
	} else {
		r.passCheck()
	}
	return nil
}

func race(ctx context.Context, r *report) error {
	out, err := exec.CommandContext(ctx, "go", "list", "./...").Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	args := []string{"-race", "-timeout=25m"}
	for _, pkg := range strings.Fields(string(out)) {
		switch {
		case strings.Contains(pkg, "/tests/style"), strings.Contains(pkg, "/tests/vm"), strings.Contains(pkg, "/tests/all"):
			// Nothing in these shares memory with anything.
		case strings.HasSuffix(pkg, "/qcow2"): // below
		default:
			args = append(args, pkg)
		}
	}
	// Here the detector would mostly watch one goroutine go through tables of
	// damaged images, ten times as slowly.
	return errors.Join(goTest(ctx, r, args...),
		goTest(ctx, r, "-race", "-timeout=25m", "-skip=^Fuzz|Repair|EveryRule|QEMU|Prealloc|AfterReopen", "./qcow2", "-qcow2.cuts=4"))
}

// goTest runs go test and reads its results. Never from the cache: who asks
// for the tests wants them run.
func goTest(ctx context.Context, r *report, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-json", "-count=1"}, args...)...)
	// A test that is interrupted shall clean up after itself.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	pr, pw := io.Pipe()
	cmd.Stdout, cmd.Stderr = pw, pw
	read := make(chan error, 1)
	go func() { read <- r.read(pr) }()
	err := cmd.Run()
	pw.Close()
	if rerr := <-read; rerr != nil {
		return rerr
	}
	if err != nil {
		return fmt.Errorf("go test: %w", err)
	}
	return nil
}

// kernelPackages have tests that need a kernel, behind the build tag kernel,
// on a machine with so many CPUs: a device has no more queues than that.
var kernelPackages = []struct {
	path string
	cpus int
}{{"ublk", 2}, {"tests/kernel", 2}, {"tests/zbdtest", 4}}

// kernelTestBinaries compiles the kernel tests once for all machines, in the
// order of kernelPackages.
var kernelTestBinaries = sync.OnceValues(func() ([]string, error) {
	var names []string
	for _, pkg := range kernelPackages {
		name, err := filepath.Abs("bin/" + strings.ReplaceAll(pkg.path, "/", "-") + ".test")
		if err != nil {
			return nil, err
		}
		out, err := exec.Command("go", "test", "-tags=kernel", "-c", "-o", name, "./"+pkg.path).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("compile the kernel tests of %s: %w\n%s", pkg.path, err, out)
		}
		names = append(names, name)
	}
	return names, nil
})

// kernelRun says which tests that need a kernel are run.
type kernelRun struct {
	tests    string // a regexp
	thorough bool   // what costs a while in every way on each kernel
	// noZeroCopy has all data copied.
	noZeroCopy bool
}

// kernelTests runs the tests that need a kernel, each package in a machine of
// its own.
func kernelTests(ctx context.Context, r *report, series vm.Series, run kernelRun) error {
	binaries, err := kernelTestBinaries()
	if err != nil {
		return err
	}
	for i, pkg := range kernelPackages {
		err = errors.Join(err, kernelTest(ctx, r, series, run, pkg.path, pkg.cpus, binaries[i]))
	}
	return err
}

// kernelTest runs the compiled tests of one package.
func kernelTest(ctx context.Context, r *report, series vm.Series, run kernelRun, pkg string, cpus int, binary string) error {
	o := vm.Options{
		Series:  series,
		CPUs:    cpus,
		Dir:     pkg,
		Timeout: kernelTimeout,
		Tools:   true,
		Scratch: "4G",
	}
	if run.noZeroCopy { // at the same time as the others, perhaps
		o.Out = filepath.Join("bin", "test", "copies")
	}
	return testBinary(ctx, r, o, binary, run.flags(series, pkg)...)
}

// testBinary runs compiled tests of the package in o.Dir in a machine, and
// reads their results.
func testBinary(ctx context.Context, r *report, o vm.Options, binary string, flags ...string) error {
	qzbd, err := filepath.Abs("bin/qzbd")
	if err != nil {
		return err
	}
	name := o.Dir + " on " + string(o.Series)
	converter := exec.CommandContext(ctx, "go", "tool", "test2json", "-t", "-p", name)
	stdin, err := converter.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := converter.StdoutPipe()
	if err != nil {
		return err
	}
	if err := converter.Start(); err != nil {
		return err
	}
	read := make(chan error, 1)
	go func() { read <- r.read(stdout) }()

	// stderr must not cut test2json's lines in two; panics end there.
	var stderr, said tail
	flags = append([]string{binary, "-test.v=test2json", "-test.timeout=" + o.Timeout.String()}, flags...)
	o.Timeout += time.Minute // what the tests themselves have to say is better
	o.Env = append(o.Env, "QZBD_BIN="+qzbd)
	// The files of the tests, images among them, are on a disk on one kernel and in
	// memory on the other: data goes another way there (ublk/data.go).
	if o.Series == vm.Series7 && o.Scratch != "" {
		o.Env = append(o.Env, "TMPDIR="+guest.ScratchDir)
	}
	o.Out = cmp.Or(o.Out, filepath.Join("bin", "test", filepath.Base(binary)+"-"+string(o.Series)))
	o.Stdout = stdin
	o.Stderr = io.MultiWriter(r.log, &stderr)
	o.Log = io.MultiWriter(r.log, &said)
	status, err := vm.Run(ctx, o, flags)
	stdin.Close()
	if rerr := <-read; rerr != nil {
		return rerr
	}
	converter.Wait()
	if err != nil {
		// Counted on top of failed tests: a complaint of the kernel is never
		// only what a test has already said.
		r.failCheck(name, fmt.Sprintf("%v\n%s\n%s", err, said.String(), stderr.String()))
		return nil
	}
	if status != 0 {
		return errors.New(strings.TrimSpace(fmt.Sprintf("exit status %d\n%s", status, stderr.String())))
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 32 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if n := len(t.buf) - tailSize; n > 0 {
		t.buf = append(t.buf[:0], t.buf[n:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
