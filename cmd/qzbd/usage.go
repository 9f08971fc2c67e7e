package main

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// kindOfValue says what flags take, by pflag's name of the type.
var kindOfValue = map[string]string{
	"int":         "whole number",
	"uint64":      "whole number of 0 and more",
	"uint8":       "whole number from 0 to 255",
	"duration":    "duration: write it like 500ms, 5s or 1m",
	"string":      "word",
	"stringSlice": "list: write it like one,two",
}

// flagError says what is wrong with a flag.
func flagError(cmd *cobra.Command, err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		f := invalid.GetFlag()
		err = errors.Unwrap(invalid) // of a type of ours, which has its own words
		kind := kindOfValue[f.Value.Type()]
		between := " "
		switch {
		case f.Value.Type() == "bool":
			between, err = "=", errors.New("this is neither true nor false")
		case errors.Is(err, strconv.ErrRange):
			err = errors.New("this is too much or too little: write a " + kind)
		case kind != "":
			err = errors.New("this is no " + kind)
		}
		err = fmt.Errorf("--%s%s%s: %w", f.Name, between, cmp.Or(legible(invalid.GetValue()), `""`), err)
	}
	return usageError(cmd, err)
}

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

// noSuchTopic refuses the arguments of help that are no commands.
func noSuchTopic(help *cobra.Command, args []string) error {
	cmd, rest, err := help.Root().Find(args)
	if err != nil {
		return err
	}
	return noSuchCommand(cmd, rest)
}
