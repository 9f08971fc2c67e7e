package systemd

import (
	"context"
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/dbus"
)

// ShuttingDown says that we are a service of a machine that is going down, and
// are not stopped for our own sake. systemd is asked on its own socket: the bus
// may be gone already.
func ShuttingDown(ctx context.Context) (bool, error) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return false, nil
	}
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return false, fmt.Errorf("ask systemd whether the machine is shutting down: %w", err)
	}
	defer conn.Close()
	state, err := conn.GetManagerProperty("SystemState")
	return state == `"stopping"`, err
}
