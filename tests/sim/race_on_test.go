//go:build race

package sim

// slow divides the number of cuts and seeds: the race detector costs ten times
// the time, and finds what it finds in few of them.
const slow = 10
