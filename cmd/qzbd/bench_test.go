package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/zns"
)

// benchImage is an image of two conventional and two sequential zones of 16M.
func benchImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "z.qcow2")
	if err := qcow2.Create(path, qcow2.CreateOptions{Size: 64 * mib, ZoneSize: 16 * mib, Conventional: 2}); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBenchWritesForRealAndLeavesACleanImage(t *testing.T) {
	for _, c := range []struct {
		cache string
		size  sizeFlag
	}{{cacheWriteback, 512}, {cacheWriteback, 64 << 10}, {cacheNone, 4096}} {
		path := benchImage(t)
		o := benchOptions{
			image: path, write: true, size: c.size, depth: 8, count: 100, cache: c.cache,
			offset: 32 * mib, pattern: 0x5a, flushInterval: 30,
		}
		var out bytes.Buffer
		if err := o.run(t.Context(), &out); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"Sending 100 write requests, ", " bytes each, 8 in parallel (starting at offset 33554432, step size ",
			"Sending a flush after every 30 requests\n", "Run completed in ", "CPU per request: ", "3 flushes, 0 zones reset\n",
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s lacks %q", out.String(), want)
			}
		}
		in, err := readInfo(path)
		if err != nil || in.Dirty || in.Zoned.Partly != 1 || in.Zoned.Empty != 1 {
			t.Fatalf("%+v, %v", in, err)
		}
		b, err := openBench(&benchOptions{image: path, depth: 1})
		if err != nil {
			t.Fatal(err)
		}
		n := 100 * uint64(c.size)
		if z := b.zones.Zone(2); z.WP-z.Start != n {
			t.Errorf("the write pointer is at %d, want %d", z.WP-z.Start, n)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, n)
		if err := zns.Do(b.zones, &zns.Request{Op: zns.OpRead, Start: 32 * mib, Len: n}, f, data); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(data, bytes.Repeat([]byte{0x5a}, int(n))) {
			t.Errorf("%+v: not the pattern", c)
		}
		if err := b.image.Close(); err != nil {
			t.Error(err)
		}
		f.Close()
	}
}

func TestBenchSaysWhatItReadThatIsNotThere(t *testing.T) {
	path := benchImage(t)
	o := benchOptions{image: path, size: 4096, depth: 4, count: 100, cache: cacheWriteback}
	read := func() string {
		t.Helper()
		var out bytes.Buffer
		if err := o.run(t.Context(), &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if out := read(); !strings.Contains(out, "\n100 of the 100 reads were of what was never written") {
		t.Error(out)
	}
	o.write = true
	read()
	o.write = false
	if out := read(); strings.Contains(out, "never written") {
		t.Error(out)
	}
}

func TestBenchInterruptedSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	path := benchImage(t)
	o := benchOptions{image: path, size: 4096, depth: 4, count: 1 << 60, cache: cacheWriteback}
	var out bytes.Buffer
	err := o.run(ctx, &out)
	if !strings.Contains(out.String(), "Run interrupted after ") {
		t.Error(out.String())
	}
	if err == nil || !strings.HasPrefix(err.Error(), path+": interrupted after ") || !strings.HasSuffix(err.Error(), " of 1152921504606846976 requests") {
		t.Error(err)
	}
}

func TestBenchReadsWithoutWriting(t *testing.T) {
	path := benchImage(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	// More than once round, over all kinds of zones.
	if code := run([]string{"bench", "-s", "64K", "-c", "3000", path}); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
		t.Errorf("the image was changed, %v", err)
	}
}

func TestBenchRefusesAnImageInUse(t *testing.T) {
	path := benchImage(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := qcow2.Lock(f, true); err != nil {
		t.Fatal(err)
	}
	for _, write := range []bool{false, true} {
		o := benchOptions{image: path, write: write, size: 4096, depth: 1, count: 1, cache: cacheWriteback}
		if err := o.run(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "in use by another process") {
			t.Errorf("write %v: %v", write, err)
		}
	}
}

func TestAnImageIsWaitedForThatNobodyHasOpenAnyMore(t *testing.T) {
	tries := 0
	f, err := openImage(benchImage(t), true, func(f *os.File, write bool) error {
		if tries++; tries == 1 {
			return fmt.Errorf("%s: %w", f.Name(), qcow2.ErrInUse)
		}
		return qcow2.Lock(f, write)
	})
	if err != nil || tries != 2 {
		t.Fatalf("%v after %d tries", err, tries)
	}
	f.Close()
}

func TestBenchSaysWhatCannotBeMeasured(t *testing.T) {
	path := benchImage(t)
	for _, c := range []struct{ line, want string }{
		{"-t unsafe", "-t unsafe: choose writeback or none"},
		{"-s 1000", "requests of 1000 bytes are impossible"},
		{"-s 17M", "requests of 17825792 bytes are impossible: use a multiple of the block size 512 up to 16777216"},
		{"-s many", "it must be a size such as 65536, 64K, 1.5G or 1T: see `qzbd bench --help`"},
		{"-c 0", "0 requests are nothing to measure"},
		{"-o 64M", "the offset 67108864 is impossible"},
		{"--flush-interval 3", "a flush every 3 requests makes sense with writes only"},
		{"-d 5000", "-d 5000: a device takes 1 to 4096"},
		{"--pattern 300", "see `qzbd bench --help`"},
	} {
		_, err := execute(append(append([]string{"bench"}, strings.Fields(c.line)...), path)...)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", c.line, err, c.want)
		}
	}
}

func TestBenchSaysWhatHelpsAgainstALimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "z.qcow2")
	if err := qcow2.Create(path, qcow2.CreateOptions{Size: 64 * mib, ZoneSize: 16 * mib, MaxOpen: 1, MaxActive: 1}); err != nil {
		t.Fatal(err)
	}
	_, err := execute("bench", "-w", "-S", "16M", path)
	if err == nil || !strings.Contains(err.Error(), "write of 4096 bytes at 16777216: too many active zones: choose a size that divides the zone capacity and a step") {
		t.Errorf("got %v", err)
	}
	if rep, err := checkImage(path); err != nil || rep.ExitCode() != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
}

func TestSizesAreShownAsTheyAreWritten(t *testing.T) {
	for _, s := range []string{"0", "1", "512", "4K", "1536", "1M", "3G", "4096G"} {
		var f sizeFlag
		if err := f.Set(s); err != nil || f.String() != s {
			t.Errorf("%s is shown as %s, %v", s, f.String(), err)
		}
	}
}
