// Command vm runs commands under Debian's kernels in an emulated machine.
//
//	vm deps                     install the tools that the tests need
//	vm fetch [6.12|7]...        bring the cache of kernels up to date
//	vm tools                    make the tree of newer tools, print where it is
//	vm run [flags] -- CMD ARG.. run a command as root in a machine
//
// It exits with the status of the command, or 123 when the command succeeded
// but the kernel complained, 124 at the time limit, 125 when there was no
// machine.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/qzbd/qzbd/tests/vm"
	"github.com/qzbd/qzbd/tests/vm/guest"
)

const usage = `usage: vm deps
       vm fetch [6.12|7]...
       vm tools
       vm run [flags] -- CMD ARG...`

func main() {
	// go test ends a program that it runs by -exec with SIGQUIT.
	ctx, stop := signal.NotifyContext(context.Background(),
		syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer stop()
	status, err := dispatch(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "vm: %v\n", err)
	}
	os.Exit(status)
}

func dispatch(ctx context.Context, args []string) (int, error) {
	if len(args) == 0 {
		return 2, fmt.Errorf("no command given\n%s", usage)
	}
	switch name, args := args[0], args[1:]; name {
	case "deps":
		return fail(vm.InstallDeps(ctx, os.Stderr))
	case "fetch":
		return fail(fetch(ctx, args))
	case "tools":
		dir, err := vm.EnsureTools(ctx, os.Stderr)
		if err == nil {
			fmt.Println(dir)
		}
		return fail(err)
	case "run":
		return run(ctx, args)
	case "-h", "-help", "--help", "help":
		fmt.Println(usage)
		return 0, nil
	default:
		return 2, fmt.Errorf("%s: unknown command\n%s", name, usage)
	}
}

func fail(err error) (int, error) {
	if err != nil {
		return 1, err
	}
	return 0, nil
}

func fetch(ctx context.Context, args []string) error {
	series := vm.AllSeries
	if len(args) > 0 {
		series = nil
		for _, a := range args {
			series = append(series, vm.Series(a))
		}
	}
	for _, s := range series {
		k, err := vm.Refresh(ctx, s, os.Stderr)
		if err != nil {
			return err
		}
		fmt.Printf("%s %s %s\n", s, k.Release, k.Dir)
	}
	return nil
}

func run(ctx context.Context, args []string) (int, error) {
	var o vm.Options
	flags := flag.NewFlagSet("vm run", flag.ContinueOnError)
	flags.StringVar((*string)(&o.Series), "kernel", string(vm.Series7), "`series` of the kernel: 6.12 or 7")
	flags.IntVar(&o.CPUs, "smp", 0, "`number` of CPUs (default 2, or 1 with a virtual clock)")
	flags.BoolVar(&o.VirtualClock, "virtual-clock", false, "the clock counts instructions, 1 ns each")
	flags.StringVar(&o.Memory, "mem", "4G", "`size` of the memory")
	flags.DurationVar(&o.Timeout, "timeout", 0, "time `limit` of the command (default 10m)")
	flags.StringVar(&o.Dir, "dir", "", "working `directory` (default: this one)")
	flags.StringVar(&o.Out, "out", "", "host's `directory` to appear as $QZBD_VM_OUT")
	flags.BoolVar(&o.Tools, "tools", false, "have $QZBD_TOOLS name the root of \"vm tools\"")
	flags.StringVar(&o.System, "system", "", "boot Debian with systemd, and keep what it writes in this `file`")
	flags.StringVar(&o.Scratch, "scratch", "", "`size` of an ext4 file system at "+guest.ScratchDir+", which $QZBD_VM_SCRATCH names")
	flags.Func("disk", "raw image `file` for the next virtio disk, /dev/vda and on (repeatable)", func(s string) error {
		o.Disks = append(o.Disks, s)
		return nil
	})
	flags.Func("env", "`NAME=VALUE` for the command's environment (repeatable)", func(s string) error {
		if !strings.Contains(s, "=") {
			return fmt.Errorf("want NAME=VALUE")
		}
		o.Env = append(o.Env, s)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return 2, nil // flag has already explained
	}
	return vm.Run(ctx, o, flags.Args())
}
