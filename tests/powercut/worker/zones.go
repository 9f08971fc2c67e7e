package main

import (
	"bytes"
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
// writes them again. Every block says where it belongs (fio's verify headers).
//
// Its lines are "zone N at W": everything below byte W of zone N is durable, and
// "zone N reset".
type rawZones struct{}

const fioBlock = 64 << 10

func (rawZones) create() (options, size string) {
	return "zone.size=16M,zone.capacity=12M,zone.max_open_zones=8,zone.max_active_zones=12", "1G"
}

func (rawZones) prepare(string) error { return nil }

func (rawZones) work(node string, seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 0))
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
	for {
		fio, err := startFio(node, zones, rng)
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
			if err := flush(node, f); err != nil {
				return err
			}
		}
	}
}

// startFio resets some zones in each quarter of the device and starts a job
// for each, which fills them.
func startFio(node string, zones []zns.Zone, rng *rand.Rand) (*exec.Cmd, error) {
	const jobs, window = 4, 3
	args := []string{"--filename=" + node, "--direct=1", "--zonemode=zbd", "--ioengine=libaio", "--iodepth=8",
		"--rw=write", "--bs=" + fmt.Sprint(fioBlock), "--verify=crc32c", "--do_verify=0", "--randseed=" + fmt.Sprint(rng.Uint32())}
	per := len(zones) / jobs
	for k := range jobs {
		first := k*per + rng.IntN(per-window)
		at, n := zones[first].Start, window*zones[first].Len
		if err := command("blkzone", "reset", "-o", fmt.Sprint(at/512), "-l", fmt.Sprint(n/512), node); err != nil {
			return nil, err
		}
		for i := range window {
			fmt.Printf("zone %d reset\n", first+i) // durable when it is answered (I4)
		}
		args = append(args, fmt.Sprintf("--name=job%d", k), fmt.Sprintf("--offset=%d", at), fmt.Sprintf("--size=%d", n))
	}
	cmd := exec.Command("fio", args...)
	cmd.Stderr = os.Stderr
	return cmd, cmd.Start()
}

// flush makes durable what the zones have, and says so.
func flush(node string, f *os.File) error {
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
			fmt.Fprintf(&b, "zone %d at %d\n", i, z.WP-z.Start)
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
	floor := make([]uint64, len(zones))
	for _, l := range lines {
		var i int
		var n uint64
		if _, err := fmt.Sscanf(l, "zone %d at %d", &i, &n); err == nil {
			floor[i] = n
		} else if strings.HasSuffix(l, " reset") {
			if _, err := fmt.Sscanf(l, "zone %d reset", &i); err != nil {
				return fmt.Errorf("line %q: %w", l, err)
			}
			floor[i] = 0
		}
	}
	var errs []error
	var jobs strings.Builder
	fmt.Fprintf(&jobs, "[global]\nfilename=%s\ndirect=1\nrw=read\nbs=%d\nverify=crc32c\nverify_fatal=1\nthread=1\n", node, fioBlock)
	written := 0
	for i, z := range zones {
		n := z.WP - z.Start
		if n < floor[i] {
			errs = append(errs, fmt.Errorf("zone %d: write pointer at %d, but %d was durable (I1)", i, n, floor[i]))
		}
		if n%fioBlock != 0 {
			errs = append(errs, fmt.Errorf("zone %d: write pointer at %d is no write's end (I3)", i, n))
		}
		if n > 0 {
			written++
			fmt.Fprintf(&jobs, "[zone%d]\noffset=%d\nsize=%d\nstonewall\n", i, z.Start, n)
		}
		if err := zerosFrom(node, z); err != nil {
			errs = append(errs, fmt.Errorf("zone %d: %w", i, err))
		}
	}
	if len(errs) > 0 || written == 0 {
		return errors.Join(errs...)
	}
	file := filepath.Join(os.TempDir(), "verify.fio")
	if err := os.WriteFile(file, []byte(jobs.String()), 0o600); err != nil {
		return err
	}
	return command("fio", file) // I2
}

// zerosFrom checks that a zone reads as zeros above its write pointer.
func zerosFrom(node string, z zns.Zone) error {
	f, err := os.Open(node)
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, min(z.Start+z.Len-z.WP, 1<<20))
	if _, err := f.ReadAt(p, int64(z.WP)); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if i := bytes.IndexFunc(p, func(r rune) bool { return r != 0 }); i >= 0 {
		return fmt.Errorf("byte %d above the write pointer is not zero (I6)", i)
	}
	return nil
}
