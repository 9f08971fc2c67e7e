// Package mutants is the test of the crash simulation: each patch here breaks
// one rule of the protocol in ARCHITECTURE.md, and the simulation of
// tests/sim has to notice within the number of power cuts that "make test"
// spends on it. The patches are applied to copies of the files while they are
// compiled (go build -overlay); nothing of them is ever in a checkout.
//
// The test has the build tag mutants, because each patch is a build of its own.
package mutants
