package systemd

import "testing"

func TestReadyTellsTheManagerOnceTheNodeIsUsable(t *testing.T) {
	l := listen(t)
	if err := Ready("serving a.qcow2 as /dev/ublkb0"); err != nil {
		t.Fatal(err)
	}
	if got, want := receive(t, l), "READY=1\nSTATUS=serving a.qcow2 as /dev/ublkb0"; got != want {
		t.Errorf("notification %q, want %q", got, want)
	}
}

func TestWithoutAManagerNothingIsSaid(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Ready("x"); err != nil {
		t.Error(err)
	}
	if err := Stopping("x"); err != nil {
		t.Error(err)
	}
}
