//go:build kernel

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/uring"
)

// stranger is a ublk device of a program that is not qzbd: 8 MiB of zeros. The
// numbers are those of include/uapi/linux/ublk_cmd.h.
type stranger struct {
	t      *testing.T
	id     uint32
	char   int
	ended  chan error
	served bool
}

// control sends one command to the driver.
func (s *stranger) control(op uint32, data uint64, buf []byte) error {
	fd, err := unix.Open("/dev/ublk-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ring, err := uring.New(4, uring.Wide)
	if err != nil {
		return err
	}
	defer ring.Close()
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(page)
	copy(page, buf)
	var cmd [80]byte
	le := binary.LittleEndian
	le.PutUint32(cmd[0:], s.id)
	le.PutUint16(cmd[4:], 0xffff)
	if buf != nil {
		le.PutUint16(cmd[6:], uint16(len(buf)))
		le.PutUint64(cmd[8:], uint64(uintptr(unsafe.Pointer(&page[0]))))
	}
	le.PutUint64(cmd[16:], data)
	if err := ring.CmdWide(uring.FD(fd), op, &cmd, 1); err != nil {
		return err
	}
	for done := false; !done; {
		if err := ring.SubmitAndWait(1); err != nil {
			return err
		}
		ring.ForEach(func(c uring.CQE) {
			if done = true; c.Res < 0 {
				err = syscall.Errno(-c.Res)
			}
		})
	}
	copy(buf, page)
	return err
}

// addStranger adds the device with the number id and something of its own in
// ublksrv_flags. It is not started.
func (h *host) addStranger(id int, flags uint64) *stranger {
	h.t.Helper()
	s := &stranger{t: h.t, id: uint32(id), char: -1}
	le := binary.LittleEndian
	info := make([]byte, 64)
	le.PutUint16(info[0:], 1)           // queues
	le.PutUint16(info[2:], 2)           // depth
	le.PutUint32(info[8:], 1<<20)       // largest request
	le.PutUint32(info[12:], uint32(id)) //
	le.PutUint64(info[24:], 1<<7|1<<6)  // USER_COPY, CMD_IOCTL_ENCODE
	le.PutUint64(info[32:], flags)
	if err := s.control(0xc0207504, 0, info); err != nil { // ADD_DEV
		h.t.Fatalf("add a device: %v", err)
	}
	h.t.Cleanup(s.remove)
	h.wait("the char node appears", func() bool {
		_, err := os.Stat(s.charNode())
		return err == nil
	})
	return s
}

func (s *stranger) charNode() string { return fmt.Sprintf("/dev/ublkc%d", s.id) }
func (s *stranger) node() string     { return fmt.Sprintf("/dev/ublkb%d", s.id) }

// serve starts the device.
func (s *stranger) serve() {
	s.t.Helper()
	le := binary.LittleEndian
	params := make([]byte, 112)
	le.PutUint32(params[0:], uint32(len(params)))
	le.PutUint32(params[4:], 1)             // BASIC
	params[12], params[13] = 9, 12          // shifts of block sizes
	params[15] = 9                          // of the least I/O
	le.PutUint32(params[16:], 1<<20>>9)     // largest request
	le.PutUint64(params[24:], 8<<20>>9)     // size
	err := s.control(0xc0207508, 0, params) // SET_PARAMS
	if err == nil {
		s.char, err = unix.Open(s.charNode(), unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	ready := make(chan error, 1)
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.queue(ready) }()
	err = <-ready
	if err == nil {
		s.served = true
		err = s.control(0xc0207506, uint64(os.Getpid()), nil) // START_DEV
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// queue answers requests without looking at them, until the device is stopped.
func (s *stranger) queue(ready chan<- error) error {
	runtime.LockOSThread()
	ring, err := uring.New(16, uring.SingleIssuer)
	if err != nil {
		ready <- err
		return err
	}
	defer ring.Close()
	descs, err := unix.Mmap(s.char, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		ready <- err
		return err
	}
	defer unix.Munmap(descs)
	le := binary.LittleEndian
	send := func(op uint32, tag uint64, result int32) {
		var cmd [16]byte
		le.PutUint16(cmd[2:], uint16(tag))
		le.PutUint32(cmd[4:], uint32(result))
		err = errors.Join(err, ring.Cmd(uring.FD(s.char), op, &cmd, 0, tag))
	}
	open := 2
	for tag := range uint64(open) {
		send(0xc0107520, tag, -1) // FETCH_REQ
	}
	err = errors.Join(err, ring.Submit())
	ready <- err
	for err == nil && open > 0 {
		err = ring.SubmitAndWait(1)
		ring.ForEach(func(c uring.CQE) {
			if c.Res != 0 {
				open--
				return
			}
			n := int32(0)
			if op := descs[c.Data*24]; op < 2 { // READ, WRITE
				n = int32(le.Uint32(descs[c.Data*24+4:])) << 9
			}
			send(0xc0107521, c.Data, n) // COMMIT_AND_FETCH_REQ
		})
	}
	return err
}

// remove is what its own program does with it in the end.
func (s *stranger) remove() {
	s.t.Helper()
	if s.served {
		if err := s.control(0xc0207507, 0, nil); err != nil { // STOP_DEV
			s.t.Errorf("the foreign device cannot be stopped: %v", err)
		}
		if err := <-s.ended; err != nil {
			s.t.Errorf("the server of the foreign device: %v", err)
		}
	}
	if s.char >= 0 {
		unix.Close(s.char)
	}
	if err := s.control(0xc0207505, 0, nil); err != nil { // DEL_DEV
		s.t.Errorf("the foreign device cannot be deleted: %v", err)
	}
}

// Devices of other programs are shown and never touched.
func TestForeignDevicesAreListedAndLeftAlone(t *testing.T) {
	h := begin(t)
	idle := h.addStranger(40, 0)
	busy := h.addStranger(41, 1<<1|1<<0) // as ublksrv marks a target with an eventfd
	busy.serve()
	im := h.create("a.qcow2", small)
	d := im.attach()
	k := d.open()
	k.write(1, 0, 8192)
	k.close()
	state := func() string {
		var out []string
		for _, l := range h.list() {
			out = append(out, fmt.Sprint(l.ID, " ", l.State, " ", l.Kernel))
		}
		slices.Sort(out)
		return fmt.Sprint(out)
	}
	want := fmt.Sprintf("[%d live live 40 foreign dead 41 foreign live]", d.number())
	if got := state(); got != want {
		t.Errorf("list says %s, want %s", got, want)
	}
	for _, l := range h.list() {
		if l.ID == 41 && l.PID != os.Getpid() || l.ID == 40 && l.PID != 0 {
			t.Errorf("listed as %+v", l)
		}
	}
	says(t, h.run(qzbd, "list"), "foreign", "/dev/ublkb41")
	for _, node := range []string{idle.node(), idle.charNode(), busy.node(), busy.charNode()} {
		for _, args := range [][]string{{"detach", node}, {"detach", "--force", node}, {"recover", node}} {
			says(t, h.refused(qzbd, args...), "no device of qzbd", "left alone")
		}
	}
	says(t, h.refused(qzbd, "attach", "--id", "40", h.create("b.qcow2", small).path), "40", "exists")
	d.killed()
	if out := h.run(qzbd, "recover", "--all"); out != d.node+"\n" {
		t.Errorf("recover --all said %q", out)
	}
	h.run(qzbd, "detach", "--all")
	d.gone = true
	if got, want := state(), "[40 foreign dead 41 foreign live]"; got != want {
		t.Errorf("after detach --all list says %s, want %s", got, want)
	}
	f, err := os.Open(busy.node())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(make([]byte, 4096)); err != nil {
		t.Errorf("the foreign device does not work any more: %v", err)
	}
}

// A record whose number another program's device has got is cleared away
// without it.
func TestAForeignDeviceWithTheNumberOfADeadOne(t *testing.T) {
	h := begin(t)
	im := h.create("a.qcow2", small)
	d := im.attach("--no-recovery", "--id", "42")
	d.kill()
	// The char node is left, until somebody deletes the device.
	if _, err := os.Stat("/dev/ublkc42"); err != nil {
		t.Fatal(err)
	}
	if l := h.list(); len(l) != 1 || l[0].State != "dead" || l[0].Kernel != "dead" {
		t.Errorf("list says %+v", l)
	}
	old := &stranger{t: t, id: 42}
	if err := old.control(0xc0207505, 0, nil); err != nil {
		t.Fatal(err)
	}
	if l := h.list(); len(l) != 1 || l[0].State != "dead" || l[0].Kernel != "" {
		t.Errorf("list says %+v", l)
	}
	s := h.addStranger(42, 0)
	if l := h.list(); len(l) != 2 || l[0].State != "dead" || l[1].State != "foreign" {
		t.Errorf("list says %+v", l)
	}
	h.run(qzbd, "detach", im.path)
	if l := h.list(); len(l) != 1 || l[0].State != "foreign" {
		t.Errorf("list says %+v", l)
	}
	says(t, h.refused(qzbd, "detach", s.node()), "left alone")
	im.attach().detach() // clears the dirty bit
}
