package main

import (
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// clock is a time that the test sets.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func testProgress(width int, what ...string) (*progress, *clock, *strings.Builder) {
	c, w := &clock{time.Unix(1000, 0)}, &strings.Builder{}
	return &progress{w: w, width: width, now: c.now, what: what, began: c.t}, c, w
}

func TestWhatTakesLessThanASecondIsNotTold(t *testing.T) {
	for _, width := range []int{0, 80} {
		p, c, w := testProgress(width, "checking z")
		for i := range int64(99) {
			p.update(i, 100)
			c.t = c.t.Add(10 * time.Millisecond)
		}
		p.end()
		if w.String() != "" {
			t.Errorf("width %d: %q", width, w)
		}
	}
}

func TestOnATerminalProgressIsOneLine(t *testing.T) {
	p, c, w := testProgress(80, "checking z")
	for i := range int64(301) { // 3 seconds
		p.update(i, 300)
		c.t = c.t.Add(10 * time.Millisecond)
	}
	frames := strings.Split(w.String(), "\r")
	if len(frames) != 1+21 || strings.Contains(w.String(), "\n") {
		t.Errorf("%d pictures: %q", len(frames)-1, w)
	}
	if frames[1] != "[##########                    ]  33% checking z\x1b[K" || frames[21] != "[##############################] 100% checking z\x1b[K" {
		t.Errorf("%q … %q", frames[1], frames[21])
	}
	w.Reset()
	p.end()
	p.end()
	if w.String() != "\r\x1b[K" {
		t.Errorf("at the end: %q", w)
	}
}

func TestABarIsNotWiderThanItsTerminal(t *testing.T) {
	p, c, w := testProgress(40, "checking "+strings.Repeat("ü", 100))
	c.t = c.t.Add(2 * time.Second)
	p.update(1, 2)
	if n := len([]rune(strings.TrimSuffix(w.String(), "\x1b[K"))) - 1; n != 39 {
		t.Errorf("%d columns: %q", n, w)
	}
}

func TestElsewhereProgressIsALineNowAndThen(t *testing.T) {
	p, c, w := testProgress(0, "checking z", "repairing z", "checking z again")
	for range 3 {
		for i := range int64(151) { // 15 seconds
			p.update(i*1e16, 150*1e16)
			c.t = c.t.Add(100 * time.Millisecond)
		}
	}
	p.end()
	want := "checking z: 7%\nchecking z: 73%\nrepairing z: 39%\nchecking z again: 5%\nchecking z again: 72%\n"
	if w.String() != want {
		t.Errorf("got\n%swant\n%s", w, want)
	}
}

// A server in the background tells how far it is before it is ready.
func TestAServersProgressReachesWhoWaitsForIt(t *testing.T) {
	r, w := io.Pipe()
	c := &clock{time.Unix(1000, 0)}
	go func() {
		tell := throttle(c.now, tellProgress(w))
		for i := range int64(100) {
			tell(i, 100)
			c.t = c.t.Add(30 * time.Millisecond)
		}
		io.WriteString(w, "warning it was\x00not closed\nerror it is\x00broken\n")
		w.Close()
	}()
	var got []int64
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	warned := ""
	_, err := awaitReady(cmd, r, func(done, total int64) {
		if total != 100 {
			t.Errorf("%d of %d", done, total)
		}
		got = append(got, done)
	}, func(what string) { warned += what })
	if warned != "it was\nnot closed" {
		t.Errorf("warned of %q", warned)
	}
	if err == nil || err.Error() != "it is\nbroken" || len(got) != 25 || got[1] != 4 {
		t.Errorf("%v, %v", got, err)
	}
}
