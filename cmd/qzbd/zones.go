package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

func zonesCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "zones IMAGE|/dev/ublkbN",
		Short: "Report the zones of an image or a device",
		Long: `Zones prints the lines of blkzone report, in sectors of 512 bytes: of a device
live, of an image from the file. An attached image is reported live. The write
pointer of a full zone is shown as its capacity.`,
		Args:              needs("IMAGE or a device"),
		ValidArgsFunction: completeImageOrDevice,
		RunE: func(_ *cobra.Command, args []string) error {
			zones, err := readZones(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(zonesJSON(zones))
			}
			return printZones(os.Stdout, zones)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// readZones reports a device from the kernel and an image from its file.
func readZones(name string) ([]zns.Zone, error) {
	st, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(name, "/dev/"):
		return nil, fmt.Errorf("%s is not there: qzbd list shows what is attached", name)
	case err != nil:
		return nil, explainOpen(err)
	}
	if st.Mode()&os.ModeDevice != 0 {
		return ublk.ReportZones(name)
	}
	if s := liveState(name); s != nil {
		return ublk.ReportZones(s.Device)
	}
	f, err := openFile(name, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	qcow2.Forget(qcow2.NewOSFile(f))
	h, wps, err := qcow2.ReadPointers(qcow2.NewOSFile(f))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return offlineReport(h, wps), nil
}

// liveState returns the state of the server that has the image attached, and
// says that its device is what answers.
func liveState(image string) *state {
	list, err := findStates(image)
	if err != nil || len(list) == 0 || !list[0].alive() {
		return nil
	}
	s := list[0] // others are read-only as well, and say the same
	fmt.Fprintf(os.Stderr, "%s is attached: reporting %s\n", image, s.Device)
	if s.Failure != "" {
		printWarning(s.Device + " has failed: its write pointers are not durable above those of the last good flush, and reads above these end in EIO")
	}
	return s
}

// offlineReport is the report that attaching the image would give.
func offlineReport(h *qcow2.Header, wps []uint64) []zns.Zone {
	z := h.Zoned
	zones := make([]zns.Zone, len(wps))
	for i, wp := range wps {
		start := uint64(i) * z.ZoneSize
		length := min(z.ZoneSize, h.Size-start) // the last zone may be short
		zone := zns.Zone{
			Start: start, Len: length, Capacity: min(z.ZoneCapacity, length),
			WP: wp, Type: zns.TypeSeqWriteReq, Cond: zns.CondClosed,
		}
		switch {
		case uint32(i) < z.Conventional:
			zone.Type, zone.Cond, zone.Capacity = zns.TypeConventional, zns.CondNotWP, length
		case wp == start:
			zone.Cond = zns.CondEmpty
		case wp >= start+zone.Capacity:
			zone.Cond = zns.CondFull
		}
		zones[i] = zone
	}
	return zones
}

// condLetters are blkzone's abbreviations.
var condLetters = map[zns.Cond]string{
	zns.CondNotWP: "nw", zns.CondEmpty: "em", zns.CondImpOpen: "oi", zns.CondExpOpen: "oe",
	zns.CondClosed: "cl", zns.CondReadOnly: "ro", zns.CondFull: "fu", zns.CondOffline: "of",
}

// printZones writes lines of the form that blkzone report has. The write
// pointer is relative to the start of its zone, as there.
func printZones(w io.Writer, zones []zns.Zone) error {
	bw := bufio.NewWriter(w)
	for _, z := range zones {
		kind := "SEQ_WRITE_REQUIRED"
		if z.Type == zns.TypeConventional {
			kind = "CONVENTIONAL"
		}
		fmt.Fprintf(bw, "  start: 0x%09x, len 0x%06x, cap 0x%06x, wptr 0x%06x reset:0 non-seq:0, zcond:%2d(%s) [type: %d(%s)]\n",
			z.Start/zns.SectorSize, z.Len/zns.SectorSize, z.Capacity/zns.SectorSize, (z.WP-z.Start)/zns.SectorSize,
			z.Cond, condLetters[z.Cond], z.Type, kind)
	}
	return bw.Flush()
}

// zoneJSON is one element of zones --json. All numbers are bytes.
type zoneJSON struct {
	Start     uint64 `json:"start"`
	Length    uint64 `json:"length"`
	Capacity  uint64 `json:"capacity"`
	WP        uint64 `json:"write-pointer"`
	Type      string `json:"type"`
	Condition string `json:"condition"`
}

func zonesJSON(zones []zns.Zone) []zoneJSON {
	out := make([]zoneJSON, len(zones))
	for i, z := range zones {
		kind := "sequential"
		if z.Type == zns.TypeConventional {
			kind = "conventional"
		}
		out[i] = zoneJSON{z.Start, z.Len, z.Capacity, z.WP, kind, z.Cond.String()}
	}
	return out
}
