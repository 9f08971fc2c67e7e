package zbdtest

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var (
	destroyFlag     = flag.Bool("destroy-data", false, "test the device that QZBD_ZBD_DEVICE names; everything on it is lost")
	differencesFlag = flag.Bool("differences", false, "print what devices do in different ways, and why")
	kindFlag        = flag.String("kind", "", "whose device it is: "+kindList())
)

func kindList() string {
	var names []string
	for _, k := range kinds {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

// device is the block device under test, or nil.
var device *BlockDevice

func TestMain(m *testing.M) {
	flag.Parse()
	if *differencesFlag {
		printDifferences(os.Stdout)
		return
	}
	node := os.Getenv("QZBD_ZBD_DEVICE")
	if node == "" && *destroyFlag {
		fmt.Fprintln(os.Stderr, "zbdtest: --destroy-data: no device is named: QZBD_ZBD_DEVICE=/dev/sdX bin/zbdtest --destroy-data")
		os.Exit(1)
	}
	if node == "" {
		fmt.Fprintln(os.Stderr, "zbdtest: QZBD_ZBD_DEVICE names no device: testing the suite itself, on devices that it makes")
	} else {
		if err := claim(node); err != nil {
			fmt.Fprintln(os.Stderr, "zbdtest:", err)
			os.Exit(1)
		}
		// The other tests are about the suite itself.
		if f := flag.Lookup("test.run"); f.Value.String() == "" {
			f.Value.Set("^TestTheDeviceKeepsToTheRules$")
		}
	}
	os.Exit(m.Run())
}

// claim opens the device, if the user has said that it may be destroyed.
func claim(node string) error {
	d, err := OpenBlockDevice(node)
	if err != nil {
		return err
	}
	if *kindFlag != "" {
		if !slices.Contains(kinds, Kind(*kindFlag)) {
			return fmt.Errorf("-kind %s: no such kind; there are %s", *kindFlag, kindList())
		}
		d.kind = Kind(*kindFlag)
	}
	if !*destroyFlag {
		s := d.Shape()
		fmt.Printf("%s (%s) has %d zones of %d bytes, %d of them conventional, %d bytes in all.\n", node, d.kind, s.Zones, s.ZoneSize, s.Conventional, s.Size())
		fmt.Printf("%d rules would be checked on it, and everything on it would be lost:\n", len(rules()))
		for _, r := range rules() {
			fmt.Println("  " + r.name)
		}
		return fmt.Errorf("nothing was done to %s: say --destroy-data to test it and lose everything on it", node)
	}
	device = d
	return nil
}

// Without a device of the user's, the rules are checked on devices that can be
// made here.
func TestTheDeviceKeepsToTheRules(t *testing.T) {
	if device != nil {
		Run(t, device)
		return
	}
	runOnMade(t)
}
