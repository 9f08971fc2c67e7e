// Package systemd is qzbd's side of the service manager: the unit files of
// this directory and the notifications that Type=notify expects.
//
//	notify.go    ready, stopping, a line of status
//	watchdog.go  the manager is told that the queues serve
//	journal.go   messages with the journal's priorities
//	shutdown.go  whether the machine goes down
//	udev.go      waits for the name that udev gives a device
package systemd

import "github.com/coreos/go-systemd/v22/daemon"

// Ready tells the service manager that the device node is usable, with a
// status line for systemctl status. Without a manager it does nothing.
func Ready(status string) error {
	_, err := daemon.SdNotify(false, daemon.SdNotifyReady+"\nSTATUS="+status)
	return err
}

// Stopping tells the service manager that an orderly stop has begun.
func Stopping(status string) error {
	_, err := daemon.SdNotify(false, daemon.SdNotifyStopping+"\nSTATUS="+status)
	return err
}

// Status tells the service manager no more than the status line.
func Status(status string) error {
	_, err := daemon.SdNotify(false, "STATUS="+status)
	return err
}
