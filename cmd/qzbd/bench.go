package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/pprof"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

// The cache modes of bench: how data gets to the image file.
const (
	cacheWriteback = "writeback" // by the page cache
	cacheNone      = "none"      // past it
)

// benchOptions are the flags of bench, which are qemu-img's.
type benchOptions struct {
	image         string
	write         bool
	size          sizeFlag
	depth         int
	count         uint64
	cache         string
	offset        sizeFlag
	step          sizeFlag // 0: size
	flushInterval uint64
	pattern       uint8
	json          bool
	cpuProfile    string // file to write a profile to; "": none
}

func benchCommand() *cobra.Command {
	o := benchOptions{size: 4096}
	cmd := &cobra.Command{
		Use:   "bench IMAGE",
		Short: "Measure reading or writing an image, without a device",
		Long: `Bench reads IMAGE, or with -w overwrites it, the way a server of it does, but
for the device: it needs neither root nor ublk. It reports the CPU time that a
request takes, of user and system, requests per second and the time it took.
The options are those of qemu-img bench.

With -w data of the image is lost: writes really happen. Those to conventional
zones go where the offset and the step say. In a sequential zone they go to the
write pointer, and a zone that has no room for another one is reset. What was
never written is read without a look at the file, and the report says how much
that was.

Interrupted by SIGINT, SIGTERM or SIGHUP, it waits for the requests in flight and
reports what it has measured up to there. A second one ends it at once; an image
that was written is then brought into order by the next who writes to it.`,
		Example: `  qzbd create z.qcow2 1G
  qzbd bench -w -s 1M -d 4 -c 1024 z.qcow2
  qzbd bench -t none -d 16 -c 200000 z.qcow2`,
		Args:              needs("IMAGE"),
		ValidArgsFunction: completeImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.image = args[0]
			signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}
			signals = slices.DeleteFunc(signals, signal.Ignored) // by nohup, or a shell that runs it in the background
			ctx, stop := signal.NotifyContext(cmd.Context(), signals...)
			defer stop()
			context.AfterFunc(ctx, stop) // the next signal ends it at once
			return o.run(ctx, os.Stdout)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.write, "write", "w", false, "write, which overwrites data of the image")
	f.VarP(&o.size, "buffer-size", "s", "bytes of a request; K, M and G as usual")
	f.IntVarP(&o.depth, "depth", "d", 64, "requests in flight")
	f.Uint64VarP(&o.count, "count", "c", 75000, "number of requests")
	f.StringVarP(&o.cache, "cache", "t", cacheWriteback, "writeback: data goes by the host's page cache; none: past it (O_DIRECT)")
	f.VarP(&o.offset, "offset", "o", "byte of the device at which to begin")
	f.VarP(&o.step, "step-size", "S", "bytes from the start of a request to that of the next; 0: the buffer size")
	f.Uint64Var(&o.flushInterval, "flush-interval", 0, "flush after so many writes, when they are over; 0: never")
	f.Uint8Var(&o.pattern, "pattern", 0, "what every byte written is")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.StringVar(&o.cpuProfile, "cpuprofile", "", "write a CPU profile of the requests to a file, for go tool pprof")
	if err := f.MarkHidden("cpuprofile"); err != nil { // for whoever works on qzbd
		panic(err)
	}
	completeFlag(cmd, "cache", words(cacheWriteback, cacheNone))
	for _, number := range []string{"buffer-size", "depth", "count", "offset", "step-size", "flush-interval", "pattern"} {
		completeFlag(cmd, number, words())
	}
	return cmd
}

// benchReport is what bench --json prints.
type benchReport struct {
	Image             string  `json:"image"`
	Write             bool    `json:"write"`
	Cache             string  `json:"cache"`
	BufferSize        int     `json:"buffer-size"`
	Depth             int     `json:"depth"`
	Offset            uint64  `json:"offset"`
	StepSize          uint64  `json:"step-size"`
	FlushInterval     uint64  `json:"flush-interval"`
	Requests          uint64  `json:"requests"`
	Unwritten         uint64  `json:"unwritten"`
	Flushes           uint64  `json:"flushes"`
	Resets            uint64  `json:"resets"`
	Seconds           float64 `json:"seconds"`
	RequestsPerSecond float64 `json:"requests-per-second"`
	BytesPerSecond    float64 `json:"bytes-per-second"`
	CPU               float64 `json:"cpu-microseconds-per-request"`
	User              float64 `json:"user-microseconds-per-request"`
	System            float64 `json:"system-microseconds-per-request"`
}

