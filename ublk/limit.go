package ublk

import (
	"sync"
	"time"
)

// logBurst is how many lines about failed requests a device writes per second.
const logBurst = 10

// limiter lets logBurst lines through per second and counts the others.
type limiter struct {
	mu      sync.Mutex
	since   time.Time
	n       int
	dropped int
}

// unlogged is how many lines were not written since the last one.
func (l *limiter) unlogged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

// allow says whether to write a line now, and how many were not written
// before it.
func (l *limiter) allow() (ok bool, dropped int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.since) >= time.Second {
		l.since, l.n = now, 0
	}
	if l.n++; l.n > logBurst {
		l.dropped++
		return false, 0
	}
	dropped, l.dropped = l.dropped, 0
	return true, dropped
}
