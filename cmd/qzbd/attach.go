package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/systemd"
	"github.com/qzbd/qzbd/ublk"
)

// attachOptions are the flags of attach.
type attachOptions struct {
	image     string
	name      string // of the link in /dev/qzbd; "": none
	config    string // the file with all of this; "": the command line has it
	id        int
	queues    int
	depth     int
	blockSize int
	// syncInterval: what nobody flushes is durable after it; 0: never.
	syncInterval time.Duration
	direct       bool
	readOnly     bool
	noLock       bool
	foreground   bool
	// dropShortZone: a short last zone is left out.
	dropShortZone bool
	logLevel      string
	// metrics is where the metrics can be read; "": only on the control socket.
	metrics    string
	verbose    bool
	trace      []string
	noRecovery bool
	noZeroCopy bool
	resume     bool                    // take over device id, which has no server
	failed     bool                    // its image has: it is only read
	handover   *handover               // of the program that this process was before; nil: none
	progress   func(done, total int64) // of opening the image
	warn       func(string)            // of what may be lost; nil: only logged
	notFlusher error                   // why this process may wait for memory
}

// Shorter, the disk would be busy with nothing but our syncs; longer, nobody
// who does not want 0 can mean it.
const (
	minSyncInterval = 10 * time.Millisecond
	maxSyncInterval = time.Hour
)

// The background server is this program again, with the locked image and the
// readiness pipe as its first inherited files. The image is the same open file
// description, so the lock never lapses.
const (
	backgroundEnv = "QZBD_BACKGROUND" // one of the roles
	startRole     = "start"
	resumeRole    = "resume"  // device --id
	upgradeRole   = "upgrade" // the same, after another program in this process
	tryRole       = "try"     // only say whether that could be
	imageFD       = 3
	readyFD       = 4
)

