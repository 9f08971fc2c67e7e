package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	progressQuiet = time.Second            // what is done by then is not worth a word
	progressFrame = 100 * time.Millisecond // between two pictures of the bar
	progressLine  = 10 * time.Second       // between two lines where there is no terminal
	progressWidth = 30                     // of the bar, in characters
)

// progress tells how far something has come that takes longer than a second:
// on a terminal as a bar in one line, which is gone at the end, elsewhere as a
// line now and then.
type progress struct {
	w     io.Writer
	width int // columns of the terminal; 0: it is none
	now   func() time.Time
	what  []string // per pass

	pass        int
	last        int64
	began, told time.Time
	drawn       bool
}

// newProgress tells on stderr of passes that follow each other: a pass begins
// where the numbers go back.
func newProgress(passes ...string) *progress {
	p := &progress{w: os.Stderr, now: time.Now, what: passes, began: time.Now()}
	if ws, err := unix.IoctlGetWinsize(int(os.Stderr.Fd()), unix.TIOCGWINSZ); err == nil {
		p.width = 80
		if ws.Col != 0 {
			p.width = int(ws.Col)
		}
	}
	return p
}

// update says that done of total is done. It is for one goroutine.
func (p *progress) update(done, total int64) {
	if done < p.last {
		p.pass++
	}
	p.last = done
	now, every := p.now(), progressLine
	if p.width != 0 {
		every = progressFrame
	}
	if total <= 0 || now.Sub(p.began) < progressQuiet || !p.told.IsZero() && now.Sub(p.told) < every {
		return
	}
	p.told = now
	what := p.what[min(p.pass, len(p.what)-1)]
	share := min(float64(done)/float64(total), 1)
	if p.width == 0 {
		fmt.Fprintf(p.w, "%s: %.0f%%\n", what, share*100)
		return
	}
	full := int(share * progressWidth)
	line := []rune(fmt.Sprintf("[%s%s] %3.0f%% %s", strings.Repeat("#", full), strings.Repeat(" ", progressWidth-full), share*100, what))
	fmt.Fprintf(p.w, "\r%s\x1b[K", string(line[:min(len(line), p.width-1)]))
	p.drawn = true
}

// tellProgress returns what tells a waiting attach over the readiness pipe.
func tellProgress(pipe io.Writer) func(done, total int64) {
	return func(done, total int64) {
		// Who no longer waits does not want to know.
		_, _ = fmt.Fprintf(pipe, "progress %d %d\n", done, total)
	}
}

// end takes the bar away.
func (p *progress) end() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

// throttle passes on as many calls as a bar needs.
func throttle(now func() time.Time, tell func(done, total int64)) func(done, total int64) {
	var told time.Time
	return func(done, total int64) {
		if t := now(); t.Sub(told) >= progressFrame {
			told = t
			tell(done, total)
		}
	}
}
