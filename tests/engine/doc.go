// Package engine measures zones over an image, alone and behind a queue, and
// holds that a request whose mapping is in memory allocates nothing on the whole
// way. There is no kernel device in it: see ublk.Bench.
//
// The benchmarks are for benchstat (make bench-go). profile.sh is make profile.
package engine
