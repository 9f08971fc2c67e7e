// Package kernel tests qzbd as its users meet it: the built program serves an
// image, and the kernel's block layer, blkzone, fio and real file systems use
// the device. Nothing is replaced by a stand-in, except that some tests serve
// the image themselves (served_test.go): then they can make zones read-only and
// let writes fail.
//
// The tests have the build tag "kernel" and need root and a kernel with ublk
// and zoned block devices; make test boots such kernels in virtual machines,
// make test-native uses the running one. QZBD_BIN names the program under
// test, by default bin/qzbd of this module; QZBD_TOOLS the root directory of
// newer tools, which bin/vm tools makes; QZBD_VM_SCRATCH, if set, a directory
// on an ext4.
//
// A test with the build tag long as well goes on for as long as QZBD_LONGTIME
// says; make long is for these.
//
// Every test leaves the machine as it found it, and that is part of what is
// tested: no device, process, mount or file may remain, the kernel's log must
// be free of warnings, and qzbd check must find every image clean.
package kernel
