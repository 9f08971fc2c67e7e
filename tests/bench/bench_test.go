package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/qzbd/qzbd/zns"
)

func TestCellsSayWhatFallsShort(t *testing.T) {
	c := cell{must: 0.25, goal: 0.42, mustNBD: 2}
	for _, v := range []struct {
		ofNullBlk, ofNBD float64
		want             string
	}{
		{0.24, 9, belowMustMark},
		{0.25, 2, belowGoalMark},
		{0.41, 1.9, belowMustMark},
		{0.50, 1.9, belowMustMark},
		{0.42, 2, ""},
	} {
		if got := c.verdict(v.ofNullBlk, v.ofNBD); got != v.want {
			t.Errorf("%+v: %q", v, got)
		}
	}
}

func TestCellsAreSelectedByName(t *testing.T) {
	for _, c := range []struct {
		only         string
		one, several int
	}{{"", len(cells), len(parallel)}, {"^4k write QD1$", 1, 0}, {"randread", 2, 1}, {"jobs", 0, 2}, {"nothing", 0, 0}} {
		re := regexp.MustCompile(c.only)
		if one, several := len(selectCells(cells, re)), len(selectCells(parallel, re)); one != c.one || several != c.several {
			t.Errorf("%q: %d and %d cells, want %d and %d", c.only, one, several, c.one, c.several)
		}
	}
}

func TestFioArgumentsAreThoseOfTheCell(t *testing.T) {
	got := cell{rw: "write", bs: "64k", depth: 32}.fioArgs(measured)
	for _, want := range []string{"--rw=write", "--bs=64k", "--iodepth=32", "--runtime=1s", "--size=100%"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s in %q", want, got)
		}
	}
	got = parallel[0].fioArgs(measured)
	for _, want := range []string{"--numjobs=4", "--size=25%", "--offset_increment=25%", "--cpus_allowed=0-3"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s in %q", want, got)
		}
	}
}

func TestFioIsRead(t *testing.T) {
	const (
		write = `{"fio version": "fio-3.33", "jobs": [{"jobname": "bench", "error": 0,
			"read": {"io_bytes": 0, "iops": 0.0, "total_ios": 0}, "write": {"io_bytes": 4096000, "iops": 1000.5, "total_ios": 1001}}]}`
		read   = `{"jobs": [{"error": 0, "read": {"iops": 7, "total_ios": 7}, "write": {"iops": 0, "total_ios": 0}}]}`
		idle   = `{"jobs": [{"error": 0, "read": {"iops": 0, "total_ios": 0}, "write": {"iops": 0, "total_ios": 0}}]}`
		failed = `{"jobs": [{"error": 5, "read": {"iops": 7, "total_ios": 7}}]}`
	)
	for _, c := range []struct {
		name, out string
		want      float64 // 0: an error
	}{
		{"a write", write, 1000.5},
		{"a read", read, 7},
		{"after a warning", "fio: something about zones\n" + read, 7},
		{"nothing done", idle, 0},
		{"an error", failed, 0},
		{"no job", `{"jobs": []}`, 0},
		{"cut off", write[:40], 0},
		{"nothing", "", 0},
	} {
		got, err := parseFio([]byte(c.out))
		if got != c.want || (err != nil) != (c.want == 0) {
			t.Errorf("%s: %v, %v, want %v", c.name, got, err, c.want)
		}
	}
}

func TestMedianIsTheMiddle(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{[]float64{3}, 3}, {[]float64{1, 2}, 1.5}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		before := slices.Clone(c.values)
		if got := median(c.values); got != c.want {
			t.Errorf("%v: %v, want %v", c.values, got, c.want)
		}
		if !slices.Equal(c.values, before) {
			t.Errorf("%v became %v", before, c.values)
		}
	}
}

// threeBoots are of a machine that is now and then twice as fast: ratios do not
// show it.
func threeBoots() []boot {
	var boots []boot
	for _, speed := range []float64{1, 2, 1} {
		b := boot{Linux: "7.1", Fio: "fio-1", QEMU: "qemu-nbd 1", Qzbd: "qzbd 1", IOPS: make(map[string]map[string]float64)}
		for i, k := range kinds {
			b.IOPS[k.name] = make(map[string]float64)
			for _, c := range k.selection(cells) {
				b.IOPS[k.name][c.name()] = speed * []float64{1000, 100, 1500, 1600, 800, 300, 2500, 200, 250, 220, 210}[i]
			}
		}
		boots = append(boots, b)
	}
	return boots
}