func (o *benchOptions) run(ctx context.Context, out io.Writer) error {
	if o.cache != cacheWriteback && o.cache != cacheNone {
		return fmt.Errorf("-t %s: choose %s or %s", o.cache, cacheWriteback, cacheNone)
	}
	if o.depth < 1 || o.depth > 4096 {
		return fmt.Errorf("-d %d: a device takes 1 to 4096", o.depth)
	}
	w := ublk.Workload{
		Write: o.write, Size: int(o.size), Count: o.count, Offset: uint64(o.offset), Step: uint64(o.step),
		FlushInterval: o.flushInterval, Pattern: o.pattern,
	}
	if w.Step == 0 {
		w.Step = uint64(w.Size)
	}
	b, err := openBench(o)
	if err != nil {
		return err
	}
	if err := w.Check(b.zones.Geometry(), o.depth); err != nil {
		return errors.Join(err, b.image.Close())
	}
	if o.write {
		printWarning(o.image + ": -w overwrites its data")
	}
	if !o.json {
		if _, err := io.WriteString(out, o.announcement(w)); err != nil {
			return errors.Join(err, b.image.Close())
		}
	}
	res, err := o.measure(ctx, b, w)
	if errors.Is(err, zns.ErrActiveLimit) {
		err = fmt.Errorf("%w: choose a size that divides the zone capacity and a step that goes on in the same zone, or an image with a larger zone.max_active_zones", err)
	}
	var interrupted error
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) {
		interrupted = fmt.Errorf("%s: interrupted after %d of %d requests", o.image, res.Requests, w.Count)
		err = nil
	}
	if err = errors.Join(err, b.image.Close()); err != nil {
		return fmt.Errorf("%s: %w", o.image, err)
	}
	r := o.report(w, res)
	if o.json {
		return errors.Join(printJSON(r), interrupted)
	}
	_, err = io.WriteString(out, r.text(interrupted != nil))
	return errors.Join(err, interrupted)
}

// bench is an image that is open for Bench.
type bench struct {
	image  *qcow2.Image
	zones  *zns.Device
	config ublk.Config
}

// openBench opens an image as attach does, but for what has to do with a device.
// A short last zone is left alone.
func openBench(o *benchOptions) (*bench, error) {
	if err := refuseWaiting(o.image); err != nil {
		return nil, err
	}
	file, err := openImage(o.image, o.write, qcow2.Lock)
	if err != nil {
		return nil, err
	}
	b, err := newBench(qcow2.NewOSFile(file), o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", o.image, err), file.Close())
	}
	return b, nil
}

// newBench takes over f unless it fails.
func newBench(f *qcow2.OSFile, o *benchOptions) (*bench, error) {
	h, wps, err := qcow2.ReadPointers(f)
	if err != nil {
		return nil, err
	}
	if err := h.Built(); err != nil {
		return nil, err
	}
	needs, blockSize := qcow2.Direct{}, 512
	if o.cache == cacheNone {
		if needs, blockSize, err = directBench(f, h.ClusterSize()); err != nil {
			return nil, err
		}
	}
	g, err := geometry(h, wps, &attachOptions{blockSize: blockSize, dropShortZone: true})
	if err != nil {
		return nil, err
	}
	if err := ublk.CheckGeometry(g); err != nil {
		return nil, err
	}
	im, err := qcow2.Open(f, qcow2.Options{ReadOnly: !o.write, SyncInterval: qcow2.DefaultSyncInterval, Warn: printWarning})
	if err != nil {
		return nil, err
	}
	zones, err := benchZones(g, im, o)
	if err != nil {
		return nil, errors.Join(err, im.Close())
	}
	return &bench{im, zones, ublk.Config{
		Depth: o.depth, DataFD: f.DataFD(), DataAlign: needs.Offset,
		Slot: func(_, tag int, r *zns.Request) { r.Slot = uint32(tag) },
	}}, nil
}

// benchZones keeps a journal as a server does, though nobody will need it.
func benchZones(g zns.Geometry, im *qcow2.Image, o *benchOptions) (*zns.Device, error) {
	slots := uint32(o.depth)
	j, err := zns.NewJournal(make([]byte, zns.JournalBytes(g.NrZones, slots)), g.NrZones, slots)
	if err != nil {
		return nil, err
	}
	options := []zns.Option{zns.WithJournal(j)}
	if !o.write {
		options = append(options, zns.ReadOnly())
	}
	return zns.New(g, im, options...)
}

