package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/qzbd/qzbd/qcow2"
)

func checkCommand() *cobra.Command {
	var asJSON bool
	var repair string
	cmd := &cobra.Command{
		Use:   "check [-r leaks|all] IMAGE",
		Short: "Check an image for leaks and corruption, and repair it",
		Long: `Check compares the refcounts of an image with what refers to its clusters, and
its mappings with the write pointers. Without -r it writes nothing. The exit
status is 0 if the image is clean, 2 if it is corrupt, 3 if clusters are leaked
and nothing is worse, and 1 if the check could not be done.

-r leaks frees leaked clusters; -r all also mends refcounts and what follows
from them. An image that was not closed is brought into order by both. After a
repair the image is checked again, and that decides the exit status. Data below
the write pointers and in conventional zones is never touched: an image whose
mappings there contradict each other is left as it is.`,
		Args:              needs("IMAGE"),
		ValidArgsFunction: completeImage,
		RunE: func(_ *cobra.Command, args []string) error {
			var rep *qcow2.CheckReport
			var repaired string
			var err error
			if repair == "" {
				rep, err = checkImage(args[0])
			} else {
				rep, repaired, err = repairImage(args[0], repair)
			}
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(rep)
			} else {
				_, err = fmt.Print(repaired, checkText(rep))
			}
			if code := rep.ExitCode(); code != 0 {
				return &exitError{code: code, err: err}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVarP(&repair, "repair", "r", "", "repair the image: leaks, or all that can be without losing data")
	completeFlag(cmd, "repair", words("leaks", "all"))
	return cmd
}

func checkImage(image string) (*qcow2.CheckReport, error) {
	f, err := openFile(image, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := lockImage(f, false, qcow2.Lock); err != nil && !errors.Is(err, qcow2.ErrNoLocks) {
		return nil, err
	}
	warnWaiting(image)
	p := newProgress("checking " + image)
	rep, err := qcow2.Check(qcow2.NewOSFile(f), p.update)
	p.end()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", image, err)
	}
	return rep, nil
}

// repairImage repairs and returns what the last check says, and for people what
// was found before and repaired.
func repairImage(image, how string) (rep *qcow2.CheckReport, repaired string, err error) {
	mode, err := qcow2.ParseRepairMode(how)
	if err != nil {
		return nil, "", fmt.Errorf("-r %s: %w", how, err)
	}
	if err := refuseWaiting(image); err != nil {
		return nil, "", err
	}
	f, err := openImage(image, true, qcow2.Lock)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	p := newProgress("checking "+image, "repairing "+image, "checking "+image+" again")
	before, after, err := qcow2.Repair(qcow2.NewOSFile(f), mode, p.update)
	p.end()
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", image, err)
	}
	if before != after {
		repaired = messages(before) + fixedText(after)
	}
	return after, repaired, nil
}

// fixedText says what was repaired, as qemu-img does.
func fixedText(rep *qcow2.CheckReport) string {
	what := "The image was repaired.\n"
	if rep.LeaksFixed+rep.CorruptionsFixed > 0 {
		what = fmt.Sprintf("The following inconsistencies were found and repaired:\n\n    %d leaked clusters\n    %d corruptions\n\n",
			rep.LeaksFixed, rep.CorruptionsFixed)
	}
	return what + "Double checking the fixed image now...\n"
}

func messages(rep *qcow2.CheckReport) string {
	var s strings.Builder
	for _, m := range rep.Messages {
		fmt.Fprintln(&s, m)
	}
	if rep.Omitted > 0 {
		fmt.Fprintf(&s, "… and %d more\n", rep.Omitted)
	}
	return s.String()
}

// checkText is a report for people.
func checkText(rep *qcow2.CheckReport) string {
	result := "No errors were found on the image."
	switch {
	case rep.Corruptions > 0:
		result = fmt.Sprintf("Errors were found on the image: corruptions %d, leaked clusters %d. -r all mends what can be without losing data.", rep.Corruptions, rep.Leaks)
	case rep.Leaks > 0:
		harm := "harm nothing; -r leaks frees them"
		if rep.Unplaced > 0 && !rep.Dirty {
			harm = fmt.Sprintf("may be the data of the %d clusters below write pointers that have no place in the file", rep.Unplaced)
		}
		result = fmt.Sprintf("Leaked clusters were found on the image: %d. They waste space and %s.", rep.Leaks, harm)
	}
	return fmt.Sprintf("%s%s\n%d/%d clusters allocated, image end offset %d\n",
		messages(rep), result, rep.AllocatedClusters, rep.TotalClusters, rep.ImageEnd)
}
