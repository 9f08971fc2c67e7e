package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/qzbd/qzbd/qcow2"
)

func checkCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check IMAGE",
		Short: "Check an image for leaks and corruption",
		Long: `Check compares the refcounts of an image with what refers to its clusters, and
its mappings with the write pointers. It writes nothing. The exit status is 0
if the image is clean, 2 if it is corrupt, 3 if clusters are leaked and nothing
is worse, and 1 if the check could not be done.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			rep, err := checkImage(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				if err := printJSON(rep); err != nil {
					return err
				}
			} else {
				printCheck(rep)
			}
			if code := rep.ExitCode(); code != 0 {
				return &exitError{code: code}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func checkImage(image string) (*qcow2.CheckReport, error) {
	f, err := openFile(image, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := qcow2.Lock(f, false); err != nil && !errors.Is(err, qcow2.ErrNoLocks) {
		return nil, explainInUse(err, image)
	}
	rep, err := qcow2.Check(qcow2.NewOSFile(f), nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", image, err)
	}
	return rep, nil
}

// explainInUse says which of our devices has the image.
func explainInUse(err error, image string) error {
	if s, _ := findState(image); s != nil && s.alive() {
		return fmt.Errorf("%s is attached as %s: detach it first", image, s.Device)
	}
	return err
}

func printCheck(rep *qcow2.CheckReport) {
	for _, m := range rep.Messages {
		fmt.Println(m)
	}
	if rep.Omitted > 0 {
		fmt.Printf("… and %d more\n", rep.Omitted)
	}
	switch {
	case rep.Corruptions > 0:
		fmt.Printf("Errors were found on the image: corruptions %d, leaked clusters %d.\n", rep.Corruptions, rep.Leaks)
	case rep.Leaks > 0:
		fmt.Printf("Leaked clusters were found on the image: %d. They waste space but harm nothing.\n", rep.Leaks)
	default:
		fmt.Println("No errors were found on the image.")
	}
	fmt.Printf("%d/%d clusters allocated, image end offset %d\n", rep.AllocatedClusters, rep.TotalClusters, rep.ImageEnd)
}
