package systemd

import (
	"fmt"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// JournalOnStderr says that what this process writes to stderr goes to the
// journal, which adds the time itself and takes a line's priority from its
// beginning (sd-daemon(3)).
func JournalOnStderr() bool {
	is, err := journal.StderrIsJournalStream()
	return is && err == nil
}

// Priorities of complaints.
const (
	Err     = journal.PriErr
	Warning = journal.PriWarning
)

// Complain writes the lines of a text to stderr, each after a prefix, and for the
// journal with their priority.
func Complain(priority journal.Priority, prefix, text string) {
	if JournalOnStderr() {
		prefix = fmt.Sprintf("<%d>%s", priority, prefix)
	}
	for line := range strings.SplitSeq(text, "\n") {
		fmt.Fprintln(os.Stderr, prefix+line)
	}
}
