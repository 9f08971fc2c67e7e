//go:build machine

package powercut

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/qzbd/qzbd/tests/crashfile"
	"github.com/qzbd/qzbd/tests/nbd"
	"github.com/qzbd/qzbd/tests/vm"
)

var (
	cutsFlag   = flag.Int("powercuts", 1, "power cuts of each kind of use")
	seedFlag   = flag.Uint64("seed", 0, "seed, instead of a random one")
	seriesFlag = flag.String("kernel", string(vm.Series7), "series of the guest's kernel")
)

const (
	diskSize = 3 << 30

	// earlyChanges is about how many changes of the disk a boot makes before it
	// works.
	earlyChanges = 80
)

func TestPowerCutsUnderFioLoseNothingThatWasFlushed(t *testing.T) { powerCuts(t, "fio") }
func TestPowerCutsUnderF2fsLoseNoFsyncedFile(t *testing.T)        { powerCuts(t, "f2fs") }
func TestPowerCutsUnderBtrfsLoseNoFsyncedFile(t *testing.T)       { powerCuts(t, "btrfs") }

// site is a machine whose disk is ours.
type site struct {
	t       *testing.T
	kind    string
	rng     *rand.Rand
	dir     string // sockets, and what the guest is told
	worker  string
	qzbd    string
	disk    *crashfile.File
	durable bytes.Buffer // lines of the guest
}

// powerCuts boots, works, takes the power away at a random moment, and looks at
// what is left after the next boot.
func powerCuts(t *testing.T, kind string) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed=%d", seed)
	s := &site{t: t, kind: kind, rng: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir(), disk: crashfile.New()}
	if err := s.disk.Truncate(diskSize); err != nil {
		t.Fatal(err)
	}
	if err := s.disk.Sync(); err != nil {
		t.Fatal(err)
	}
	s.build()
	for n := range *cutsFlag {
		s.boot(n == 0)
		s.disk = s.disk.Cut(s.rng)
	}
	s.last()
}

// build compiles what the guest runs.
func (s *site) build() {
	s.t.Helper()
	if s.qzbd = os.Getenv("QZBD_BIN"); s.qzbd == "" {
		root, err := filepath.Abs("../..")
		if err != nil {
			s.t.Fatal(err)
		}
		s.qzbd = filepath.Join(root, "bin", "qzbd")
	}
	s.worker = filepath.Join(s.dir, "worker")
	cmd := exec.Command("go", "build", "-o", s.worker, "./worker")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
}

// boot runs the machine until its power goes off.
func (s *site) boot(first bool) {
	s.t.Helper()
	ctx, kill := context.WithCancel(context.Background())
	defer kill()
	// So many flushes, and then so many changes of the disk; or while what
	// the last cut left is still being looked at.
	flushes, changes := 1+s.rng.IntN(12), 1+s.rng.IntN(300)
	phase := "NEXT"
	if first {
		phase = "FIRST"
	} else if s.rng.IntN(3) == 0 {
		s.disk.CutIn(1 + s.rng.IntN(earlyChanges))
	}
	before, at := s.durable.Len(), ""
	began, ops := time.Now(), s.disk.Ops()
	out := &lines{each: func(line string) {
		switch {
		case strings.HasPrefix(line, "#"):
			at += fmt.Sprintf("\n%5.1fs %5d changes: %s", time.Since(began).Seconds(), s.disk.Ops()-ops, line[1:])
		case line == "flushed":
			if flushes--; flushes == 0 {
				s.disk.CutIn(changes)
			}
		default:
			s.durable.WriteString(line + "\n")
		}
	}}
	status, log, err := s.run(ctx, kill, phase, out)
	if !s.disk.Dead() {
		s.t.Fatalf("%s: the machine ended by itself: status %d, %v\n%s", phase, status, err, log)
	}
	s.t.Logf("%s: power cut after %.1fs and %d changes, %d more lines of what is durable%s", phase,
		time.Since(began).Seconds(), s.disk.Ops()-ops, bytes.Count(s.durable.Bytes()[before:], []byte("\n")), at)
}

// last boots once more and checks that all is well.
func (s *site) last() {
	s.t.Helper()
	ctx, kill := context.WithCancel(context.Background())
	defer kill()
	status, log, err := s.run(ctx, kill, "LAST", &lines{each: func(string) {}})
	if err != nil || status != 0 {
		s.t.Fatalf("after the last power cut: status %d, %v\n%s", status, err, log)
	}
}

// run is one boot. A cut of the disk kills the machine.
func (s *site) run(ctx context.Context, kill func(), phase string, out *lines) (status int, log string, err error) {
	s.t.Helper()
	socket := filepath.Join(s.dir, "nbd")
	os.Remove(socket)
	server, err := nbd.Serve(socket, &mains{s.disk, kill, ctx}, diskSize)
	if err != nil {
		s.t.Fatal(err)
	}
	share := filepath.Join(s.dir, "out")
	if err := os.MkdirAll(share, 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(share, "durable"), s.durable.Bytes(), 0o644); err != nil {
		s.t.Fatal(err)
	}
	var said bytes.Buffer
	status, err = vm.Run(ctx, vm.Options{
		Series: vm.Series(*seriesFlag), NBD: []string{socket}, Out: share,
		Env:    []string{"QZBD_BIN=" + s.qzbd},
		Stdout: out, Stderr: &said, Log: &said,
	}, []string{s.worker, s.kind, phase, fmt.Sprint(s.rng.Uint32())})
	kill() // whoever waits for the disk
	if cerr := server.Close(); cerr != nil {
		s.t.Error(cerr)
	}
	return status, said.String(), err
}

// mains is the disk with its power: when that goes off, the machine's does, and
// nobody gets an answer any more.
type mains struct {
	*crashfile.File
	off  func()
	dead context.Context
}

func (m *mains) after(err error) error {
	if errors.Is(err, crashfile.ErrCut) {
		m.off()
		<-m.dead.Done()
	}
	return err
}

func (m *mains) ReadAt(p []byte, off int64) (int, error) {
	n, err := m.File.ReadAt(p, off)
	return n, m.after(err)
}

func (m *mains) WriteAt(p []byte, off int64) (int, error) {
	n, err := m.File.WriteAt(p, off)
	return n, m.after(err)
}

func (m *mains) WriteDurable(p []byte, off int64) error { return m.after(m.File.WriteDurable(p, off)) }
func (m *mains) Sync() error                            { return m.after(m.File.Sync()) }
func (m *mains) Punch(off, n int64) error               { return m.after(m.File.Punch(off, n)) }

// lines calls each with whole lines.
type lines struct {
	mu   sync.Mutex
	rest string
	each func(string)
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest += string(p)
	for {
		line, rest, ok := strings.Cut(l.rest, "\n")
		if !ok {
			return len(p), nil
		}
		l.each(line)
		l.rest = rest
	}
}
