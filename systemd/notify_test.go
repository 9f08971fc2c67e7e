package systemd

import (
	"net"
	"path/filepath"
	"testing"
)

func TestReadyTellsTheManagerOnceTheNodeIsUsable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	if err := Ready("serving a.qcow2 as /dev/ublkb0"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	n, err := l.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(buf[:n]), "READY=1\nSTATUS=serving a.qcow2 as /dev/ublkb0"; got != want {
		t.Errorf("notification %q, want %q", got, want)
	}
}

func TestWithoutAManagerNothingIsSaid(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Ready("x"); err != nil {
		t.Error(err)
	}
	if err := Stopping(); err != nil {
		t.Error(err)
	}
}
