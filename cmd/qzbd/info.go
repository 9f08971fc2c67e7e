package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

func infoCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "info IMAGE",
		Short: "Describe an image",
		Long: `Info describes an image: header, zones, limits and the space it takes. Of an
attached image it counts the zones as the device reports them.`,
		Args:              needs("IMAGE"),
		ValidArgsFunction: completeImage,
		RunE: func(_ *cobra.Command, args []string) error {
			info, err := readInfo(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(info)
			}
			fmt.Print(info)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func readInfo(image string) (*qcow2.Info, error) {
	f, err := openFile(image, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := qcow2.ReadInfo(qcow2.NewOSFile(f))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", image, err)
	}
	if s := liveState(image); s != nil {
		zones, err := ublk.ReportZones(s.Device)
		if err != nil {
			return nil, err
		}
		countZones(&info.Zoned, zones)
	}
	return info, nil
}

// countZones replaces what the file says about conditions by a live report.
func countZones(in *qcow2.InfoZoned, zones []zns.Zone) {
	in.Empty, in.Partly, in.Full = 0, 0, 0
	for _, z := range zones {
		switch {
		case z.Cond == zns.CondEmpty:
			in.Empty++
		case z.Cond == zns.CondFull:
			in.Full++
		case z.Cond.Active():
			in.Partly++
		}
	}
}
