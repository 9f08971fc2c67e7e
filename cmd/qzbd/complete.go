package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/qzbd/qzbd/qcow2"
)

// A completer says how an argument or a flag's value may go on.
type completer = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective)

// completeAttached offers what is attached: nodes first, and images once the
// word looks like one of them.
func completeAttached(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, err := states()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []string
	for _, s := range list {
		out = append(out, s.Device+"\t"+s.Image)
	}
	for _, s := range list {
		if word != "" && strings.HasPrefix(s.Image, word) {
			out = append(out, s.Image+"\t"+s.Device)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeImage offers files, but for the first argument alone.
func completeImage(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// completeImageOrDevice offers nodes when the word begins like one, else files.
func completeImageOrDevice(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 && strings.HasPrefix(word, "/dev") {
		return completeAttached(cmd, args, word)
	}
	return completeImage(cmd, args, word)
}

// words offers a fixed list.
func words(list ...string) completer {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return list, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeID offers the first numbers that no device has.
func completeID(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var out []string
	for id := 0; len(out) < 10; id++ {
		if _, err := os.Lstat(fmt.Sprintf("/dev/ublkc%d", id)); os.IsNotExist(err) {
			out = append(out, fmt.Sprint(id))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// completeCreateOptions offers the names of options, after those that the word
// has already.
func completeCreateOptions(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	done := word[:strings.LastIndex(word, ",")+1]
	var out []string
	for _, name := range qcow2.CreateOptionNames() {
		out = append(out, done+name+"=")
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// completeFlag sets the completer of a flag that is there.
func completeFlag(cmd *cobra.Command, flag string, f completer) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err)
	}
}

func completeAttach(cmd *cobra.Command) {
	cmd.ValidArgsFunction = completeImage
	completeFlag(cmd, "id", completeID)
	completeFlag(cmd, "block-size", words("512", "4096"))
	completeFlag(cmd, "log-level", words("debug", "info", "warn", "error"))
	completeFlag(cmd, "sync-interval", words("0", "1s", "5s", "30s"))
	completeFlag(cmd, "trace", words(traceNames...))
	for _, number := range []string{"queues", "depth", "metrics"} {
		completeFlag(cmd, number, words())
	}
}
