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
//
// The other files are the tests. Flags: -cuts, -seed, -rapid.checks,
// -rapid.seed.
package sim
