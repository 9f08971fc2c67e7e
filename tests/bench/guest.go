package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// boot is what one machine has measured.
type boot struct {
	Linux string                        `json:"linux"`
	Fio   string                        `json:"fio"`
	QEMU  string                        `json:"qemu"`
	Qzbd  string                        `json:"qzbd"`
	IOPS  map[string]map[string]float64 `json:"iops"` // by kind and cell
}

// How long fio runs, in the guest's time.
const (
	warmUp   = "100ms"
	measured = "1s"
)

// bench is the program inside the machine.
type bench struct {
	dir    string // in memory: programs, images
	queues int    // of each device, as far as it has such
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// newBench brings the programs that everything needs; program is the qzbd to use.
// The file system for that and for images has large folios, as those on disks have
// them for what is written at once.
func newBench(program string) (*bench, error) {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "huge=always"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs with large folios: %w", err)
	}
	b := &bench{dir: dir, queues: 1}
	for _, p := range []struct{ name, path string }{{"fio", "fio"}, {"qemu-nbd", "qemu-nbd"}, {"qzbd", program}} {
		if err := b.bring(p.name, p.path); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// leave writes what the program outside waits for.
func leave(result any) error {
	text, err := json.Marshal(result)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(os.Getenv("QZBD_VM_OUT"), resultFile), text, 0o644)
}

// measure runs the cells on every kind of device and leaves a boot.
func (b *bench) measure(selected []cell) error {
	result := boot{IOPS: make(map[string]map[string]float64)}
	if err := b.versions(&result); err != nil {
		return err
	}
	for _, k := range kinds { // thrown away
		if _, err := b.measureKind(k, oneOfEach(k.selection(selected)), warmUp); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
	for _, k := range kinds {
		iops, err := b.measureKind(k, k.selection(selected), measured)
		if err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
		result.IOPS[k.name] = iops
	}
	return leave(result)
}

// oneOfEach is the first cell that writes and the first that reads.
func oneOfEach(cells []cell) []cell {
	var list []cell
	for _, reads := range []bool{false, true} {
		if i := slices.IndexFunc(cells, func(c cell) bool { return c.reads() == reads }); i >= 0 {
			list = append(list, cells[i])
		}
	}
	return list
}

// bring copies a program, so that no page of it has to come from the host.
func (b *bench) bring(name, path string) error {
	path, err := exec.LookPath(path)
	if err != nil {
		return err
	}
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(b.path(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

// versions notes what is measured with what.
func (b *bench) versions(result *boot) error {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	result.Linux = unix.ByteSliceToString(name.Release[:])
	for _, v := range []struct {
		to      *string
		program string
	}{{&result.Fio, "fio"}, {&result.QEMU, "qemu-nbd"}, {&result.Qzbd, "qzbd"}} {
		out, err := b.output(b.path(v.program), "--version")
		if err != nil {
			return err
		}
		line, _, _ := strings.Cut(out, "\n")
		*v.to = strings.TrimPrefix(line, b.dir+"/") // qemu-nbd calls itself as it was called
	}
	return nil
}

// measureKind runs the cells on one kind of device: the writes each on a new
// device, the reads on one that is full.
func (b *bench) measureKind(k kind, selected []cell, runtime string) (map[string]float64, error) {
	iops := make(map[string]float64)
	for _, c := range slices.DeleteFunc(slices.Clone(selected), cell.reads) {
		err := b.with(k, func(d *device) error { return b.measureCell(k, d, c, runtime, iops) })
		if err != nil {
			return nil, err
		}
	}
	if !slices.ContainsFunc(selected, cell.reads) {
		return iops, nil
	}
	return iops, b.with(k, func(d *device) error {
		if err := b.fill(k, d, runtime); err != nil {
			return err
		}
		for _, c := range selected {
			if !c.reads() {
				continue
			}
			if err := b.measureCell(k, d, c, runtime, iops); err != nil {
				return err
			}
		}
		return nil
	})
}

// with attaches a device for as long as f runs.
func (b *bench) with(k kind, f func(*device) error) error {
	d, err := k.attach(b)
	if err != nil {
		return err
	}
	return errors.Join(f(d), d.detach())
}

// fill writes the whole device, or, to warm up, for a while.
func (b *bench) fill(k kind, d *device, runtime string) error {
	args := []string{"--rw=write", "--bs=1M", "--iodepth=1", "--size=100%"}
	if runtime == warmUp {
		args = append(args, "--runtime="+runtime)
	}
	_, err := b.fio(k, d, args...)
	return err
}

func (b *bench) measureCell(k kind, d *device, c cell, runtime string, iops map[string]float64) error {
	n, err := b.fio(k, d, c.fioArgs(runtime)...)
	if err != nil {
		return fmt.Errorf("%s: %w", c.name(), err)
	}
	if runtime != warmUp {
		fmt.Fprintf(os.Stderr, "%-24s %-27s %7.0f IOPS\n", c.name(), k.name, n)
	}
	iops[c.name()] = n
	return nil
}

// fio runs one job and returns its I/Os per second.
func (b *bench) fio(k kind, d *device, args ...string) (float64, error) {
	command := b.fioCommand(k, d, args...)
	if err := b.run(command[0], command[1:]...); err != nil {
		return 0, err
	}
	return b.fioIOPS()
}

// fioCommand is the command line of a job.
func (b *bench) fioCommand(k kind, d *device, args ...string) []string {
	command := append([]string{
		b.path("fio"), "--name=bench", "--filename=" + d.node, "--direct=1", "--ioengine=libaio",
		"--output-format=json", "--output=" + b.path(fioFile),
	}, args...)
	if k.zoned {
		command = append(command, "--zonemode=zbd")
	}
	return command
}

const fioFile = "fio.json"

// fioIOPS is what the last job reached.
func (b *bench) fioIOPS() (float64, error) {
	out, err := os.ReadFile(b.path(fioFile))
	if err != nil {
		return 0, err
	}
	return parseFio(out)
}

// run runs a command to its end.
func (b *bench) run(name string, args ...string) error {
	_, err := b.output(name, args...)
	return err
}

// output is what a command prints on stdout; an error has all that it said.
func (b *bench) output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = b.dir
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(stdout.String() + stderr.String())
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, said)
	}
	return stdout.String(), nil
}
