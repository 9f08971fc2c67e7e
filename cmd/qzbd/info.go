package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/qzbd/qzbd/qcow2"
	"github.com/qzbd/qzbd/ublk"
	"github.com/qzbd/qzbd/zns"
)

func infoCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "info IMAGE|/dev/ublkbN",
		Short: "Describe an image",
		Long: `Info describes an image: header, zones, limits and the space it takes. Of an
attached image it counts the zones as the device reports them, and says whether
the image takes writes.`,
		Args:              needs("IMAGE or a device"),
		ValidArgsFunction: completeImageOrDevice,
		RunE: func(_ *cobra.Command, args []string) error {
			info, err := readInfo(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(info)
			}
			_, err = fmt.Print(info)
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// imageInfo is what info --json prints.
type imageInfo struct {
	*qcow2.Info
	Device  string `json:"device,omitempty"`  // that it is or was attached as
	State   string `json:"state,omitempty"`   // of the device, as list has it
	Failure string `json:"failure,omitempty"` // what failed
}

func (in *imageInfo) String() string {
	s := in.Info.String()
	if in.Device == "" {
		return s
	}
	state := in.State
	if in.Failure != "" {
		state += ": " + in.Failure
	}
	return s + fmt.Sprintf("%-20s %s, %s\n", "attached:", in.Device, state)
}

// imageOf returns the image of a device of ours, or the name itself.
func imageOf(name string) (string, error) {
	st, err := os.Stat(name)
	if strings.HasPrefix(name, "/dev/") && (err != nil || st.Mode()&os.ModeDevice != 0) {
		list, err := findStates(name)
		if err != nil {
			return "", err
		}
		if len(list) == 0 {
			return "", explainUnrecorded(name)
		}
		return list[0].Image, nil
	}
	return name, nil
}

// sameAs checks that f is the image that the device, if it is one, was made of:
// the file may have been moved, and another one may have its name.
func sameAs(device string, f *os.File) error {
	list, err := findStates(device)
	if err != nil || len(list) == 0 || list[0].Device != device {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if sys := st.Sys().(*syscall.Stat_t); sys.Dev != list[0].Dev || sys.Ino != list[0].Ino {
		return fmt.Errorf("%s is not the file that %s was made of: that has been moved or removed (inode %d)", f.Name(), device, list[0].Ino)
	}
	return nil
}

func readInfo(name string) (*imageInfo, error) {
	image, err := imageOf(name)
	if err != nil {
		return nil, err
	}
	f, err := openFile(image, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := sameAs(name, f); err != nil {
		return nil, err
	}
	live := liveState(image)
	if live == nil {
		qcow2.Forget(qcow2.NewOSFile(f))
	}
	info, err := qcow2.ReadInfo(qcow2.NewOSFile(f))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", image, err)
	}
	in := &imageInfo{Info: info}
	list, err := findStates(image)
	if err != nil || len(list) == 0 {
		return in, err
	}
	s := list[0]
	k := askKernel()
	in.Device, in.State, in.Failure = s.Device, s.status(&k), s.Failure
	if live != nil {
		zones, err := ublk.ReportZones(live.Device)
		if err != nil {
			return nil, err
		}
		countZones(&info.Zoned, zones)
	}
	return in, nil
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
