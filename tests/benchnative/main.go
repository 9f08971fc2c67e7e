// Command benchnative compares the engine of qzbd with QEMU's: qzbd bench on an
// image, qemu-img bench on a plain qcow2 image of the same size and cluster
// size, by io_uring and past the page cache. On a tmpfs qzbd does without the ring,
// as a server does with such an image; with -dir on a disk both use it.
//
// The measure is CPU time per request, user and system, of the whole process,
// less what a run of one request takes. The two alternate, round by round, so
// that what else the machine does meets both; the ratio is the median of those
// of the rounds. Times of one run mean little on another machine: the ratios do.
//
// The exit status is 1 if a ratio is above what it must be.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchnative:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	qzbd := flag.String("qzbd", "bin/qzbd", "the `program` to measure")
	qemu := flag.String("qemu-img", "qemu-img", "the `program` to compare it with")
	dir := flag.String("dir", "/dev/shm", "`directory` for 3G of images")
	rounds := flag.Int("rounds", 3, "how `often` each is measured")
	only := flag.String("only", "", "a `kind` of requests: read, overwrite or allocate; all by default")
	flag.Parse()
	switch {
	case *rounds < 1 || flag.NArg() > 0:
		return fmt.Errorf("-rounds=%d, arguments %q: want at least one round, and no arguments", *rounds, flag.Args())
	case *only != "" && !slices.ContainsFunc(cells, func(c cell) bool { return c.kind == kind(*only) }):
		return fmt.Errorf("-only=%s: it must be read, overwrite or allocate", *only)
	}
	tmp, err := os.MkdirTemp(*dir, "qzbd-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	ours := tool{*qzbd, filepath.Join(tmp, "ours"), qzbdImages, nil}
	theirs := tool{*qemu, filepath.Join(tmp, "theirs"), qemuImages, []string{"-f", "qcow2", "-i", "io_uring"}}
	version, err := exec.CommandContext(ctx, theirs.program, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s: %w: install qemu-utils", theirs.program, err)
	}
	first, _, _ := strings.Cut(string(version), "\n")
	fmt.Printf("CPU µs per request, %d rounds, against %s\n\n", *rounds, first)
	for _, t := range []tool{ours, theirs} {
		if err := t.fill(ctx); err != nil {
			return err
		}
	}
	fmt.Println(header)
	missed := 0
	for _, c := range cells {
		if *only != "" && c.kind != kind(*only) {
			continue
		}
		r, err := c.measure(ctx, ours, theirs, *rounds)
		if err != nil {
			return err
		}
		fmt.Println(r)
		if r.missed() {
			missed++
		}
	}
	if missed > 0 {
		return fmt.Errorf("%d ratios are above what they must be", missed)
	}
	return nil
}
