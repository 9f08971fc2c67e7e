package ublk

import (
	"errors"
	"syscall"

	"github.com/qzbd/qzbd/zns"
)

// errnos maps outcomes to what the kernel turns into a block status
// (blk_errors of block/blk-core.c). The first match counts; what matches
// nothing is EIO.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{syscall.EIO, syscall.EIO},               // also of an image that has failed, whatever the cause
	{zns.ErrOpenLimit, syscall.ETOOMANYREFS}, // BLK_STS_ZONE_OPEN_RESOURCE
	{zns.ErrActiveLimit, syscall.EOVERFLOW},  // BLK_STS_ZONE_ACTIVE_RESOURCE
	{zns.ErrUnsupported, syscall.EOPNOTSUPP}, // BLK_STS_NOTSUPP
	{syscall.ENOSPC, syscall.ENOSPC},         // BLK_STS_NOSPC
	{syscall.EDQUOT, syscall.ENOSPC},
	{syscall.EFBIG, syscall.ENOSPC},
}

// errnoOf is the errno a request ends with, 0 for nil.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno
		}
	}
	return syscall.EIO
}
