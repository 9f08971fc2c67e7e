package zns

import (
	"bytes"
	"io"
	"testing"
)

// shortFile ends before the extents that point into it.
type shortFile struct{ *bytes.Reader }

func (shortFile) WriteAt([]byte, int64) (int, error) { return 0, io.ErrShortWrite }

func TestBeyondTheEndOfTheFileIsZeros(t *testing.T) {
	d := flatDevice(t, 4)
	file := shortFile{bytes.NewReader(fill(700, 5))}
	p := fill(1024, 0xaa)
	if err := Do(d, &Request{Op: OpRead, Len: 1024}, file, p); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, append(fill(700, 5), make([]byte, 324)...)) {
		t.Error("wrong data")
	}
	q := &Request{Op: OpWrite, Start: d.g.ZoneSize, Len: 1024}
	if err := Do(d, q, file, p); err != io.ErrShortWrite {
		t.Errorf("a failed write was answered %v", err)
	}
	if c := d.Zone(1).Cond; c != CondEmpty {
		t.Errorf("after it the zone is %v", c)
	}
}
