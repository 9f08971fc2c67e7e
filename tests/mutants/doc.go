// Package mutants is the test of the crash simulation: each patch here breaks
// one rule of the protocol in ARCHITECTURE.md, and the power cuts of tests/sim
// have to notice within the number that "make test" spends on them. The patches
// are applied to copies of the files while they are compiled (go build -overlay);
// nothing of them is ever in a checkout.
//
//	make mutants                                        all of them
//	go test -tags=mutants -v ./tests/mutants -run=/fua  one
//
// Those whose name begins with journal- break what a server leaves to the next one
// when it dies; the deaths of servers have to show them.
//
// The log says after how many crash states a mutant was found. To see what was
// found, apply the patch (git apply --recount -C1), run
// make sim SEED=1, and what its failure says.
//
// To add one, change the code, say in the first line of the patch which rule that
// breaks and which promise with it, and put git diff -U2 below:
//
//	(echo 'What is wrong (I2).'; echo; git diff -U2) >tests/mutants/what-is-wrong.patch
//
// A mutant that is not found is a hole in the simulation, or no mistake. The
// latter is so for
//
//   - old-table-freed-early: the old refcount table is punched and free while the
//     durable header still points to it. But then the dirty bit is durable as
//     well, so that no successor reads refcounts before it has counted them
//     anew, and the header's new place is durable before any cluster is handed
//     out again. The run shows that: this one must not be found.
//
// Two mistakes have no patch because there is nothing here to get wrong. A round
// has no reset generation that it could ignore: resets go through the same
// goroutine, and reset-beside-a-round takes them out of it. And no FUA write
// syncs a range of its own: fua-without-a-round is what comes of that.
//
// The test has the build tag mutants, because each patch is a build of its own.
package mutants
