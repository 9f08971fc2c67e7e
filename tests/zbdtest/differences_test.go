package zbdtest

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/qzbd/qzbd/tests/zonemodel"
)

func TestEachDifferenceIsExplainedAndNoneIsOurs(t *testing.T) {
	if len(differences) != int(nrDifferences) {
		t.Errorf("%d differences are in the table, %d have a name", len(differences), nrDifferences)
	}
	for id, d := range differences {
		if len(d.kinds) == 0 || d.what == "" || d.ours == "" || d.why == "" {
			t.Errorf("difference %d: %+v", id, d)
		}
		if slices.Contains(d.kinds, QZBD) {
			t.Errorf("%s: qzbd cannot differ from itself", d.what)
		}
	}
	if QZBD.quirks() != (zonemodel.Quirks{}) {
		t.Error("the model has a quirk for qzbd")
	}
	var out bytes.Buffer
	printDifferences(&out)
	for _, d := range differences {
		if !strings.Contains(out.String(), d.why) {
			t.Errorf("not printed: %s", d.what)
		}
	}
}

func TestRulesHaveSentencesOfTheirOwnForNames(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rules() {
		if seen[r.name] || !strings.Contains(r.name, " ") {
			t.Errorf("%q", r.name)
		}
		seen[r.name] = true
	}
}
