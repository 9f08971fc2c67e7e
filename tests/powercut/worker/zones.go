package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

// rawZones writes zones with fio, four at a time, and resets them before it
// writes them again. Every block says where it belongs and which life of its
// zone it is from, by fio's verify_pattern.
//
// Its lines are "life L of zone N at W": everything below byte W is durable,
// and "life L of zone N begins": the reset before it is durable. The file of
// intents says that before the reset, because the power may go off between the
// reset and the line.
type rawZones struct{}

const fioBlock = 64 << 10

func (rawZones) create() (options, size string) {
	return "zone.size=4M,zone.capacity=3M,zone.max_open_zones=8,zone.max_active_zones=12", "256M"
}

func (rawZones) prepare(string) error { return nil }

func (rawZones) work(node string, rng *rand.Rand) error {
	// O_DIRECT, so that our own file has no pages to write.
	f, err := os.OpenFile(node, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	zones, err := ublk.ReportZones(node)
	if err != nil {
		return err
	}
	lives, err := readLives()
	if err != nil {
		return err
	}
	for {
		fio, err := startFio(node, zones, lives, rng)
		if err != nil {
			return err
		}
		ended := make(chan error, 1)
		go func() { ended <- fio.Wait() }()
		for running := true; running; {
			select {
			case err := <-ended:
				if err != nil {
					return fmt.Errorf("fio: %w", err)
				}
				running = false
			default:
			}
			if err := flush(node, f, lives); err != nil {
				return err
			}
		}
	}
}

// lives has the newest life of each zone, and the one before it.
type lives map[int][2]uint32

// intend begins a new life of zones, before their reset.
func (l lives) intend(first, n int, life uint32) error {
	f, err := os.OpenFile(intents(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	for i := first; i < first+n; i++ {
		l[i] = [2]uint32{life, l[i][0]}
		if _, err := fmt.Fprintf(f, "%d %d\n", i, life); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

func readLives() (lives, error) {
	p, err := os.ReadFile(intents())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l := lives{}
	for line := range strings.Lines(string(p)) {
		var i int
		var life uint32
		if _, err := fmt.Sscanf(line, "%d %d", &i, &life); err != nil {
			return nil, fmt.Errorf("intent %q: %w", line, err)
		}
		l[i] = [2]uint32{life, l[i][0]}
	}
	return l, nil
}

// intents is a file of the host, so no power cut touches it.
func intents() string { return filepath.Join(os.Getenv("QZBD_VM_OUT"), "intents") }

// startFio resets some zones in each quarter of the device and starts a job
// for each, which fills them.
func startFio(node string, zones []zns.Zone, lives lives, rng *rand.Rand) (*exec.Cmd, error) {
	const jobs, window = 4, 3
	args := []string{"--filename=" + node, "--direct=1", "--zonemode=zbd", "--ioengine=libaio", "--iodepth=8",
		"--rw=write", "--bs=" + fmt.Sprint(fioBlock), "--verify=pattern", "--do_verify=0"}
	per := len(zones) / jobs
	for k := range jobs {
		life := max(rng.Uint32(), 1)
		first := k*per + rng.IntN(per-window)
		if err := lives.intend(first, window, life); err != nil {
			return nil, err
		}
		at, n := zones[first].Start, window*zones[first].Len
		if err := command("blkzone", "reset", "-o", fmt.Sprint(at/512), "-l", fmt.Sprint(n/512), node); err != nil {
			return nil, err
		}
		for i := range window {
			fmt.Printf("life %d of zone %d begins\n", life, first+i) // durable when it is answered (I4)
		}
		args = append(args, fmt.Sprintf("--name=job%d", k), fmt.Sprintf("--offset=%d", at), fmt.Sprintf("--size=%d", n),
			fmt.Sprintf("--verify_pattern=0x%08x%%o", life))
	}
	cmd := exec.Command("fio", args...)
	cmd.Stderr = os.Stderr
	return cmd, cmd.Start()
}

// flush makes durable what the zones have, and says so.
func flush(node string, f *os.File, lives lives) error {
	zones, err := ublk.ReportZones(node)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	var b bytes.Buffer
	for i, z := range zones {
		if z.WP != z.Start {
			fmt.Fprintf(&b, "life %d of zone %d at %d\n", lives[i][0], i, z.WP-z.Start)
		}
	}
	b.WriteString("flushed\n")
	_, err = os.Stdout.Write(b.Bytes())
	return err
}

func (rawZones) verify(node string, lines []string) error {
	zones, err := ublk.ReportZones(node)
	if err != nil {
		return err
	}
	lives, err := readLives()
	if err != nil {
		return err
	}
	begun := map[uint32]bool{}
	type part struct {
		zone int
		life uint32
	}
	durable := map[part]uint64{}
	for _, l := range lines {
		var p part
		var n uint64
		if _, err := fmt.Sscanf(l, "life %d of zone %d at %d", &p.life, &p.zone, &n); err == nil {
			durable[p] = n
		} else if _, err := fmt.Sscanf(l, "life %d of zone %d begins", &p.life, &p.zone); err == nil {
			begun[p.life] = true
		}
	}
	f, err := os.Open(node)
	if err != nil {
		return err
	}
	defer f.Close()
	var errs []error
	for i, z := range zones {
		n := z.WP - z.Start
		life, before := lives[i][0], lives[i][1]
		if n > 0 && !begun[life] {
			// Was this reset the last thing that happened, or not even that?
			first := make([]byte, 4)
			if _, err := f.ReadAt(first, int64(z.Start)); err != nil {
				return err
			}
			if binary.BigEndian.Uint32(first) == before {
				life = before
				if err := lives.intend(i, 1, life); err != nil { // it goes on
					return err
				}
			}
		}
		if floor := durable[part{i, life}]; n < floor {
			errs = append(errs, fmt.Errorf("zone %d: write pointer at %d, but %d was durable (I1)", i, n, floor))
		}
		if n%fioBlock != 0 {
			errs = append(errs, fmt.Errorf("zone %d: write pointer at %d is no write's end (I3)", i, n))
		}
		if err := holds(f, z, life); err != nil {
			errs = append(errs, fmt.Errorf("zone %d: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// holds checks that a zone has the blocks of one life below its write pointer,
// and zeros where it goes on.
func holds(f io.ReaderAt, z zns.Zone, life uint32) error {
	const above = 8 * fioBlock
	got, want := make([]byte, fioBlock), make([]byte, fioBlock)
	for at := z.Start; at < min(z.WP+above, z.Start+z.Len); at += fioBlock {
		if _, err := f.ReadAt(got, int64(at)); err != nil {
			return err
		}
		if at < z.WP {
			binary.BigEndian.PutUint32(want, life)
			binary.LittleEndian.PutUint64(want[4:], at) // fio's %o
			for n := 12; n < len(want); n *= 2 {
				copy(want[n:], want[:n])
			}
		} else {
			clear(want)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("block %d begins with % x, want % x (I2, I6)", (at-z.Start)/fioBlock, got[:16], want[:16])
		}
	}
	return nil
}