func TestResultsAreMediansOfFiguresAndRatios(t *testing.T) {
	r := newResults(cells[:1], threeBoots())
	if len(r.Cells) != 1 || len(r.Cells[0].Devices) != devicesIn(cells[:1]) || r.Boots != 3 {
		t.Fatalf("%+v", r)
	}
	c := r.Cells[0]
	null, nbd, fresh, full := c.Devices[0], c.Devices[1], c.Devices[5], c.Devices[6]
	if null.IOPS != 1000 || null.OfNullBlk != 1 || nbd.OfNBD != 1 || nbd.OfNullBlk != 0.1 {
		t.Errorf("the peers: %+v, %+v", null, nbd)
	}
	if !slices.Equal(fresh.Runs, []float64{300, 600, 300}) || fresh.IOPS != 300 || fresh.OfNullBlk != 0.3 || fresh.OfNBD != 3 {
		t.Errorf("ours: %+v", fresh)
	}
	if null.Verdict != "" || fresh.Verdict != belowGoalMark || full.Verdict != "" {
		t.Errorf("marks %q, %q, %q", null.Verdict, fresh.Verdict, full.Verdict)
	}
	if met, belowGoal := r.count(""), r.count(belowGoalMark); met != 1 || belowGoal != 1 {
		t.Errorf("%d lines meet the goal, %d are below", met, belowGoal)
	}
	if null.Instructions != 1e6 || null.Spread != 100 {
		t.Errorf("%v instructions per I/O, spread %v%%", null.Instructions, null.Spread)
	}
	if _, d := r.widest(); d.Spread != 100 {
		t.Errorf("the spread is %v%%, want 100%%", d.Spread)
	}
}

