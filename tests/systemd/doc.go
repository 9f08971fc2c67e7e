// Package systemd tests qzbd as a service of a whole system: Debian with systemd
// as its first process, udev and dpkg, in a machine of package tests/vm, with the
// package that make deb builds.
//
// The tests have the build tag "kernel" and are for such a machine only. Each
// one is a boot; they follow each other in the order of the files, on the same
// disks: /dev/vda is empty at the first boot, and the machine shuts down in order
// after each. QZBD_DEB names the package, QZBD_NEWER_DEB another one of a higher
// version.
package systemd
