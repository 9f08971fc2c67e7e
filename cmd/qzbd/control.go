package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// The control socket is /run/qzbd/<id>/control: HTTP, for other qzbd processes
// and for curl --unix-socket. It is there as long as the server's record, and
// only root and the server's own user may speak on it.
//
// Nothing on it waits for the I/O path or is waited for by it. What a client may
// cost is bounded: connections, the size of a request and how long it takes.
const (
	controlName = "control"
	webClients  = 16
	webHeader   = 8 << 10 // bytes
	webRead     = 5 * time.Second
	// webWrite includes the work. A handler that needs longer says so with
	// http.ResponseController.
	webWrite = 10 * time.Second
)

func (s *state) controlPath() string { return filepath.Join(stateDir(s.ID), controlName) }

// controlServer serves what is registered with Handle until close.
type controlServer struct {
	*http.ServeMux
	log *zap.Logger
	web *webServer // nil: not listening
}

func newControl(log *zap.Logger) *controlServer {
	return &controlServer{ServeMux: http.NewServeMux(), log: log}
}

// listen starts the service on a socket in dir, which must be there. A socket of
// a server that is gone, or of one that is about to go, is replaced at once.
func (c *controlServer) listen(dir string) error {
	ln, err := listenUnix(filepath.Join(dir, controlName))
	if err != nil {
		return fmt.Errorf("make a control socket: %w", err)
	}
	c.web, err = serveWeb(&peerListener{ln, c.log}, c, c.log)
	return err
}

// ServeHTTP says who answers: a client of another version wants to know.
func (c *controlServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "qzbd/"+version)
	c.ServeMux.ServeHTTP(w, r)
}

// close ends the service at once, in the middle of whatever it answers. The
// socket stays: it goes with the record, or is replaced by another server's.
func (c *controlServer) close() {
	if c.web != nil {
		c.web.close()
	}
}

// webServer answers HTTP requests, and bounds what a client can cost.
type webServer struct {
	http *http.Server
	ln   net.Listener
}

// serveWeb takes over ln.
func serveWeb(ln net.Listener, h http.Handler, log *zap.Logger) (*webServer, error) {
	errorLog, err := zap.NewStdLogAt(log, zap.DebugLevel)
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	w := &webServer{ln: ln, http: &http.Server{
		Handler: h, ErrorLog: errorLog, MaxHeaderBytes: webHeader,
		ReadTimeout: webRead, WriteTimeout: webWrite, IdleTimeout: webRead,
	}}
	go w.http.Serve(netutil.LimitListener(ln, webClients))
	return w, nil
}

// close ends all connections.
func (w *webServer) close() {
	w.ln.Close() // whether Serve has begun or not
	w.http.Close()
}

// listenUnix listens on a socket that only root and our user can use from its
// beginning, in place of one that is there. Neither bind(2) nor rename(2)
// follows a link at the end of a path.
func listenUnix(path string) (*net.UnixListener, error) {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// The file that bind(2) makes has the mode of the socket.
		cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(cerr, err)
	}}
	l, err := config.Listen(context.Background(), "unix", fresh)
	if err != nil {
		return nil, err
	}
	ln := l.(*net.UnixListener)
	ln.SetUnlinkOnClose(false) // by then its name may be another server's
	if err := os.Rename(fresh, path); err != nil {
		return nil, errors.Join(err, ln.Close(), os.Remove(fresh))
	}
	return ln, nil
}

// peerListener lets in only root and the user of this process, whatever the
// modes of the socket and its directory have become.
type peerListener struct {
	*net.UnixListener
	log *zap.Logger
}

func (l *peerListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peer(conn)
		if err == nil && trusted(uid) {
			return conn, nil
		}
		l.log.Warn("control socket: refused a client", zap.Uint32("uid", uid), zap.Error(err))
		conn.Close()
	}
}

// trusted says that a user may tell a server what to do, and be believed.
func trusted(uid uint32) bool { return uid == 0 || uid == uint32(os.Geteuid()) }

// peer returns the user of the process at the other end.
func peer(conn *net.UnixConn) (uid uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(cerr, err); err != nil {
		return 0, fmt.Errorf("ask who is at the other end of the control socket: %w", err)
	}
	return cred.Uid, nil
}
