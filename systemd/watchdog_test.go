package systemd

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
)

// listen makes a socket of a service manager.
func listen(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return l
}

func receive(t *testing.T, l *net.UnixConn) string {
	t.Helper()
	buf := make([]byte, 256)
	n, err := l.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestTheWatchdogIsToldOnlyWhileAllIsWell(t *testing.T) {
	l := listen(t)
	t.Setenv("WATCHDOG_USEC", strconv.Itoa(20_000))
	ctx, cancel := context.WithCancel(context.Background())
	var sick atomic.Bool
	said := make(chan error, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Watch(ctx, func(context.Context) error {
			if sick.Load() {
				return errors.New("stuck")
			}
			return nil
		}, func(err error) {
			select {
			case said <- err:
			default:
			}
		})
	}()
	for range 2 {
		if got := receive(t, l); got != "WATCHDOG=1" {
			t.Errorf("notification %q", got)
		}
	}
	sick.Store(true)
	if err := <-said; err.Error() != "stuck" {
		t.Errorf("said %v", err)
	}
	cancel()
	<-ended
}

func TestAStuckCheckDoesNotOutliveItsTime(t *testing.T) {
	listen(t)
	t.Setenv("WATCHDOG_USEC", strconv.Itoa(20_000))
	ctx, cancel := context.WithCancel(context.Background())
	Watch(ctx, func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}, func(err error) {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("said %v", err)
		}
		cancel()
	})
}

func TestWithoutAWatchdogNobodyIsAsked(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "")
	Watch(context.Background(), func(context.Context) error {
		t.Error("asked")
		return nil
	}, func(err error) { t.Error(err) })
}

func TestALinkIsThereOrCannotBe(t *testing.T) {
	dir := t.TempDir()
	node, link := filepath.Join(dir, "node"), filepath.Join(dir, "link")
	if linked(link, node) {
		t.Error("linked to nothing")
	}
	if err := os.WriteFile(node, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("node", link); err != nil {
		t.Fatal(err)
	}
	if err := AwaitLink(link, node, true); err != nil {
		t.Error(err)
	}
}
