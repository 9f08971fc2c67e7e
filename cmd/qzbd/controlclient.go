package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// controlWait is how long a server may take for an answer that needs no work. A
// context with a deadline of its own overrides it.
const controlWait = 5 * time.Second

// controlAnswer bounds what a client reads, in bytes.
const controlAnswer = 16 << 20

// controlClient asks the server of a device.
type controlClient struct {
	s    *state
	path string
	http http.Client
}

// controlClient returns a client for the server that wrote the record. close
// has to follow.
func (s *state) controlClient() *controlClient {
	c := &controlClient{s: s, path: s.controlPath()}
	c.http.Transport = &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return dialUnix(ctx, c.path) },
		MaxIdleConns:       1,
		DisableCompression: true,
	}
	return c
}

func (c *controlClient) close() { c.http.CloseIdleConnections() }

// call sends in, unless it is nil, and decodes the answer into out, unless that
// is nil; both are JSON. Its errors say what to do about them.
func (c *controlClient) call(ctx context.Context, method, path string, in, out any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, controlWait)
		defer cancel()
	}
	begun := time.Now()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://qzbd"+path, body)
	if err != nil {
		return err
	}
	r, err := c.http.Do(req)
	if err != nil {
		return c.explain(err, time.Since(begun))
	}
	defer r.Body.Close()
	b, err := io.ReadAll(io.LimitReader(r.Body, controlAnswer))
	switch {
	case err != nil:
		return c.explain(err, time.Since(begun))
	case r.StatusCode == http.StatusNotFound, r.StatusCode == http.StatusMethodNotAllowed:
		return fmt.Errorf("the server of %s, %s, does not know %s %s: it is of another version than this program, %s",
			c.s.Device, r.Header.Get("Server"), method, path, version)
	case r.StatusCode/100 != 2:
		return fmt.Errorf("the server of %s says: %s", c.s.Device, strings.TrimSpace(string(b)))
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the server of %s, %s, answered %s %s with something else than expected (%w): it is of another version than this program, %s",
			c.s.Device, r.Header.Get("Server"), method, path, err, version)
	}
	return nil
}

// explain says why there was no answer.
func (c *controlClient) explain(err error, after time.Duration) error {
	switch {
	case c.s.waits():
		return fmt.Errorf("%s has no server, process %d is gone: qzbd recover %s starts another", c.s.Device, c.s.PID, c.s.Device)
	case !c.s.alive():
		return fmt.Errorf("%s has no server, process %d is gone: qzbd list shows what can be done (%w)", c.s.Device, c.s.PID, err)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("the server of %s, process %d, has no control socket: it is of an earlier version, detach and attach it (%w)", c.s.Device, c.s.PID, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("the server of %s, process %d, answers only root and its own user (%w)", c.s.Device, c.s.PID, err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("the server of %s, process %d, has not answered for %v: it is busy, or stopped (kill -CONT %d)",
			c.s.Device, c.s.PID, after.Round(time.Second/10), c.s.PID)
	}
	for _, lost := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, syscall.ECONNREFUSED} {
		if errors.Is(err, lost) { // it is about to be gone
			return fmt.Errorf("the server of %s, process %d, ended before it answered: qzbd list shows what became of the device", c.s.Device, c.s.PID)
		}
	}
	return fmt.Errorf("ask the server of %s, process %d: %w", c.s.Device, c.s.PID, err)
}

// dialUnix connects to the socket at path, which may be no link, and to nobody
// but root or our own user.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var dialer net.Dialer
	// By what has been opened: a link itself cannot be connected to.
	conn, err := dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, &os.PathError{Op: "connect to", Path: path, Err: err}
	}
	uid, err := peer(conn.(*net.UnixConn))
	if err == nil && !trusted(uid) {
		err = fmt.Errorf("%s is the socket of user %d: that is no server of qzbd", path, uid)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}
