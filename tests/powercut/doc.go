// Package powercut takes the power from a virtual machine whose disk the test
// owns, at random moments while the device on that disk is in use, and looks
// at what is left.
//
// The disk is a crashfile.File behind package nbd: a volatile cache that loses,
// keeps or reorders, at the cut, what the guest's last flush of the disk did not
// cover. On it are an ext4 and the image; the guest's own page cache is lost
// besides. worker is what runs inside; it says over the machine's standard
// output what is durable, and after the next boot that has to be there.
//
// The file systems are used by fsync'ed files, and by others beside them that
// nobody syncs; a btrfs, by chance, without a log for fsyncs or without the others
// (worker/fs.go says why).
//
// Some cuts come while the device is in use, others while what the last one left
// is attached, mended, checked and detached. The image is attached with --direct
// or without, by chance.
//
//	make powercut CUTS=5 KIND=Fio SEED=1
//
// Tests have the build tag machine. Flags: -powercuts, -seed, -kernel. QZBD_BIN
// names the program, by default bin/qzbd of this module.
package powercut
