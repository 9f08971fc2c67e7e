package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/qzbd/qzbd/qcow2"
)

func createCommand() *cobra.Command {
	var options []string
	cmd := &cobra.Command{
		Use:   "create [-o OPTION=VALUE,...] IMAGE [SIZE]",
		Short: "Create a zoned image",
		Long: `Create makes IMAGE, a qcow2 image with the zoned extension. The options are
those of qemu-img create; -o help lists them. Sizes take the suffixes K, M, G,
T, P and E. A file of that name is replaced, whatever it holds, unless it is in
use.`,
		Example: `  qzbd create -o zone.size=64M,zone.max_open_zones=6,zone.max_active_zones=8 z.qcow2 768M`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 2 {
				return usageError(cmd, fmt.Errorf("create takes an image and a size, not %q as well", args[2]))
			}
			return nil
		},
		ValidArgsFunction: completeImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			if asksForHelp(options) {
				_, err := fmt.Print(qcow2.CreateOptionsHelp())
				return err
			}
			if len(args) == 0 {
				return usageError(cmd, errors.New("create needs the name of the image"))
			}
			size := ""
			if len(args) == 2 {
				size = args[1]
			}
			if args[0] == "" {
				return usageError(cmd, errors.New("the name of the image is empty"))
			}
			// Also where the file system has no locks that say so.
			if list, err := findStates(args[0]); err != nil {
				return err
			} else if len(list) > 0 && list[0].alive() {
				return fmt.Errorf("%s is attached as %s: detach it first", args[0], devicesOf(list))
			}
			if err := refuseWaiting(args[0]); err != nil {
				return err
			}
			o, warnings, err := qcow2.ParseCreateOptions(options, size)
			if err != nil {
				return err
			}
			for _, w := range warnings {
				printWarning(w)
			}
			p := newProgress("preallocating " + args[0])
			defer p.end()
			o.Progress = p.update
			return explainCreate(args[0], qcow2.Create(args[0], o))
		},
	}
	// An array, not a slice: the value's commas are the options' own.
	cmd.Flags().StringArrayVarP(&options, "option", "o", nil, "options, comma separated; -o help lists them")
	completeFlag(cmd, "option", completeCreateOptions)
	return cmd
}

// explainCreate says what helps against an error of the directory, and who uses
// the file that is there.
func explainCreate(path string, err error) error {
	switch {
	case errors.Is(err, qcow2.ErrInUse):
		f, oerr := openFile(path, os.O_RDONLY)
		if oerr != nil {
			return err
		}
		defer f.Close()
		explained, _ := explainInUse(err, f)
		return explained
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: make the directory first", err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: choose a place that can be written to", err)
	}
	return err
}

// asksForHelp looks for the word that qemu-img takes instead of an option.
func asksForHelp(options []string) bool {
	for _, list := range options {
		for word := range strings.SplitSeq(list, ",") {
			if word == "help" || word == "?" {
				return true
			}
		}
	}
	return false
}
