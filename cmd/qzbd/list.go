package main

import (
	"encoding/json"
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// listEntry is one line of list and one element of list --json.
type listEntry struct {
	*state
	// Status is "live", "failed" (serving, but the image takes no more
	// writes), "waiting" (the server is gone, the device waits for another
	// one) or "dead" (the server is gone, and the device).
	Status string `json:"state"`
}

func (s *state) status() string {
	switch {
	case s.waits():
		return "waiting"
	case !s.alive():
		return "dead"
	case s.Failure != "":
		return "failed"
	}
	return "live"
}

func listCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the devices of qzbd",
		Args:  needs(),
		RunE: func(*cobra.Command, []string) error {
			all, err := states()
			if err != nil {
				return err
			}
			entries := make([]listEntry, 0, len(all))
			for _, s := range all {
				entries = append(entries, listEntry{s, s.status()})
			}
			if asJSON {
				return printJSON(entries)
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tDEVICE\tSTATE\tPID\tQUEUES\tIMAGE")
			for _, e := range entries {
				fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%d\t%s\n", e.ID, e.Device, e.Status, e.PID, e.Queues, e.Image)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			for _, e := range entries {
				if e.Failure != "" {
					fmt.Fprintf(os.Stderr, "qzbd: %s: %s\n", e.Device, e.Failure)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "    ")
	return enc.Encode(v)
}
