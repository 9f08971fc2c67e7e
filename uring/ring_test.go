package uring

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// open makes a ring for the test, on a thread of its own if it is single
// issuer.
func open(t testing.TB, entries uint32, flags Flags) *Ring {
	t.Helper()
	if flags&SingleIssuer != 0 {
		runtime.LockOSThread()
		t.Cleanup(runtime.UnlockOSThread)
	}
	r, err := New(entries, flags)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// arena is memory outside the Go heap.
func arena(t testing.TB, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(b) })
	return b
}

// next waits for one CQE.
func next(t testing.TB, r *Ring) (c CQE) {
	t.Helper()
	for got := false; !got; {
		if err := r.SubmitAndWait(1); err != nil {
			t.Fatal(err)
		}
		r.ForEach(func(e CQE) {
			if got {
				t.Errorf("a second CQE: %+v", e)
			}
			c, got = e, true
		})
	}
	return c
}

func tempFile(t testing.TB, content []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(content); err != nil {
		t.Fatal(err)
	}
	return f
}

var kinds = map[string]Flags{"plain": 0, "single issuer": SingleIssuer, "wide": Wide, "wide single issuer": Wide | SingleIssuer}

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	for name, flags := range kinds {
		t.Run(name, func(t *testing.T) {
			r, buf := open(t, 4, flags), arena(t, 8192)
			other, f := tempFile(t, nil), tempFile(t, nil)
			if err := r.RegisterFiles(int(other.Fd()), int(f.Fd())); err != nil {
				t.Fatal(err)
			}
			w, rd := buf[:4096], buf[4096:]
			copy(w, bytes.Repeat([]byte("zone"), 1024))
			if err := r.Write(Fixed(1), w, 512, 7); err != nil {
				t.Fatal(err)
			}
			if c := next(t, r); c.Data != 7 || c.Res != 4096 {
				t.Fatalf("write: %+v", c)
			}
			if err := r.Fsync(Fixed(1), false, 8); err != nil {
				t.Fatal(err)
			}
			if c := next(t, r); c.Data != 8 || c.Res != 0 {
				t.Fatalf("fsync: %+v", c)
			}
			if err := r.Read(FD(int(f.Fd())), rd, 512, 9); err != nil {
				t.Fatal(err)
			}
			if c := next(t, r); c.Data != 9 || c.Res != 4096 || !bytes.Equal(w, rd) {
				t.Fatalf("read: %+v, equal: %v", c, bytes.Equal(w, rd))
			}
			// Beyond the end of the file.
			if err := r.Read(Fixed(1), rd, 1<<20, 10); err != nil {
				t.Fatal(err)
			}
			if c := next(t, r); c.Res != 0 {
				t.Fatalf("read beyond the end: %+v", c)
			}
		})
	}
}

func TestABadRequestDoesNotStopTheBatch(t *testing.T) {
	r, buf := open(t, 8, 0), arena(t, 4096)
	f := tempFile(t, make([]byte, 4096))
	for i := range 6 {
		file := FD(int(f.Fd()))
		if i == 2 {
			file = Fixed(40)
		}
		if err := r.Read(file, buf[:512], 0, uint64(i)); err != nil {
			t.Fatal(err)
		}
	}
	res := map[uint64]int32{}
	for len(res) < 6 {
		if err := r.SubmitAndWait(1); err != nil {
			t.Fatal(err)
		}
		r.ForEach(func(c CQE) { res[c.Data] = c.Res })
	}
	for i, n := range res {
		if want := int32(512); i == 2 {
			if n != -int32(syscall.EBADF) {
				t.Errorf("bad file: %d", n)
			}
		} else if n != want {
			t.Errorf("read %d: %d", i, n)
		}
	}
}

func TestAFullQueueIsSubmittedAndWrapsAround(t *testing.T) {
	for name, flags := range kinds {
		t.Run(name, func(t *testing.T) {
			r, buf := open(t, 4, flags), arena(t, 4096)
			f := tempFile(t, make([]byte, 4096))
			const n = 1000
			seen := make([]int, n)
			got := 0
			count := func(c CQE) {
				if c.Res != 8 {
					t.Fatalf("%+v", c)
				}
				seen[c.Data]++
				got++
			}
			for i := range n {
				if err := r.Read(FD(int(f.Fd())), buf[:8], 0, uint64(i)); err != nil {
					t.Fatal(err)
				}
				if i%5 == 4 {
					if err := r.SubmitAndWait(1); err != nil {
						t.Fatal(err)
					}
					r.ForEach(count)
				}
			}
			for got < n {
				if err := r.SubmitAndWait(1); err != nil {
					t.Fatal(err)
				}
				r.ForEach(count)
			}
			for i, k := range seen {
				if k != 1 {
					t.Fatalf("request %d completed %d times", i, k)
				}
			}
		})
	}
}

