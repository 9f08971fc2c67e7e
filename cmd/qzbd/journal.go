package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/zns"
)

// journalFile is /run/qzbd/<id>/journal: a zns.Journal in a shared mapping, and a
// page in front of it that says whose it is. It survives the server and not the
// machine, as the page cache of the image does, which it belongs to.
type journalFile struct {
	*zns.Journal
	mem   []byte
	file  *os.File // until it has its name
	zones uint32
}

const (
	journalMagic   = "qzbdjrnl"
	journalVersion = 1
	journalHead    = 4096 // bytes
)

// errNoJournal says that there is nothing to go on from: only what was flushed
// counts.
var errNoJournal = errors.New("its journal is gone")

// owner is what makes a journal that of a device and its image: the head of the
// file. One in which anything differs is another one's.
func (s *state) owner(zones uint32, size uint64) ([]byte, error) {
	const path = "/proc/sys/kernel/random/boot_id"
	id, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	boot, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(id)), "-", ""))
	if err != nil {
		return nil, fmt.Errorf("%s is no boot id: %w", path, err)
	}
	le := binary.LittleEndian
	b := le.AppendUint32([]byte(journalMagic), journalVersion)
	b = le.AppendUint32(b, zones)
	b = le.AppendUint32(b, s.slots())
	mark, err := s.mark()
	if err != nil {
		return nil, err
	}
	for _, v := range [...]uint64{mark, s.Dev, s.Ino, size} {
		b = le.AppendUint64(b, v)
	}
	return append(b, boot...), nil
}

// slots is how many requests can be in flight.
func (s *state) slots() uint32 { return uint32(s.Queues) * uint32(s.Depth) }

func (s *state) journalPath() string { return filepath.Join(stateDir(s.ID), "journal") }

// newJournal makes the journal of a device that has no number yet. All of it is
// allocated and locked into memory: a server must not wait for memory to write.
func newJournal(zones, slots uint32) (*journalFile, error) {
	if err := makeDir(stateRoot); err != nil {
		return nil, err
	}
	fd, err := unix.Open(stateRoot, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a file in %s: %w", stateRoot, err)
	}
	f := os.NewFile(uintptr(fd), stateRoot+"/journal")
	if err := f.Chmod(0o600); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	n := journalHead + zns.JournalBytes(zones, slots)
	if err := unix.Fallocate(fd, 0, 0, n); err != nil {
		return nil, errors.Join(fmt.Errorf("allocate %d bytes in %s: %w", n, stateRoot, err), f.Close())
	}
	j, err := mapJournal(f, zones, slots)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	j.file, j.zones = f, zones
	return j, nil
}

// publish says whose the journal is and gives it its name, in the directory of
// the device.
func (j *journalFile) publish(s *state, size uint64) error {
	defer j.file.Close()
	head, err := s.owner(j.zones, size)
	if err != nil {
		return err
	}
	copy(j.mem, head)
	// linkat(2): the way to name what O_TMPFILE made.
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", j.file.Fd()), unix.AT_FDCWD, s.journalPath(), unix.AT_SYMLINK_FOLLOW)
}

// close lets go of the memory, which nobody uses any more.
func (j *journalFile) close() { unix.Munmap(j.mem) }

// openJournal maps the journal that a killed server has left.
func openJournal(s *state, zones uint32, size uint64) (*journalFile, error) {
	head, err := s.owner(zones, size)
	if err != nil {
		return nil, err
	}
	if err := checkStateDir(s.ID); err != nil {
		return nil, err
	}
	f, err := openOwn(s.journalPath(), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNoJournal
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if n := journalHead + zns.JournalBytes(zones, s.slots()); st.Size() != n {
		return nil, fmt.Errorf("%w: %s has %d bytes, not %d", errNoJournal, f.Name(), st.Size(), n)
	}
	j, err := mapJournal(f, zones, s.slots())
	if err == nil && !bytes.Equal(j.mem[:len(head)], head) {
		err = fmt.Errorf("%w: %s is of another device, image or boot", errNoJournal, f.Name())
		unix.Munmap(j.mem)
	}
	return j, err
}

// checkJournal says why this program cannot read the journal of the device.
func (s *state) checkJournal() error {
	f, err := openOwn(s.journalPath(), os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: %w", s.Device, errNoJournal)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, len(journalMagic)+4)
	if _, err := io.ReadFull(f, head); err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if v := binary.LittleEndian.Uint32(head[len(journalMagic):]); string(head[:len(journalMagic)]) != journalMagic || v != journalVersion {
		return fmt.Errorf("%s is of version %d, and this program, %s, reads %d", f.Name(), v, version, journalVersion)
	}
	return nil
}

func mapJournal(f *os.File, zones, slots uint32) (*journalFile, error) {
	n := journalHead + zns.JournalBytes(zones, slots)
	mem, err := unix.Mmap(int(f.Fd()), 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	// Without the right to do so it can be swapped out, no more.
	_ = unix.Mlock(mem)
	j, err := zns.NewJournal(mem[journalHead:], zones, slots)
	if err != nil {
		unix.Munmap(mem)
		return nil, err
	}
	return &journalFile{Journal: j, mem: mem}, nil
}
