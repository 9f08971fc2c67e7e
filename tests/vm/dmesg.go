package vm

import (
	"regexp"
	"strings"
)

// complaints are the ways in which a kernel says that something is broken.
var complaints = regexp.MustCompile(`WARNING:|BUG:|\bOops\b|hung_task|blocked for more than|UBSAN|general protection fault|Kernel panic`)

// tolerated lists the complaints which are known not to be ours, with the
// reason. Keep it as narrow as the line itself.
var tolerated = []*regexp.Regexp{
	// Linux 7.2 once per boot with zero copy: its own array annotation in the
	// registration of request buffers.
	regexp.MustCompile(`UBSAN: .* in .*io_uring/rsrc\.c`),
	// What we have asked for, which may name hung_task.
	regexp.MustCompile(`\] (Kernel command|Command) line: `),
}

// linesOfContext after a complaint: enough for the top of a call trace.
const linesOfContext = 25

// scanDmesg returns the lines of a kernel log that must fail a run, each with
// what follows it.
func scanDmesg(log string) []string {
	var bad []string
	lines := strings.Split(strings.TrimRight(log, "\n"), "\n")
	until := -1
	for i, line := range lines {
		if complaints.MatchString(line) && !tolerates(line) {
			until = i + linesOfContext
		}
		if i <= until {
			bad = append(bad, line)
		}
	}
	return bad
}

func tolerates(line string) bool {
	for _, re := range tolerated {
		if re.MatchString(line) {
			return true
		}
	}
	return false
}
