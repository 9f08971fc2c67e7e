package systemd

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	// linkWait bounds how long udev may take for a device, and linkIdle how long
	// while it has nothing else to do: at boot it has all devices of a machine.
	linkWait  = 5 * time.Minute
	linkIdle  = 10 * time.Second
	linkCheck = 10 * time.Millisecond

	udevSocket = "/run/udev/control" // is there while udev runs
	udevQueue  = "/run/udev/queue"   // is there while it has something to do
)

// AwaitLink waits until udev, by 90-qzbd.rules, has made link a symbolic link to
// node. ask makes udev look at the device again if it has not: of a device that
// is recovered the kernel says nothing. Without udev, AwaitLink does not wait.
func AwaitLink(link, node string, ask bool) error {
	if linked(link, node) {
		return nil
	}
	if _, err := os.Stat(udevSocket); err != nil {
		return fmt.Errorf("no %s: udev, which makes it, does not run", link)
	}
	if ask {
		event := filepath.Join("/sys/class/block", filepath.Base(node), "uevent")
		if err := os.WriteFile(event, []byte("change"), 0); err != nil {
			return fmt.Errorf("no %s, and udev cannot be asked for it: %w", link, err)
		}
	}
	began := time.Now()
	for busy := began; time.Since(began) < linkWait && time.Since(busy) < linkIdle; time.Sleep(linkCheck) {
		if linked(link, node) {
			return nil
		}
		if _, err := os.Stat(udevQueue); err == nil {
			busy = time.Now()
		}
	}
	return fmt.Errorf("udev has not made %s within %v: are its rules, 90-qzbd.rules, installed?", link, time.Since(began).Round(time.Second))
}

func linked(link, node string) bool {
	target, err := filepath.EvalSymlinks(link)
	return err == nil && target == node
}