func attachCommand() *cobra.Command {
	var o attachOptions
	cmd := &cobra.Command{
		Use:   "attach IMAGE|--config FILE",
		Short: "Serve an image as a zoned block device",
		Long: `Attach makes IMAGE a host-managed zoned block device, prints its node,
/dev/ublkbN, once the device is usable, and serves it in the background until
qzbd detach or SIGTERM. When its server dies, the device waits for qzbd recover,
or for another attach of the same image, and its users wait with it.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.config == "" {
				return needs("IMAGE")(cmd, args)
			}
			return onlyConfig(cmd, args)
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if err := o.complete(args); err != nil {
				return err
			}
			role := os.Getenv(backgroundEnv)
			if o.foreground || role != "" && role != tryRole {
				o.notFlusher = becomeFlusher()
			}
			switch role {
			case "":
			case tryRole:
				return o.tryTakeOver()
			case upgradeRole:
				o.resume = true
				return attachUpgraded(&o)
			default:
				o.resume = role == resumeRole
				return attachInBackground(&o)
			}
			if err := refuseStackedPath(o.image, -1); err != nil {
				return err
			}
			if waiting, err := waitingFor(o.image); err != nil {
				return err
			} else if waiting != nil {
				foreground, name, notFlusher := o.foreground, o.name, o.notFlusher
				if err := o.takeOver(waiting); err != nil {
					return err
				}
				o.foreground, o.notFlusher = foreground, notFlusher
				if name != "" {
					o.name = name
				}
				printWarning(fmt.Sprintf("%s: %s waits for a server: taking that over, with the options it was attached with", o.image, waiting.Device))
			}
			if err := o.checkNameFree(); err != nil {
				return err
			}
			if o.foreground {
				return attachInForeground(&o)
			}
			return attachAndReturn(&o)
		},
	}
	o.flags(cmd.Flags())
	o.callFlags(cmd.Flags())
	completeAttach(cmd)
	return cmd
}

// complete makes the options whole and checks them.
func (o *attachOptions) complete(args []string) error {
	if o.config != "" {
		file, foreground, verbose := o.config, o.foreground, o.verbose
		if err := o.readConf(file); err != nil {
			return err
		}
		o.foreground, o.verbose = foreground, verbose
	} else {
		o.image = args[0]
	}
	if o.verbose {
		o.logLevel = zapcore.DebugLevel.String()
	}
	return o.validate()
}

// onlyConfig refuses what the configuration has to say.
func onlyConfig(cmd *cobra.Command, args []string) error {
	var f pflag.FlagSet
	new(attachOptions).flags(&f)
	extra := args
	cmd.Flags().Visit(func(flag *pflag.Flag) {
		if f.Lookup(flag.Name) != nil || flag.Name == "name" {
			extra = append(extra, "--"+flag.Name)
		}
	})
	if len(extra) > 0 {
		return usageError(cmd, fmt.Errorf("--config does not go with %s: the file says everything, and its name is the name of the device", strings.Join(extra, ", ")))
	}
	return nil
}

// checkNameFree refuses a name that another device has.
func (o *attachOptions) checkNameFree() error {
	if o.name == "" {
		return nil
	}
	all, err := states()
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.Name == o.name && (s.alive() || s.waits()) && !(o.resume && s.ID == o.id) {
			return fmt.Errorf("%s is %s, of %s: detach that, or choose another name", linkPath(o.name), s.Device, s.Image)
		}
	}
	return nil
}

// flags are those of attach that say what device it is to be. A configuration
// has them as keys.
func (o *attachOptions) flags(f *pflag.FlagSet) {
	f.IntVar(&o.id, "id", -1, "device number N of /dev/ublkbN; -1: the first free one")
	f.IntVar(&o.queues, "queues", 1, "hardware queues, one thread each")
	f.IntVar(&o.depth, "depth", 128, "requests in flight per queue")
	f.IntVar(&o.blockSize, "block-size", 512, "logical block size in bytes, 512 or 4096")
	f.DurationVar(&o.syncInterval, "sync-interval", qcow2.DefaultSyncInterval, "how long write pointers that nobody flushes wait at most until they are durable, 10ms to 1h; those of a device that has fallen idle become so soon after. 0: only flushes do")
	f.BoolVar(&o.dropShortZone, "drop-short-zone", false, "leave out a last zone that is shorter than the others, which the kernel does not serve; it stays in the image as it is. Without such a zone the flag does nothing")
	f.BoolVar(&o.direct, "direct", false, "read and write data past the host's page cache (O_DIRECT)")
	f.BoolVar(&o.readOnly, "read-only", false, "make a read-only device and write nothing to the image")
	f.BoolVar(&o.noLock, "no-lock", false, "go on where the file system has no locks: keep other programs away yourself")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error; debug logs every request")
	f.StringSliceVar(&o.trace, "trace", nil, "log what happens in detail: "+strings.Join(traceNames, ", "))
	f.StringVar(&o.metrics, "metrics", "", "let Prometheus read metrics at an address: PORT of this machine alone, HOST:PORT, or unix:/PATH")
	f.BoolVar(&o.noZeroCopy, "no-zero-copy", false, "copy the data of every request, also where it needs no copy: on Linux 6.16 and later, of images that are not on a tmpfs")
	f.BoolVar(&o.noRecovery, "no-recovery", false, "let the device go, with errors for its users, when its server dies")
}

// callFlags are the other flags of attach.
func (o *attachOptions) callFlags(f *pflag.FlagSet) {
	f.StringVar(&o.name, "name", "", "give the device the link /dev/qzbd/NAME, where udev runs")
	f.StringVar(&o.config, "config", "", "read image and options from a file NAME.conf, which also names the device; see qzbd.conf(5)")
	f.BoolVar(&o.foreground, "foreground", false, "serve in this process; for service managers")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log every request: --log-level debug")
}

// args is what a server in the background is started with, to serve the image
// path as o says.
func (o *attachOptions) args(path string) []string {
	return []string{"attach", "--name=" + o.name,
		fmt.Sprintf("--id=%d", o.id), fmt.Sprintf("--queues=%d", o.queues),
		fmt.Sprintf("--depth=%d", o.depth), fmt.Sprintf("--block-size=%d", o.blockSize),
		fmt.Sprintf("--sync-interval=%v", o.syncInterval),
		fmt.Sprintf("--direct=%v", o.direct), fmt.Sprintf("--read-only=%v", o.readOnly),
		fmt.Sprintf("--no-lock=%v", o.noLock), fmt.Sprintf("--drop-short-zone=%v", o.dropShortZone),
		"--log-level=" + o.logLevel, "--metrics=" + o.metrics,
		"--trace=" + strings.Join(o.trace, ","), fmt.Sprintf("--no-recovery=%v", o.noRecovery),
		fmt.Sprintf("--no-zero-copy=%v", o.noZeroCopy), "--", path}
}

// badFlag is a value that attach cannot go by.
type badFlag struct{ flag, value, advice string }

func (o *attachOptions) validate() error {
	var errs []error
	for _, bad := range o.problems() {
		errs = append(errs, fmt.Errorf("--%s %s: %s", bad.flag, bad.value, bad.advice))
	}
	if o.name != "" {
		errs = append(errs, checkName(o.name))
	}
	return errors.Join(errs...)
}

// problems lists the values that are none.
func (o *attachOptions) problems() (list []badFlag) {
	bad := func(flag string, value any, advice string) {
		list = append(list, badFlag{flag, fmt.Sprint(value), advice})
	}
	if o.id < -1 || o.id >= 1<<20 {
		bad("id", o.id, "device numbers are 0 to 1048575")
	}
	// A device that is there keeps its queues, also when there are fewer CPUs.
	if max := min(runtime.NumCPU(), 4096); o.queues < 1 || o.queues > max && !o.resume {
		bad("queues", o.queues, fmt.Sprintf("choose 1 to %d, the number of CPUs that qzbd may run on", max))
	}
	if o.depth < 1 || o.depth > 4096 {
		bad("depth", o.depth, "the kernel takes 1 to 4096")
	}
	if o.blockSize != 512 && o.blockSize != 4096 {
		bad("block-size", o.blockSize, "choose 512 or 4096")
	}
	if o.syncInterval != 0 && (o.syncInterval < minSyncInterval || o.syncInterval > maxSyncInterval) {
		bad("sync-interval", o.syncInterval, fmt.Sprintf("choose %v to %v, or 0 to make durable only what is flushed", minSyncInterval, maxSyncInterval))
	}
	if _, err := zapcore.ParseLevel(o.logLevel); err != nil {
		bad("log-level", o.logLevel, "choose debug, info, warn or error")
	}
	if _, err := parseMetrics(o.metrics); err != nil {
		bad("metrics", o.metrics, err.Error())
	}
	for _, name := range o.trace {
		if !slices.Contains(traceNames, name) {
			bad("trace", name, "there is no such trace: choose "+strings.Join(traceNames, ", "))
		}
	}
	return list
}

// lock locks the image, unless --no-lock goes on where nothing can be locked.
func (o *attachOptions) lock(f *os.File, write bool) error {
	return o.withoutLocks(qcow2.Lock(f, write), func() []*state {
		list, _ := findStates(f.Name())
		return list
	})
}

// withoutLocks judges what locking the image said. Of our own servers we know
// without locks: attached lists those that have it.
func (o *attachOptions) withoutLocks(err error, attached func() []*state) error {
	switch {
	case !errors.Is(err, qcow2.ErrNoLocks):
		return err
	case !o.noLock:
		return fmt.Errorf("%w; with --no-lock it is attached all the same", err)
	}
	for _, s := range attached() {
		if s.alive() && !(s.ReadOnly && o.readOnly) {
			return fmt.Errorf("%s: %w", o.image, qcow2.ErrInUse)
		}
	}
	return nil
}

// attachAndReturn starts the server in the background and waits until it is
// ready or has failed.
func attachAndReturn(o *attachOptions) error {
	image, err := o.open()
	if err != nil {
		return err
	}
	node, err := startServer(o, image)
	if errors.Is(err, errAgain) {
		node, err = startServer(o, image)
	}
	image.Close() // it is the server's now, and so is the lock
	if err != nil {
		return err
	}
	if id, ok := deviceNumber(node); ok && !o.resume {
		if err := ublk.Unschedule(id); err != nil {
			printWarning(fmt.Sprintf("the I/O scheduler of %s stays: %v", node, err))
		}
	}
	fmt.Println(node)
	return nil
}

// errAgain is the word of a server that another one can take the device over, as
// soon as it has ended itself.
var errAgain = errors.New("another server can take the device over now: try again")

// startServer returns the node that the server makes of the image.
func startServer(o *attachOptions, image *os.File) (node string, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	abs, err := filepath.Abs(o.image)
	if err != nil {
		return "", err
	}
	cmd := exec.Command(self, o.args(abs)...)
	role := startRole
	if o.resume {
		role = resumeRole
	}
	cmd.Env = append(os.Environ(), backgroundEnv+"="+role)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{image, w} // imageFD, readyFD
	// No terminal, and no pipe of the caller's: its standard files are
	// /dev/null.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Nor anything else that a shell has open: a lock, a mount, the node itself.
	if err := unix.CloseRange(imageFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return "", errors.Join(fmt.Errorf("close files of the caller: %w", err), w.Close())
	}
	if err := startFlusher(cmd); err != nil {
		return "", errors.Join(err, w.Close())
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	p := newProgress("reading the mappings of " + o.image)
	node, err = awaitReady(cmd, r, p.update, func(what string) {
		p.end()
		printWarning(what)
	})
	p.end()
	return node, err
}

// awaitReady returns the node that the server says is ready. It reads from the
// pipe any number of "progress DONE TOTAL" and "warning MESSAGE", then "ready
// NODE", "error MESSAGE" or "again", which is errAgain.
func awaitReady(cmd *exec.Cmd, pipe io.Reader, progress func(done, total int64), warning func(string)) (node string, err error) {
	for r := bufio.NewReader(pipe); ; {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("the server died before the device was usable (%v)", cmd.Wait())
		}
		word, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch word {
		case "progress":
			var done, total int64
			if _, err := fmt.Sscan(rest, &done, &total); err == nil {
				progress(done, total)
			}
		case "warning":
			warning(strings.ReplaceAll(rest, "\x00", "\n"))
		case "ready":
			return rest, cmd.Process.Release()
		case "again":
			_ = cmd.Wait()
			return "", errAgain
		default:
			_ = cmd.Wait() // its exit status says less than the message
			return "", errors.New(strings.ReplaceAll(rest, "\x00", "\n"))
		}
	}
}

// attachInBackground is the server's side of attachAndReturn.
func attachInBackground(o *attachOptions) error {
	syscall.CloseOnExec(imageFD)
	syscall.CloseOnExec(readyFD)
	image, pipe := os.NewFile(imageFD, o.image), os.NewFile(readyFD, "readiness pipe")
	log := &lateFile{}
	logger := newLogger(o.logLevel, log, false)
	o.progress = throttle(time.Now, tellProgress(pipe))
	o.warn = func(what string) {
		// Who no longer waits does not want to know.
		_, _ = fmt.Fprintln(pipe, "warning "+strings.ReplaceAll(what, "\n", "\x00"))
	}
	ready := false
	err := serve(o, image, logger, func(s *state) error {
		err := log.open(s.logPath())
		if err == nil {
			// Where Go says why it panics.
			err = syscall.Dup3(int(log.file.Fd()), syscall.Stderr, 0)
		}
		if err != nil && !o.resume {
			return fmt.Errorf("log to %s: %w", s.logPath(), err)
		}
		if err != nil { // others use the device
			o.warn(fmt.Sprintf("%s is served again, but cannot log to %s: %v", s.Device, s.logPath(), err))
		}
		ready = true
		_, err = fmt.Fprintln(pipe, "ready "+s.Device)
		return errors.Join(err, pipe.Close())
	})
	switch {
	case err == nil || ready:
	case errors.Is(err, ublk.ErrAgain):
		fmt.Fprintln(pipe, "again")
	default:
		fmt.Fprintln(pipe, "error "+strings.ReplaceAll(err.Error(), "\n", "\x00"))
	}
	if err != nil {
		return &exitError{code: 1}
	}
	return nil
}

func printWarning(what string) {
	systemd.Complain(systemd.Warning, "qzbd: warning: ", what)
}

func attachInForeground(o *attachOptions) error {
	image, err := o.open()
	if err != nil {
		return err
	}
	p := newProgress("reading the mappings of " + o.image)
	defer p.end()
	o.progress = p.update
	return serve(o, image, newLogger(o.logLevel, os.Stderr, systemd.JournalOnStderr()), func(s *state) error {
		p.end()
		fmt.Println(s.Device)
		return nil
	})
}

// lateFile is a log file whose place is known only once the device has its
// number; what is written earlier is kept.
type lateFile struct {
	mu    sync.Mutex // guards what follows
	early []byte
	file  *os.File
}

// open goes on in the file path, or on stderr when that cannot be opened.
func (l *lateFile) open(path string) (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file, err = openOwn(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		l.file = os.Stderr
	}
	_, werr := l.file.Write(l.early)
	l.early = nil
	return errors.Join(err, werr)
}

func (l *lateFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		l.early = append(l.early, p...)
		return len(p), nil
	}
	return l.file.Write(p)
}

// journalPriorities are the beginnings of lines that say their level to the
// journal (sd-daemon(3)).
var journalPriorities = map[zapcore.Level]string{
	zapcore.DebugLevel: "<7>", zapcore.InfoLevel: "<6>", zapcore.WarnLevel: "<4>", zapcore.ErrorLevel: "<3>",
}

// newLogger logs console lines to w, in the way of the journal if that reads
// them; level has been validated.
func newLogger(level string, w io.Writer, journal bool) *zap.Logger {
	lvl, err := zapcore.ParseLevel(level)
	if err != nil {
		lvl = zapcore.InfoLevel
	}
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.ISO8601TimeEncoder
	cfg.ConsoleSeparator = " "
	if journal {
		cfg.TimeKey = "" // it has its own
		cfg.EncodeLevel = func(l zapcore.Level, enc zapcore.PrimitiveArrayEncoder) {
			enc.AppendString(journalPriorities[l] + l.String())
		}
	}
	sink := zapcore.Lock(zapcore.AddSync(w))
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(cfg), sink, lvl))
}