func TestStaleCommandBytesNeverReachTheKernel(t *testing.T) {
	r := open(t, 1, Wide)
	var cmd [80]byte
	for i := range cmd {
		cmd[i] = 0xff
	}
	f := tempFile(t, nil)
	if err := r.CmdWide(FD(int(f.Fd())), 0x1234, &cmd, 1); err != nil {
		t.Fatal(err)
	}
	if c := next(t, r); c.Res >= 0 {
		t.Fatalf("a regular file took a driver command: %+v", c)
	}
	s, err := r.queue(opFsync, FD(int(f.Fd())), 2)
	if err != nil {
		t.Fatal(err)
	}
	if got := *(*[80]byte)(unsafe.Pointer(&s.cmd)); got != [80]byte{} {
		t.Errorf("the slot still carries %x", got)
	}
	if c := next(t, r); c.Data != 2 || c.Res != 0 {
		t.Fatalf("%+v", c)
	}
}

func TestCommandsReachTheirPlaces(t *testing.T) {
	r := open(t, 4, Wide)
	if err := r.Submit(); err != nil { // the wake poll
		t.Fatal(err)
	}
	var cmd [80]byte
	for i := range cmd {
		cmd[i] = byte(i + 1)
	}
	if err := r.CmdWide(Fixed(3), 0xc0207504, &cmd, 5); err != nil {
		t.Fatal(err)
	}
	slot := r.sqes[128:256] // the second SQE
	for _, c := range []struct {
		what string
		got  uint64
		want uint64
	}{
		{"opcode", uint64(slot[0]), 46},
		{"flags", uint64(slot[1]), 1},
		{"fd", uint64(slot[4]), 3},
		{"cmd_op", uint64(*(*uint32)(unsafe.Pointer(&slot[8]))), 0xc0207504},
		{"user_data", *(*uint64)(unsafe.Pointer(&slot[32])), 5},
	} {
		if c.got != c.want {
			t.Errorf("%s is %#x, want %#x", c.what, c.got, c.want)
		}
	}
	if !bytes.Equal(slot[48:], cmd[:]) {
		t.Errorf("command bytes %x", slot[48:])
	}
}

func TestWakeEndsAWait(t *testing.T) {
	for name, flags := range kinds {
		t.Run(name, func(t *testing.T) {
			r := open(t, 4, flags)
			for range 200 {
				go r.Wake()
				for woken := false; !woken; {
					if err := r.SubmitAndWait(1); err != nil {
						t.Fatal(err)
					}
					woken = r.ForEach(func(c CQE) { t.Errorf("%+v", c) })
				}
			}
		})
	}
}

func TestNoWakeIsLostInABurst(t *testing.T) {
	r := open(t, 4, SingleIssuer)
	const wakers, each = 8, 2000
	var posted atomic.Int64
	var wg sync.WaitGroup
	for range wakers {
		wg.Go(func() {
			for range each {
				posted.Add(1)
				r.Wake()
			}
		})
	}
	for taken := int64(0); taken < wakers*each; {
		if err := r.SubmitAndWait(1); err != nil {
			t.Fatal(err)
		}
		if r.ForEach(func(CQE) {}) {
			taken += posted.Swap(0)
		}
	}
	wg.Wait()
}

func TestWakeAfterCloseIsHarmless(t *testing.T) {
	r := open(t, 4, 0)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				r.Wake()
				r.waking.Store(false)
			}
		})
	}
	r.Close()
	wg.Wait()
	r.Wake()
}

func TestSignalsDoNotEndAWait(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := open(t, 4, SingleIssuer)
	f, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer pw.Close()
	if err := r.Read(FD(int(f.Fd())), arena(t, 4096)[:1], -1, 1); err != nil {
		t.Fatal(err)
	}
	pid, tid := unix.Getpid(), unix.Gettid()
	go func() {
		for range 200 {
			unix.Tgkill(pid, tid, unix.SIGURG) // what the runtime preempts with
			time.Sleep(100 * time.Microsecond)
		}
		pw.Write([]byte{1})
	}()
	if err := r.SubmitAndWait(1); err != nil {
		t.Fatal(err)
	}
	n := 0
	r.ForEach(func(c CQE) {
		n++
		if c.Data != 1 || c.Res != 1 {
			t.Errorf("%+v", c)
		}
	})
	if n != 1 {
		t.Errorf("the wait ended with %d completions, want 1", n)
	}
}

func TestCancelEndsWhatItNames(t *testing.T) {
	r := open(t, 4, 0)
	f, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer pw.Close()
	if err := r.Read(FD(int(f.Fd())), arena(t, 4096)[:1], -1, 42); err != nil {
		t.Fatal(err)
	}
	if err := r.Submit(); err != nil {
		t.Fatal(err)
	}
	if err := r.Cancel(42); err != nil {
		t.Fatal(err)
	}
	if c := next(t, r); c.Data != 42 || c.Res >= 0 {
		t.Errorf("%+v", c)
	}
}

