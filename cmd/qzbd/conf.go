package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/qcow2"
)

// confSuffix ends the name of a configuration; what is before it names the
// device.
const confSuffix = ".conf"

// imageKey is the one key of a configuration that is no flag of attach.
const imageKey = "image"

// confBools are the words for yes and no in a configuration.
var confBools = map[string]string{
	"yes": "true", "true": "true", "on": "true", "1": "true",
	"no": "false", "false": "false", "off": "false", "0": "false",
}

// readConf makes the options those of a configuration: lines "key = value",
// where the keys are the flags of attach and "image". Every mistake is reported.
func (o *attachOptions) readConf(path string) error {
	*o = attachOptions{}
	f := pflag.NewFlagSet("attach", pflag.ContinueOnError)
	o.flags(f)
	name := strings.TrimSuffix(filepath.Base(path), confSuffix)
	if !strings.HasSuffix(path, confSuffix) || checkName(name) != nil {
		return fmt.Errorf("%q: the name of a configuration makes that of the device: call it NAME.conf, with %s", path, nameRule)
	}
	o.name = name
	text, err := readText(path)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	type mistake struct {
		line int
		err  error
	}
	var mistakes []mistake
	bad := func(line int, format string, args ...any) {
		mistakes = append(mistakes, mistake{line, fmt.Errorf("%s:%d: "+format, append([]any{path, line}, args...)...)})
	}
	lines := map[string]int{}  // where a key was set
	wrong := map[string]bool{} // and to what it cannot be
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch {
		case !ok:
			bad(n, "%s: this is no line `key = value`: make it one, or a comment with #", legible(line))
		case lines[key] != 0:
			bad(n, "%s = %s: line %d sets %s already: keep one of them", legible(key), legible(value), lines[key], legible(key))
		default:
			lines[key] = n
			if advice := o.set(f, key, value); advice != "" {
				wrong[key] = true
				bad(n, "%s = %s: %s", legible(key), legible(value), advice)
			}
		}
	}
	for _, p := range o.problems() {
		if n := lines[p.flag]; n != 0 && !wrong[p.flag] {
			bad(n, "%s = %s: %s", p.flag, p.value, p.advice)
		}
	}
	slices.SortStableFunc(mistakes, func(a, b mistake) int { return a.line - b.line })
	var errs []error
	for i, m := range mistakes {
		if i == mostMistakes {
			errs = append(errs, fmt.Errorf("%s: and %d lines more with mistakes", path, len(mistakes)-i))
			break
		}
		errs = append(errs, m.err)
	}
	if lines[imageKey] == 0 {
		errs = append(errs, fmt.Errorf("%s: there is no image: add a line `image = /path/of/it`", path))
	}
	return errors.Join(errs...)
}

const (
	mostText     = 64 << 10 // bytes of a configuration
	mostMistakes = 20       // are reported
)

// readText returns the text of a configuration.
func readText(path string) (string, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer file.Close()
	st, err := file.Stat()
	switch {
	case err != nil:
		return "", err
	case !st.Mode().IsRegular():
		return "", fmt.Errorf("%s is no regular file, as a configuration is", path)
	case st.Size() > mostText:
		return "", fmt.Errorf("%s has %d bytes, and no configuration more than %d: is it another file?", path, st.Size(), mostText)
	}
	b, err := io.ReadAll(io.LimitReader(file, mostText))
	return strings.TrimPrefix(string(b), "\ufeff"), err // some editors' mark
}

// legible is text that can be printed.
func legible(s string) string {
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}

// set sets what a line of a configuration says and returns what is wrong with
// it.
func (o *attachOptions) set(f *pflag.FlagSet, key, value string) (advice string) {
	flag := f.Lookup(key)
	switch {
	case key == imageKey && strings.ContainsRune(value, 0):
		return "no path has a zero byte"
	case key == imageKey && !filepath.IsAbs(value):
		return "give the path from the root directory on"
	case key == imageKey:
		o.image = value
		return ""
	case key == "name":
		return "the file's name is the device's: leave the line out"
	case flag == nil:
		return "there is no such key: choose " + strings.Join(confKeys(f), ", ")
	case value == "":
		return "the value is missing: give one, or leave the line out for the default, " + flag.DefValue
	case flag.Value.Type() == "bool":
		word, ok := confBools[value]
		if !ok {
			return "choose yes or no"
		}
		value = word
	}
	if err := f.Set(key, value); err != nil {
		return "this is no " + kindOfValue[flag.Value.Type()]
	}
	return ""
}

// confKeys are the keys that a configuration may have.
func confKeys(f *pflag.FlagSet) []string {
	keys := []string{imageKey}
	f.VisitAll(func(flag *pflag.Flag) { keys = append(keys, flag.Name) })
	slices.Sort(keys)
	return keys
}

var goodName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)

const nameRule = "up to 64 letters, digits, dots, hyphens and underscores, no dot or hyphen first"

// checkName checks the NAME of /dev/qzbd/NAME: it is one to udev and to
// systemd, which escape everything else each in its own way.
func checkName(name string) error {
	if goodName.MatchString(name) {
		return nil
	}
	return fmt.Errorf("%q is no name for a device: it takes %s", name, nameRule)
}

func confCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "config-check FILE",
		Short: "Check a configuration of a device",
		Long: `Config-check reads a configuration as qzbd attach --config does, and says of
every line what is wrong with it. Its image has to be there and one that a
device can be made of; it is not changed and may be attached. Whether this machine's
kernel has ublk is for qzbd features to say. The exit status is 1 if anything is
wrong.`,
		Args: needs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var o attachOptions
			if err := o.readConf(args[0]); err != nil {
				return err
			}
			if err := o.checkImage(); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s can be attached as %s\n", args[0], o.image, linkPath(o.name))
			return err
		},
	}
}

// checkImage looks at the image as attach does before it changes anything.
func (o *attachOptions) checkImage() error {
	file, err := openFile(o.image, os.O_RDONLY)
	if err != nil {
		return err
	}
	f := qcow2.NewOSFile(file)
	defer f.Close()
	if !o.readOnly && unix.Access(o.image, unix.W_OK) != nil {
		return fmt.Errorf("%s cannot be written: allow it, or set read-only = yes", o.image)
	}
	if _, err := (&server{log: zap.NewNop()}).plan(o, f); err != nil {
		return fmt.Errorf("%s: %w", o.image, err)
	}
	return nil
}
