package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// usageError says what is wrong with a command line, and who knows better.
func usageError(cmd *cobra.Command, err error) error {
	return fmt.Errorf("%w: see `%s --help`", err, cmd.CommandPath())
}

// needs makes a command demand exactly these arguments.
func needs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usageError(cmd, fmt.Errorf("%s needs %s", cmd.Name(), strings.Join(names[len(args):], " and ")))
		case len(args) > len(names):
			return usageError(cmd, fmt.Errorf("%s does not take the argument %q", cmd.Name(), args[len(names)]))
		}
		return nil
	}
}

// noSuchCommand refuses the arguments of the program itself.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("there is no command %q", args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		err = fmt.Errorf("%w (meant %s?)", err, strings.Join(near, " or "))
	}
	return usageError(cmd, err)
}
