package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
)

// control starts the control socket of a server that is this process, and
// returns a client for it.
func control(t *testing.T, register func(*controlServer)) (*controlServer, *controlClient) {
	t.Helper()
	// t.TempDir is too long for the address of a socket.
	dir, err := os.MkdirTemp("", "qzbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := newControl(zap.NewNop())
	register(c)
	if err := c.listen(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c, controlOf(t, os.Getpid(), filepath.Join(dir, controlName))
}

// controlOf is a client for the server pid with a socket at path.
func controlOf(t *testing.T, pid int, path string) *controlClient {
	t.Helper()
	started, err := processStart(pid)
	if err != nil {
		t.Fatal(err)
	}
	c := (&state{Device: "/dev/ublkb7", PID: pid, Started: started}).controlClient()
	c.path = path
	t.Cleanup(c.close)
	return c
}

// refuses checks that a call fails with an error of one line that has the words.
func (c *controlClient) refuses(t *testing.T, ctx context.Context, path string, words ...string) error {
	t.Helper()
	err := c.call(ctx, "GET", path, nil, nil)
	if err == nil {
		t.Fatalf("GET %s went well", path)
	}
	for _, w := range append(words, "/dev/ublkb7") {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the message lacks %q: %v", w, err)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %v", err)
	}
	return err
}

func TestTheControlSocketAnswers(t *testing.T) {
	_, c := control(t, func(s *controlServer) {
		s.HandleFunc("GET /number", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("7\n")) })
		s.HandleFunc("GET /refusal", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not today", http.StatusConflict) })
	})
	var n int
	if err := c.call(t.Context(), "GET", "/number", nil, &n); err != nil || n != 7 {
		t.Errorf("%d, %v", n, err)
	}
	var word string
	if err := c.call(t.Context(), "GET", "/number", nil, &word); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("what is no word: %v", err)
	}
	c.refuses(t, t.Context(), "/refusal", "not today")
	c.refuses(t, t.Context(), "/later", "another version", version)
	if err := c.call(t.Context(), "POST", "/number", nil, nil); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("what can only be read: %v", err)
	}
}

func TestTheControlSocketIsOursAlone(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	_, c := control(t, func(*controlServer) {})
	st, err := os.Lstat(c.path)
	if err != nil {
		t.Fatal(err)
	}
	if want := fs.ModeSocket | 0o600; st.Mode() != want {
		t.Errorf("mode %v, want %v", st.Mode(), want)
	}
	if uid := uint32(os.Geteuid()); !trusted(0) || !trusted(uid) || trusted(uid+1) {
		t.Error("root and the own user are trusted, and nobody else")
	}
}

// Whoever gets past the modes is looked at.
func TestAStrangerIsNotAnswered(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("nobody but root can be somebody else: only the modes are checked")
		return
	}
	_, c := control(t, func(s *controlServer) {
		s.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("hello")) })
	})
	for _, path := range []string{filepath.Dir(c.path), c.path} {
		if err := os.Chmod(path, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	try := func(uid uint32) string {
		cmd := exec.Command("/proc/self/fd/3", "-test.run=TestAskAsSomebodyElse")
		f, err := os.Open(self) // its directory is perhaps not for everybody
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = []*os.File{f}
		cmd.Env = append(os.Environ(), "QZBD_TEST_CONTROL="+c.path)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := try(0); !strings.Contains(out, "answered") {
		t.Errorf("root: %s", out)
	}
	if out := try(65534); strings.Contains(out, "answered") || !strings.Contains(out, "refused") {
		t.Errorf("nobody: %s", out)
	}
}

// TestAskAsSomebodyElse is the process that TestAStrangerIsNotAnswered starts.
func TestAskAsSomebodyElse(t *testing.T) {
	path := os.Getenv("QZBD_TEST_CONTROL")
	if path == "" {
		return
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	_, werr := conn.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
	b := make([]byte, 1<<10)
	n, rerr := conn.Read(b)
	if strings.Contains(string(b[:n]), "hello") == false {
		os.Stdout.WriteString("refused: " + errors.Join(werr, rerr).Error())
		return
	}
	os.Stdout.WriteString("answered")
}

func TestTheSocketOfADeadServerIsReplaced(t *testing.T) {
	old, c := control(t, func(*controlServer) {})
	old.close()
	c.refuses(t, t.Context(), "/") // or reset, if the listener was just about to accept
	next := newControl(zap.NewNop())
	next.HandleFunc("GET /", func(http.ResponseWriter, *http.Request) {})
	dir := filepath.Dir(c.path)
	// A server that was killed in between has left this.
	if err := os.WriteFile(c.path+".new", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := next.listen(dir); err != nil {
		t.Fatal(err)
	}
	defer next.close()
	if err := c.call(t.Context(), "GET", "/", nil, nil); err != nil {
		t.Error(err)
	}
	// What goes later does not take its successor's socket along.
	later := newControl(zap.NewNop())
	later.HandleFunc("GET /", func(http.ResponseWriter, *http.Request) {})
	if err := later.listen(dir); err != nil {
		t.Fatal(err)
	}
	defer later.close()
	next.close()
	c.close()
	if err := c.call(t.Context(), "GET", "/", nil, nil); err != nil {
		t.Error(err)
	}
}

func TestNoLinkIsFollowedToASocket(t *testing.T) {
	_, c := control(t, func(s *controlServer) { s.HandleFunc("GET /", func(http.ResponseWriter, *http.Request) {}) })
	dir := t.TempDir()
	link := filepath.Join(dir, "l")
	if err := os.Symlink(c.path, link); err != nil {
		t.Fatal(err)
	}
	by := controlOf(t, os.Getpid(), link)
	by.refuses(t, t.Context(), "/")
	// A server does not follow it either: it takes its place.
	target := filepath.Join(dir, "target")
	if err := os.Symlink(target, filepath.Join(filepath.Dir(c.path), "s")); err != nil {
		t.Fatal(err)
	}
	ln, err := listenUnix(filepath.Join(filepath.Dir(c.path), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the server followed a link: %v", err)
	}
}

func TestAServerThatDoesNotAnswerIsNotWaitedForForEver(t *testing.T) {
	release := make(chan struct{})
	_, c := control(t, func(s *controlServer) {
		s.HandleFunc("GET /", func(http.ResponseWriter, *http.Request) { <-release })
	})
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	c.refuses(t, ctx, "/", "has not answered", "kill -CONT")
}

func TestAServerThatIsGoneIsNamed(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := controlOf(t, cmd.Process.Pid, "/nonexistent/control")
	c.refuses(t, t.Context(), "/", "no control socket", "earlier version")
	if err := c.explain(&os.PathError{Op: "connect to", Path: c.path, Err: syscall.EACCES}, 0); !strings.Contains(err.Error(), "only root") {
		t.Error(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	c.refuses(t, t.Context(), "/", "has no server", "qzbd list")
}

// Clients that say nothing, and a handler that does not end, hold up nobody.
func TestClosingWaitsForNoClient(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	s, c := control(t, func(s *controlServer) {
		s.HandleFunc("GET /", func(http.ResponseWriter, *http.Request) {
			close(entered)
			<-release
		})
	})
	defer close(release)
	for range webClients / 2 {
		conn, err := net.Dial("unix", c.path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	done := make(chan error)
	go func() { done <- c.call(t.Context(), "GET", "/", nil, nil) }()
	<-entered
	s.close()
	if err := <-done; err == nil {
		t.Error("an answer came from nowhere")
	}
}
