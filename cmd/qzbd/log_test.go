package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/zap"
)

func TestTheJournalGetsPrioritiesAndNoTimes(t *testing.T) {
	var b bytes.Buffer
	log := newLogger("debug", &b, true)
	log.Debug("a")
	log.Info("b")
	log.Warn("c", zap.Int("n", 1))
	log.Error("d")
	if want := "<7>debug a\n<6>info b\n<4>warn c {\"n\": 1}\n<3>error d\n"; b.String() != want {
		t.Errorf("logged\n%swant\n%s", b.String(), want)
	}
	b.Reset()
	newLogger("warn", &b, false).Warn("c")
	if s := b.String(); !strings.HasSuffix(s, "Z warn c\n") && !regexp.MustCompile(`^\d{4}-.*[+-]\d{4} warn c\n$`).MatchString(s) {
		t.Errorf("logged %s", s)
	}
}