func TestTableHasALinePerCellAndDevice(t *testing.T) {
	var out strings.Builder
	if err := newResults(cells, threeBoots()).print(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	const head = 3
	if want := head + devicesIn(cells) + 3; len(lines) != want {
		t.Fatalf("%d lines, want %d:\n%s", len(lines), want, out.String())
	}
	for at, want := range map[int]string{
		0:  "Linux 7.1, fio-1, qemu-nbd 1, qzbd 1; boots: 3. IOPS = 10⁹ / instructions of the guest per I/O.",
		3:  "4k write QD1      null_blk                       1000  1000000        1.00                   10.00",
		5:  "                  plain file, fresh              1500   666667        1.50                   15.00",
		8:  "                  qzbd, fresh image               300  3333333        0.30  0.25  0.42        3.00   2.0  below goal",
		9:  "                  qzbd, allocated image          2500   400000        2.50  0.25  0.42       25.00   2.0",
		19: "                  qzbd, fresh image               300  3333333        0.30  0.65  0.89        3.00   2.0  below must",
		68: "Of 12 lines with a must 8 meet it, and 6 the goal. Farthest apart between boots: 100.0% (4k write QD1, null_blk).",
	} {
		if lines[at] != want {
			t.Errorf("line %d is\n%q, want\n%q", at, lines[at], want)
		}
	}
}

// devicesIn counts what is measured in the cells.
func devicesIn(cells []cell) int {
	n := 0
	for _, k := range kinds {
		n += len(k.selection(cells))
	}
	return n
}

func TestAKindThatIsNotThereIsLeftOut(t *testing.T) {
	boots := threeBoots()
	for _, b := range boots {
		delete(b.IOPS, ext4Name)
	}
	if got, want := len(newResults(cells[1:2], boots).Cells[0].Devices), len(kinds)-1; got != want {
		t.Errorf("%d devices, want %d", got, want)
	}
}

func TestWhatIsNotForAKindIsNotMeasured(t *testing.T) {
	for _, c := range newResults(cells, threeBoots()).Cells {
		writes := strings.Contains(c.Cell, " write ")
		if fresh := slices.ContainsFunc(c.Devices, func(d deviceResult) bool { return d.Device == plainFreshName }); fresh != writes {
			t.Errorf("%s of a fresh file: %v", c.Cell, fresh)
		}
	}
}

func TestNullKeepsWritePointers(t *testing.T) {
	n := newNull()
	do := func(op zns.Op, start, length uint64) {
		t.Helper()
		r := zns.Request{Op: op, Start: start, Len: length}
		if s := n.Begin(&r); s != zns.Answer || r.Err != nil {
			t.Fatalf("%v at %d: step %v, %v", op, start, s, r.Err)
		}
	}
	const zone = zoneMiB << 20
	do(zns.OpWrite, zone, 4096)
	do(zns.OpWrite, 2*zone, zone)
	for i, want := range []struct {
		cond zns.Cond
		wp   uint64
	}{{zns.CondEmpty, 0}, {zns.CondImpOpen, zone + 4096}, {zns.CondFull, 3 * zone}} {
		if z := n.Zone(uint32(i)); z.Cond != want.cond || z.WP != want.wp || z.Start != uint64(i)*zone {
			t.Errorf("zone %d: %+v, want %v with write pointer %d", i, z, want.cond, want.wp)
		}
	}
	do(zns.OpReset, 2*zone, zone)
	if z := n.Zone(2); z.Cond != zns.CondEmpty || z.WP != 2*zone {
		t.Errorf("after a reset: %+v", z)
	}
}

func TestRoundsAreSummedUp(t *testing.T) {
	var all []queueRound
	for _, speed := range []float64{1, 5, 2} { // of the host
		round := make(queueRound)
		for _, n := range queueCounts {
			round[n] = make(map[string]map[string]float64)
			for i, k := range kinds {
				round[n][k.name] = map[string]float64{parallel[0].name(): speed * float64(n*1000+i), parallel[1].name(): speed * 7}
			}
		}
		all = append(all, round)
	}
	r := &results{Scaling: newScaling(all)}
	var out strings.Builder
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	const want = `Indication only: IOPS by the wall clock with 4 emulated CPUs, medians of 3 rounds. (In parentheses: median of the rounds' factors to one queue.)

load                      device                        queues: 1        queues: 2        queues: 4
4k write QD32, 4 jobs     null_blk                   2000 ( 1.00)     4000 ( 2.00)     8000 ( 4.00)
4k write QD32, 4 jobs     qzbd, fresh image          2010 ( 1.00)     4010 ( 2.00)     8010 ( 3.99)
4k randread QD32, 4 jobs  null_blk                     14 ( 1.00)       14 ( 1.00)       14 ( 1.00)
4k randread QD32, 4 jobs  qzbd, fresh image            14 ( 1.00)       14 ( 1.00)       14 ( 1.00)
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestChartIsXMLWithABarPerFigure(t *testing.T) {
	chart := newResults(cells, threeBoots()).chart()
	count := make(map[string]int)
	for d := xml.NewDecoder(bytes.NewReader(chart)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, chart)
		}
		if e, ok := token.(xml.StartElement); ok {
			count[e.Name.Local]++
		}
	}
	bars := devicesIn(cells)
	if count["svg"] != 1 || count["rect"] != 1+len(kinds)+bars || count["line"] != len(cells)*2*2 {
		t.Errorf("elements: %v", count)
	}
	for _, want := range []string{"4k randread QD32", "qzbd, fresh image", ">2500<"} {
		if !bytes.Contains(chart, []byte(want)) {
			t.Errorf("no %q in the chart", want)
		}
	}
}

func TestSharesAreInstructions(t *testing.T) {
	got := shares("\n    10.99%|fio             |[k] _raw_spin_unlock_irq   |-      |-\n     4.84%|swapper|[k] halt\n\n", 10000)
	const want = "    1099  fio              [k] _raw_spin_unlock_irq\n     484  swapper          [k] halt\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestEveryKindHasAColor(t *testing.T) {
	for _, k := range kinds {
		if colors[k.name] == "" {
			t.Errorf("%s has none", k.name)
		}
	}
}

func TestResultsAreSaved(t *testing.T) {
	dir := t.TempDir()
	want := newResults(cells, threeBoots())
	if err := want.save(dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got results
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if got.Cells[5].Devices[4].IOPS != 300 || got.Cells[5].Devices[4].Verdict != belowMustMark {
		t.Errorf("%s", text)
	}
	if _, err := os.Stat(filepath.Join(dir, "chart.svg")); err != nil {
		t.Error(err)
	}
}

func TestANetworkDeviceIsConnectedWithServerAndSize(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		file, text string
		want       bool
	}{{"size", "0\n", false}, {"pid", "7\n", false}, {"size", "2097152\n", true}} {
		if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := connected(dir); got != c.want {
			t.Errorf("after %s is %q: %v", c.file, c.text, got)
		}
	}
}