func TestTheHotPathAllocatesNothing(t *testing.T) {
	r, buf := open(t, 64, SingleIssuer), arena(t, 4096)
	f := tempFile(t, make([]byte, 4096))
	if err := r.RegisterFiles(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	left := 0
	done := func(c CQE) { left-- }
	var cmd [16]byte
	round := func() {
		r.Read(Fixed(0), buf[:512], 0, 1)
		r.Write(Fixed(0), buf[:512], 0, 2)
		r.Cmd(Fixed(0), 7, &cmd, 0, 3)
		r.Wake()
		for left = 3; left > 0; {
			r.SubmitAndWait(1)
			r.ForEach(done)
		}
	}
	if n := testing.AllocsPerRun(1000, round); n != 0 {
		t.Errorf("%v allocations per round, want 0", n)
	}
}

func TestCloseLeavesNoDescriptorAndNoMapping(t *testing.T) {
	count := func() (fds, maps int) {
		d, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		m, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return len(d), strings.Count(string(m), "io_uring")
	}
	fds, maps := count()
	for _, flags := range kinds {
		for _, entries := range []uint32{1, 64, 1024} {
			r, err := New(entries, flags&Wide)
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			r.Close()
		}
	}
	if f, m := count(); f != fds || m != maps {
		t.Errorf("%d descriptors and %d ring mappings, before %d and %d", f, m, fds, maps)
	}
}

func TestImpossibleRingsAreRefused(t *testing.T) {
	for _, n := range []uint32{0, MaxEntries + 1} {
		if r, err := New(n, 0); err == nil {
			r.Close()
			t.Errorf("a ring of %d entries was made", n)
		}
	}
}

func TestTheProbeSaysWhatToDo(t *testing.T) {
	if err := Probe(); err != nil {
		t.Errorf("on this machine: %v", err)
	}
	for _, c := range []struct {
		err      error
		disabled string
		want     string
	}{
		{syscall.EPERM, "2", "sysctl kernel.io_uring_disabled=0"},
		{syscall.EPERM, "1", "run as root"},
		{syscall.EPERM, "0", "seccomp"},
		{syscall.EPERM, "", "seccomp"},
		{syscall.ENOSYS, "", "CONFIG_IO_URING"},
		{syscall.ENOMEM, "0", "ulimit -l"},
		{syscall.EMFILE, "0", "ulimit -n"},
		{syscall.EIO, "0", "make a ring"},
	} {
		err := explain(c.err, c.disabled)
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v with sysctl %q: %v", c.err, c.disabled, err)
		}
	}
	err := missing(func(op uint8) bool { return op != opURingCmd })
	if err == nil || !strings.Contains(err.Error(), "URING_CMD (Linux 5.19)") {
		t.Errorf("without URING_CMD: %v", err)
	}
}

func BenchmarkReadWaitReap(b *testing.B) {
	r, buf := open(b, 64, SingleIssuer), arena(b, 4096)
	f := tempFile(b, make([]byte, 4096))
	if err := r.RegisterFiles(int(f.Fd())); err != nil {
		b.Fatal(err)
	}
	done := func(CQE) {}
	b.ReportAllocs()
	for b.Loop() {
		r.Read(Fixed(0), buf[:512], 0, 1)
		r.SubmitAndWait(1)
		r.ForEach(done)
	}
}

func TestUnregisteredFilesAreLetGoAtOnce(t *testing.T) {
	for range 20 {
		r, f := open(t, 4, SingleIssuer), tempFile(t, make([]byte, 512))
		lock := unix.Flock_t{Type: unix.F_WRLCK, Len: 1}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			t.Fatal(err)
		}
		if err := r.RegisterFiles(int(f.Fd())); err != nil {
			t.Fatal(err)
		}
		if err := r.Read(Fixed(0), arena(t, 512), 0, 1); err != nil {
			t.Fatal(err)
		}
		if c := next(t, r); c.Res != 512 {
			t.Fatalf("%+v", c)
		}
		other, err := os.Open(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		f.Close()
		for _, step := range []struct {
			do   func() error
			want int16
		}{{func() error { return nil }, unix.F_WRLCK}, {r.UnregisterFiles, unix.F_UNLCK}} {
			if err := step.do(); err != nil {
				t.Fatal(err)
			}
			lock := unix.Flock_t{Type: unix.F_RDLCK, Len: 1}
			if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
				t.Fatal(err)
			}
			if lock.Type != step.want {
				t.Fatalf("the lock is %d, want %d", lock.Type, step.want)
			}
		}
	}
}
