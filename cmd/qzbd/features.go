package main

import (
	"context"
	"fmt"
	"math/bits"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/qzbd/qzbd/ublk"
)

func featuresCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "features",
		Short: "Show what this kernel's ublk driver offers",
		Long: `Features lists the features of the kernel's ublk driver, which of them qzbd
needs, and the Linux version that brought each. Of those that are not here and
missed it says what that means for devices.

In one moment of some milliseconds the death of a server hangs its device until
the next boot, whatever the kernel offers: while attach starts the device and
the kernel asks for its zones.`,
		Args: needs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			have, err := kernelFeatures(cmd.Context())
			if err != nil {
				return err
			}
			return printFeatures(have, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// kernelFeatures asks the running kernel what its driver can do.
func kernelFeatures(ctx context.Context) (ublk.Features, error) {
	c, err := ublk.Open()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return c.Features(ctx)
}

// featureJSON is one element of features --json.
type featureJSON struct {
	Name     string `json:"name"`
	Bit      int    `json:"bit"`
	Present  bool   `json:"present"`
	Required bool   `json:"required"`
	Since    string `json:"since"` // kernel version
	Without  string `json:"without,omitempty"`
}

func printFeatures(have ublk.Features, asJSON bool) error {
	var out []featureJSON
	for _, f := range ublk.FeatureTable {
		bit := bits.TrailingZeros64(uint64(f.Bit))
		row := featureJSON{Name: f.Name, Bit: bit, Present: have.Has(f.Bit), Required: f.Required, Since: f.Since}
		if !row.Present {
			row.Without = f.Without
		}
		out = append(out, row)
	}
	if asJSON {
		return printJSON(out)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "FEATURE\tBIT\tHERE\tNEEDED\tSINCE")
	word := map[bool]string{true: "yes", false: "no"}
	for _, f := range out {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", f.Name, f.Bit, word[f.Present], word[f.Required], f.Since)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, f := range out {
		if f.Without != "" {
			fmt.Printf("\nWithout %s (Linux %s) %s.\n", f.Name, f.Since, f.Without)
		}
	}
	return nil
}
