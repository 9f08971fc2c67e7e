package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
)

// metricsAddr is where --metrics listens.
type metricsAddr struct {
	network string // tcp or unix; "": nowhere
	address string
}

const metricsAdvice = "give PORT or :PORT for this machine alone, HOST:PORT, or unix:/PATH"

// parseMetrics reads the value of --metrics.
func parseMetrics(value string) (metricsAddr, error) {
	if value == "" {
		return metricsAddr{}, nil
	}
	if path, ok := strings.CutPrefix(value, "unix:"); ok {
		if !filepath.IsAbs(path) || len(path) > 100 { // sun_path has 108, and a suffix comes on top
			return metricsAddr{}, errors.New("the path of a socket begins with / and has at most 100 bytes")
		}
		return metricsAddr{"unix", path}, nil
	}
	host, port := "", value
	if strings.Contains(value, ":") {
		var err error
		if host, port, err = net.SplitHostPort(value); err != nil {
			return metricsAddr{}, errors.New(metricsAdvice)
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return metricsAddr{}, errors.New(metricsAdvice)
	}
	if host == "" { // everybody has to be asked for, with 0.0.0.0 or [::]
		host = "127.0.0.1"
	}
	return metricsAddr{"tcp", net.JoinHostPort(host, port)}, nil
}

// listen makes the listener. Only a socket on which nobody answers is replaced.
func (a metricsAddr) listen() (net.Listener, error) {
	if a.network == "tcp" {
		return net.Listen("tcp", a.address)
	}
	st, err := os.Lstat(a.address)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is there and no socket: choose another path", a.address)
	default:
		if conn, err := net.Dial("unix", a.address); err == nil {
			conn.Close()
			return nil, fmt.Errorf("somebody listens on %s already: choose another path", a.address)
		}
	}
	return listenUnix(a.address)
}

// metricsServer answers GET /metrics at an address, for whoever can reach it.
type metricsServer struct {
	addr    metricsAddr
	handler http.Handler
	log     *zap.Logger
	cancel  context.CancelFunc
	done    chan struct{}
}

// metricsRetry is how often an address is tried that another process has.
const metricsRetry = time.Second

// startMetrics listens at once. With patient, what cannot be listened on now is
// tried again until close: a device is not left without a server for that.
func startMetrics(value string, h http.Handler, log *zap.Logger, patient bool) (*metricsServer, error) {
	addr, err := parseMetrics(value)
	if err != nil || addr.network == "" {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h)
	ctx, cancel := context.WithCancel(context.Background())
	m := &metricsServer{addr: addr, handler: mux, log: log, cancel: cancel, done: make(chan struct{})}
	ln, err := addr.listen()
	if err != nil {
		err = fmt.Errorf("--metrics %s: %w", value, err)
		if !patient {
			cancel()
			return nil, err
		}
		log.Warn("nobody can read the metrics yet", zap.Error(err))
	}
	go m.run(ctx, ln)
	return m, nil
}

// run serves ln, or waits until there can be one.
func (m *metricsServer) run(ctx context.Context, ln net.Listener) {
	defer close(m.done)
	for ln == nil {
		select {
		case <-time.After(metricsRetry):
		case <-ctx.Done():
			return
		}
		var err error
		if ln, err = m.addr.listen(); err == nil {
			m.log.Info("the metrics can be read", zap.String("address", m.addr.address))
		}
	}
	web, err := serveWeb(ln, m.handler, m.log)
	if err != nil {
		m.log.Error("nobody can read the metrics", zap.Error(err))
		return
	}
	<-ctx.Done()
	if m.addr.network == "unix" {
		os.Remove(m.addr.address) // first: afterwards it may be a successor's
	}
	web.close()
}

// close stops listening.
func (m *metricsServer) close() {
	if m != nil {
		m.cancel()
		<-m.done
	}
}
