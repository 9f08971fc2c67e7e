// Package sim tests zns.Device and qcow2.Image together, without a kernel:
// what a host is promised is a property of the two, not of either.
//
//   - the image file is a crashfile.File, a page cache over a disk in memory that
//     loses power, fills up and fails.
//   - model_test.go: what a device must contain, now and after a power cut.
//   - host_test.go: requests in flight, each held against the model.
//   - ops_test.go: the random operations.
//   - rig_test.go: operations as one-liners, for tests that know what comes out.
//   - explain_test.go: which orders of events explain what clients heard.
//   - media_test.go: a media that is slow and fails, and a plain one.
//   - census_test.go: what the simulated lives meet, seen from outside.
//
// cuts_test.go is the crash simulation. A seed is an image and ten lives of it:
// random requests, in virtual time all at once or one after the other on a disk
// that fails and fills up; then the power goes off in some operation, which may
// be one of an open, a repair or a close. What is left must be without corruption
// and one of the states that the model allows, and the next life goes on with it.
//
//	make sim                    20,000 cuts from a seed that nobody has seen
//	make sim SEED=1000 N=50000  from that seed on
//	make sim SEED=1234 N=1      what a failure says: that seed again
//
// To add something to what hosts do or disks suffer, add it to step (ops_test.go)
// or trouble (cuts_test.go), have the census count it, and add it to mustMeet. A
// promise is added to may (model_test.go), with a patch in package mutants that
// breaks it.
//
// The other files are the tests. Flags: -cuts, -first (the first seed of the
// crash simulation), -seed (only that one), -storm, -rapid.checks, -rapid.seed.
package sim
