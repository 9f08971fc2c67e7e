package main

import (
	"strings"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/zns"
)

const mib = 1 << 20

func TestZonesPrintsTheLinesOfBlkzoneReport(t *testing.T) {
	h := &qcow2.Header{Size: 4*64*mib + 36*mib, Zoned: qcow2.Zoned{
		ZoneSize: 64 * mib, ZoneCapacity: 48 * mib, Conventional: 1, NrZones: 5,
	}}
	wps := []uint64{0, 64 * mib, 128*mib + 64<<10, 192*mib + 48*mib, 256*mib + 512}
	var b strings.Builder
	if err := printZones(&b, offlineReport(h, wps)); err != nil {
		t.Fatal(err)
	}
	want := `  start: 0x000000000, len 0x020000, cap 0x020000, wptr 0x000000 reset:0 non-seq:0, zcond: 0(nw) [type: 1(CONVENTIONAL)]
  start: 0x000020000, len 0x020000, cap 0x018000, wptr 0x000000 reset:0 non-seq:0, zcond: 1(em) [type: 2(SEQ_WRITE_REQUIRED)]
  start: 0x000040000, len 0x020000, cap 0x018000, wptr 0x000080 reset:0 non-seq:0, zcond: 4(cl) [type: 2(SEQ_WRITE_REQUIRED)]
  start: 0x000060000, len 0x020000, cap 0x018000, wptr 0x018000 reset:0 non-seq:0, zcond:14(fu) [type: 2(SEQ_WRITE_REQUIRED)]
  start: 0x000080000, len 0x012000, cap 0x012000, wptr 0x000001 reset:0 non-seq:0, zcond: 4(cl) [type: 2(SEQ_WRITE_REQUIRED)]
`
	if b.String() != want {
		t.Errorf("report\n%swant\n%s", b.String(), want)
	}
	if c := offlineReport(h, wps)[3].Cond; c != zns.CondFull {
		t.Errorf("zone 3 is %v, want full", c)
	}
}