// directBench makes the data of the image go past the page cache, and chooses
// blocks that this can be done with.
func directBench(f *qcow2.OSFile, clusterSize int64) (needs qcow2.Direct, blockSize int, err error) {
	const without = "use -t " + cacheWriteback
	if needs, err = f.UseDirect(); errors.Is(err, qcow2.ErrNoDirect) {
		return needs, 0, fmt.Errorf("%w: %s", err, without)
	} else if err != nil {
		return needs, 0, err
	}
	blockSize = 512
	if max(needs.Offset, needs.Memory) > blockSize {
		blockSize = 4096
	}
	return needs, blockSize, checkDirect(f.Name(), needs, blockSize, clusterSize, without)
}

// measure carries out w, and makes the profile that was asked for.
func (o *benchOptions) measure(ctx context.Context, b *bench, w ublk.Workload) (res ublk.BenchResult, err error) {
	if o.cpuProfile != "" {
		f, err := os.OpenFile(o.cpuProfile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) // never over the image
		if err != nil {
			return res, err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return res, err
		}
		defer pprof.StopCPUProfile()
	}
	return ublk.Bench(ctx, b.config, b.zones, w)
}

// announcement says what is going to happen, as qemu-img bench does.
func (o *benchOptions) announcement(w ublk.Workload) string {
	what := "read"
	if w.Write {
		what = "write"
	}
	s := fmt.Sprintf("Sending %d %s requests, %d bytes each, %d in parallel (starting at offset %d, step size %d)\n",
		w.Count, what, w.Size, o.depth, w.Offset, w.Step)
	if w.FlushInterval != 0 {
		s += fmt.Sprintf("Sending a flush after every %d requests\n", w.FlushInterval)
	}
	return s
}

func (o *benchOptions) report(w ublk.Workload, res ublk.BenchResult) benchReport {
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(max(res.Requests, 1)) }
	perSecond := float64(res.Requests) / max(res.Wall, 1).Seconds()
	return benchReport{
		Image: o.image, Write: w.Write, Cache: o.cache, BufferSize: w.Size, Depth: o.depth, Offset: w.Offset, StepSize: w.Step,
		FlushInterval: w.FlushInterval, Requests: res.Requests, Unwritten: res.Unwritten, Flushes: res.Flushes, Resets: res.Resets,
		Seconds: res.Wall.Seconds(), RequestsPerSecond: perSecond, BytesPerSecond: perSecond * float64(w.Size),
		CPU: each(res.User + res.System), User: each(res.User), System: each(res.System),
	}
}

// text is the report for people.
func (r *benchReport) text(interrupted bool) string {
	s := fmt.Sprintf("Run completed in %.3f seconds.\n", r.Seconds)
	if interrupted {
		s = fmt.Sprintf("Run interrupted after %d requests and %.3f seconds.\n", r.Requests, r.Seconds)
	}
	s += fmt.Sprintf("CPU per request: %.2f µs (user %.2f, system %.2f)\n", r.CPU, r.User, r.System)
	s += fmt.Sprintf("%.0f requests per second, %.1f MiB/s\n", r.RequestsPerSecond, r.BytesPerSecond/(1<<20))
	if r.Unwritten > 0 {
		s += fmt.Sprintf("%d of the %d reads were of what was never written, and took no look at the file\n", r.Unwritten, r.Requests)
	}
	if r.Write {
		s += fmt.Sprintf("%d flushes, %d zones reset\n", r.Flushes, r.Resets)
	}
	return s
}

// sizeFlag is a flag of bytes, with the suffixes that qemu-img knows.
type sizeFlag uint64

func (s *sizeFlag) Set(v string) error {
	n, err := qcow2.ParseSize(v)
	*s = sizeFlag(n)
	return err
}

func (s *sizeFlag) Type() string { return "size" }

func (s *sizeFlag) String() string {
	n, unit := uint64(*s), 0
	for n != 0 && n%1024 == 0 && unit < 3 {
		n, unit = n/1024, unit+1
	}
	return fmt.Sprintf("%d%s", n, [...]string{"", "K", "M", "G"}[unit])
}
