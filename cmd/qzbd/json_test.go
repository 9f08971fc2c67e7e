package main

import (
	"encoding"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/qzbd/qzbd/qcow2"
)

var update = flag.Bool("update", false, "write the golden files anew")

// jsonTypes is what each command prints with --json, in the order of the
// README's section.
var jsonTypes = []struct {
	command string
	value   any
}{
	{"info", &imageInfo{}},
	{"check", &qcow2.CheckReport{}},
	{"zones", []zoneJSON{}},
	{"list", []device{}},
	{"stats", &statsReport{}},
	{"bench", &benchReport{}},
	{"features", []featureJSON{}},
}

// fields lists what a value of type t has in JSON, a line each: its path, its
// type, and whether it can be missing.
func fields(t reflect.Type, path string) []string {
	if t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
		return []string{path + " string"}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return fields(t.Elem(), path)
	case reflect.Slice:
		return fields(t.Elem(), path+"[]")
	case reflect.Bool:
		return []string{path + " boolean"}
	case reflect.String:
		return []string{path + " string"}
	case reflect.Struct:
		var out []string
		for i := range t.NumField() {
			f := t.Field(i)
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Anonymous && name == "":
				out = append(out, fields(f.Type, path)...)
				continue
			case name == "" || !f.IsExported():
				out = append(out, fmt.Sprintf("%s: %s has no JSON name", path, f.Name))
				continue
			}
			sub := fields(f.Type, strings.TrimPrefix(path+"."+name, "."))
			if strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero") {
				for j := range sub {
					sub[j] += ", optional"
				}
			}
			out = append(out, sub...)
		}
		return out
	}
	return []string{path + " number"}
}

// Scripts depend on these names and types. Who changes one breaks them: add a
// new name beside the old one instead.
func TestTheNamesInJSONStayAsTheyAre(t *testing.T) {
	for _, c := range jsonTypes {
		have := strings.Join(fields(reflect.TypeOf(c.value), ""), "\n") + "\n"
		golden := filepath.Join("testdata", "json", c.command+".txt")
		if *update {
			if err := os.WriteFile(golden, []byte(have), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if have != string(want) {
			t.Errorf("%s --json has\n%swant\n%s(go test ./cmd/qzbd -update writes %s anew)", c.command, have, want, golden)
		}
	}
}

func TestTheReadmeDocumentsEveryNameInJSON(t *testing.T) {
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(b), "\n## JSON output\n")
	section, _, _ = strings.Cut(section, "\n## ")
	if !ok {
		t.Fatal("no section JSON output")
	}
	for i, c := range jsonTypes {
		_, part, ok := strings.Cut(section, "`"+c.command+" --json`")
		if i+1 < len(jsonTypes) {
			part, _, _ = strings.Cut(part, "`"+jsonTypes[i+1].command+" --json`")
		}
		if !ok {
			t.Errorf("%s --json is not documented, or not in its place", c.command)
		}
		for _, f := range fields(reflect.TypeOf(c.value), "") {
			path, _, _ := strings.Cut(f, " ")
			path = strings.TrimSuffix(strings.TrimPrefix(path, "[]."), "[]")
			if !strings.Contains(part, "\n| `"+path+"` |") {
				t.Errorf("%s --json: %s is not documented", c.command, path)
			}
		}
	}
}
