package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"time"
)

// imageSize is that of all images. No cell writes beyond conventionalSize.
const (
	imageSize        = "1G"
	conventionalSize = 15 * 64 << 20
)

// images are the options with which a tool creates an image to be filled, and
// overwritten in place, and one to allocate in.
type images struct{ filled, fresh []string }

var (
	qzbdImages = images{
		filled: []string{"-o", "zone.size=64M,zone.conventional_zones=15"},
		fresh:  []string{"-o", "zone.size=64M"},
	}
	qemuImages = images{filled: []string{"-q", "-f", "qcow2"}, fresh: []string{"-q", "-f", "qcow2"}}
)

// tool is one of the two that are compared.
type tool struct {
	program string
	prefix  string // of its images' paths
	images  images
	flags   []string // of bench
}

func (t tool) filled() string { return t.prefix + ".filled.qcow2" }
func (t tool) fresh() string  { return t.prefix + ".fresh.qcow2" }

// fill makes the image that is read and overwritten.
func (t tool) fill(ctx context.Context) error {
	const size = 1 << 20
	if err := t.create(ctx, t.images.filled, t.filled()); err != nil {
		return err
	}
	_, err := t.bench(ctx, cell{kind: overwrite, size: size, depth: 4}, conventionalSize/size, t.filled())
	return err
}

func (t tool) create(ctx context.Context, options []string, path string) error {
	_, err := t.run(ctx, append(append([]string{"create"}, options...), path, imageSize)...)
	return err
}

// cost returns the CPU time that count requests take.
func (t tool) cost(ctx context.Context, c cell, count int) (time.Duration, error) {
	if c.kind != allocate {
		return t.bench(ctx, c, count, t.filled())
	}
	if err := t.create(ctx, t.images.fresh, t.fresh()); err != nil {
		return 0, err
	}
	d, err := t.bench(ctx, c, count, t.fresh())
	if err == nil {
		err = os.Remove(t.fresh())
	}
	return d, err
}

// bench returns the CPU time of the whole process.
func (t tool) bench(ctx context.Context, c cell, count int, path string) (time.Duration, error) {
	args := slices.Concat([]string{"bench", "-t", "none", "-s", strconv.Itoa(c.size),
		"-d", strconv.Itoa(c.depth), "-c", strconv.Itoa(count)}, t.flags)
	if c.kind != read {
		args = append(args, "-w")
	}
	return t.run(ctx, append(args, path)...)
}

func (t tool) run(ctx context.Context, args ...string) (time.Duration, error) {
	cmd := exec.CommandContext(ctx, t.program, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%v: %w: %s", cmd, err, bytes.TrimSpace(said.Bytes()))
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}
