package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// step is one line of narration and what happens meanwhile.
type step struct {
	title string
	do    func() error
}

// stage is where the demonstration takes place: it runs the commands, says
// so, and clears everything away in the end.
type stage struct {
	ctx     context.Context
	program string
	dir     string
	steps   int
	began   time.Time
	mounted []string // directories, in the order of mounting
	nodes   []string // attached devices
}

func newStage(ctx context.Context, program string) (*stage, error) {
	dir, err := os.MkdirTemp("", "qzbd-demo-")
	return &stage{ctx: ctx, program: program, dir: dir, began: time.Now()}, err
}

// play tells the step, does it and says how it went.
func (s *stage) play(st step) error {
	s.steps++
	fmt.Printf("\n%2d. %s\n", s.steps, st.title)
	began := time.Now()
	err := st.do()
	if err == nil {
		err = s.ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("step %d failed (%s): %w", s.steps, st.title, err)
	}
	fmt.Printf("    ok, %.1f s\n", time.Since(began).Seconds())
	return nil
}

// end clears away whatever is left, in reverse order, also after a failure.
func (s *stage) end() error {
	s.ctx = context.WithoutCancel(s.ctx)
	var errs []error
	for _, dir := range slices.Backward(s.mounted) {
		errs = append(errs, s.unmount(dir))
	}
	for _, node := range slices.Backward(slices.Clone(s.nodes)) {
		errs = append(errs, s.detach(&disk{node: node}, node))
	}
	errs = append(errs, os.RemoveAll(s.dir))
	err := errors.Join(errs...)
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	fmt.Printf("\nNothing is left behind: no device, no mount, no file. %.0f seconds.\n", time.Since(s.began).Seconds())
	return nil
}

// print shows output below the narration.
func (s *stage) print(text string) {
	for line := range strings.Lines(text) {
		fmt.Print("    ", line)
	}
}

// run runs a command to its end and returns its standard output; an error has
// everything the command said.
func (s *stage) run(name string, args ...string) (string, error) {
	if err := s.ctx.Err(); err != nil {
		return "", err
	}
	// An interrupt reaches the command through the terminal anyway, and a
	// device is best left after its user: so no command is killed with ours.
	cmd := exec.Command(name, args...)
	cmd.Dir = s.dir
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(stdout.String() + stderr.String())
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, said)
	}
	return stdout.String(), nil
}

// say is run for the commands worth showing.
func (s *stage) say(name string, args ...string) (string, error) {
	s.print("$ " + strings.Join(append([]string{filepath.Base(name)}, args...), " ") + "\n")
	return s.run(name, args...)
}

func (s *stage) qzbd(args ...string) (string, error) { return s.say(s.program, args...) }

func (s *stage) create(d *disk, options, size string) error {
	_, err := s.qzbd("create", "-o", options, d.image, size)
	return err
}

func (s *stage) attach(d *disk) error {
	out, err := s.qzbd("attach", d.image)
	if err != nil {
		return err
	}
	s.print(out)
	d.node = strings.TrimSpace(out)
	s.nodes = append(s.nodes, d.node)
	return nil
}

// detach stops serving a disk, by the name of its device or its image.
func (s *stage) detach(d *disk, name string) error {
	if _, err := s.qzbd("detach", name); err != nil {
		return err
	}
	s.nodes = slices.DeleteFunc(s.nodes, func(n string) bool { return n == d.node })
	if _, err := os.Stat(d.node); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is still there: %w", d.node, err)
	}
	d.node = ""
	return nil
}

// fio runs one job and shows how fast it wrote and verified.
func (s *stage) fio(d *disk, args ...string) error {
	s.print("$ fio --zonemode=zbd --verify=crc32c " + strings.Join(args, " ") + "\n")
	out, err := s.run("fio", append([]string{
		"--filename=" + d.node, "--direct=1", "--zonemode=zbd", "--ioengine=libaio",
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
	}, args...)...)
	for line := range strings.Lines(out) {
		if l := strings.TrimSpace(line); strings.HasPrefix(l, "READ:") || strings.HasPrefix(l, "WRITE:") {
			s.print(l + "\n")
		}
	}
	return err
}

// sum hashes the first bytes of a device.
func (s *stage) sum(node string, n int64) (string, error) {
	f, err := os.Open(node)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyN(h, f, n); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

func (s *stage) mount(d *disk) (string, error) {
	name := strings.TrimSuffix(d.image, ".qcow2")
	dir := filepath.Join(s.dir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	if _, err := s.say("mount", d.node, name); err != nil {
		return "", err
	}
	s.mounted = append(s.mounted, dir)
	return dir, nil
}

func (s *stage) unmount(dir string) error {
	if _, err := s.run("umount", dir); err != nil {
		return err
	}
	s.mounted = slices.DeleteFunc(s.mounted, func(m string) bool { return m == dir })
	return os.Remove(dir)
}

// fill attaches a disk, makes a file system on it and writes a tree of files.
func (s *stage) fill(d *disk, t *tree, mkfs ...string) error {
	if err := s.attach(d); err != nil {
		return err
	}
	if _, err := s.say(mkfs[0], append(mkfs[1:], d.node)...); err != nil {
		return err
	}
	dir, err := s.mount(d)
	if err != nil {
		return err
	}
	if err := t.write(dir); err != nil {
		return err
	}
	s.print(fmt.Sprintf("%v written\n", t))
	return s.unmount(dir)
}

// compare mounts a disk once more and compares its files with what was written.
func (s *stage) compare(d *disk, t *tree) error {
	dir, err := s.mount(d)
	if err != nil {
		return err
	}
	if err := t.compare(dir); err != nil {
		return err
	}
	s.print(fmt.Sprintf("%v compared, checksums are equal\n", t))
	return s.unmount(dir)
}
