package systemd

import "github.com/coreos/go-systemd/v22/journal"

// JournalOnStderr says that what this process writes to stderr goes to the
// journal, which adds the time itself and takes a line's priority from its
// beginning (sd-daemon(3)).
func JournalOnStderr() bool {
	is, err := journal.StderrIsJournalStream()
	return is && err == nil
}
