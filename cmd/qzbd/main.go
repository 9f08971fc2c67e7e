// Command qzbd makes a host-managed zoned block device out of a qcow2 image.
//
// It only wires: flags and messages here, the device in ublk, the zones in
// zns, the image in qcow2.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/qzbd/qzbd/systemd"
)

// version is set by the linker.
var version = "devel"

// exitError carries an exit status that is not the usual 1. Its message, if
// any, is still printed.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

func main() {
	args := os.Args[1:]
	if filepath.Base(os.Args[0]) == generatorName {
		args = append([]string{"generator"}, args...)
	}
	os.Exit(run(args))
}

func run(args []string) int {
	cmd := rootCommand()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(context.Background())
	if err == nil {
		return 0
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{code: 1, err: err}
	}
	if exit.err != nil { // otherwise the command has said everything
		systemd.Complain(systemd.Err, "qzbd: ", exit.err.Error())
	}
	return exit.code
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "qzbd",
		Short: "A real zoned block device out of a qcow2 image",
		Long: `qzbd serves a qcow2 image with the zoned extension as a host-managed zoned
block device, /dev/ublkbN, through the kernel's ublk driver.

/etc/qzbd/NAME.conf is a configuration, qzbd.conf(5), and /run/qzbd/N what a
server keeps about its device: record, journal, log, control socket. qzbd list
says in which state devices are.

The exit status is 1 after an error; of qzbd check it is 2 for corruption and 3
for leaks; a server that ends with 3 has left a device that waits for another.`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSuchCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(flagError)
	root.SetVersionTemplate("qzbd {{.Version}}\n")
	root.AddCommand(
		createCommand(), infoCommand(), checkCommand(), zonesCommand(),
		attachCommand(), detachCommand(), recoverCommand(), upgradeCommand(), listCommand(), statsCommand(), benchCommand(), featuresCommand(), confCheckCommand(), manCommand(), generatorCommand(),
	)
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		if c.Name() == "help" { // cobra's own; of what there is not it would show other help, with success
			c.Args = noSuchTopic
		}
	}
	return root
}
