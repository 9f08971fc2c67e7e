package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func listCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the devices of qzbd, and what there is beside them",
		Long: `List shows every ublk device and every record of one. Its state is

    live     served
    failed   served, but the image takes no more writes
    waiting  the server is gone: qzbd recover, or qzbd detach
    dead     the server and the device are gone, up to a rest: qzbd attach the image
             again, or qzbd detach
    orphan   a device of qzbd whose record in /run/qzbd is gone: qzbd detach
    foreign  another program's device, which qzbd leaves alone
    unknown  an orphan or foreign: only root can tell`,
		Args: needs(),
		RunE: func(*cobra.Command, []string) error {
			all, k, err := devices()
			if err != nil {
				return err
			}
			if k.err != nil {
				printWarning(k.err.Error())
			}
			if asJSON {
				return printJSON(all)
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tDEVICE\tSTATE\tPID\tQUEUES\tIMAGE")
			for _, d := range all {
				pid, image := "-", "-"
				if d.PID > 0 {
					pid = strconv.Itoa(d.PID)
				}
				if d.Image != "" {
					image = d.Image
				}
				fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%d\t%s\n", d.ID, d.Device, d.Status, pid, d.Queues, image)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			for _, d := range all {
				if d.Failure != "" {
					fmt.Fprintf(os.Stderr, "qzbd: %s: %s\n", d.Device, d.Failure)
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
