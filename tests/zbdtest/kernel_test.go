//go:build kernel

package zbdtest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// runOnMade checks the rules first on the devices that the kernel has for such
// purposes, which shows that the rules are right, and then on ours.
func runOnMade(t *testing.T) {
	for _, c := range nullBlks {
		t.Run("null_blk "+c.name, func(t *testing.T) { runOn(t, makeNullBlk(t, c)) })
	}
	for _, c := range scsiDebugs {
		t.Run("scsi_debug "+c.name, func(t *testing.T) { runOn(t, makeScsiDebug(t, c)) })
	}
	for _, c := range images {
		for _, queues := range c.queues {
			t.Run(fmt.Sprintf("qzbd %s, %d queues", c.name, queues), func(t *testing.T) {
				runOn(t, attach(t, c, queues))
			})
		}
	}
}

func runOn(t *testing.T, node string) {
	d, err := OpenBlockDevice(node)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close) // before the device goes
	Run(t, d)
}

// command runs a program that must succeed.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// nullBlk is a shape of the null block device; sizes are MiB. With no zone size
// it is not zoned.
type nullBlk struct {
	name                       string
	size, zone, capacity       int
	conventional, open, active int
	block, queues              int
}

var nullBlks = []nullBlk{
	{name: "4M zones without limits", size: 800, zone: 4, capacity: 4, block: 4096, queues: 1},
	{name: "4M zones, everything at once", size: 256, zone: 4, capacity: 3, conventional: 26, open: 8, active: 10, block: 512, queues: 2},
	{name: "64M zones", size: 1024, zone: 64, capacity: 48, open: 12, active: 12, block: 512, queues: 4},
	{name: "only an open limit", size: 64, zone: 4, capacity: 3, conventional: 1, open: 3, block: 4096, queues: 2},
	{name: "limits of one", size: 64, zone: 4, capacity: 4, open: 1, active: 1, block: 512, queues: 1},
}

func makeNullBlk(t *testing.T, c nullBlk) (node string) {
	t.Helper()
	if _, err := os.Stat("/sys/kernel/config/nullb"); err != nil {
		command(t, "modprobe", "null_blk", "nr_devices=0")
	}
	const name = "nullb_zbdtest"
	dir := filepath.Join("/sys/kernel/config/nullb", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	set := func(attribute string, value int) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, attribute), []byte(fmt.Sprint(value)), 0); err != nil {
			t.Fatal(err)
		}
	}
	attributes := map[string]int{"memory_backed": 1, "size": c.size, "blocksize": c.block, "submit_queues": c.queues}
	if c.zone != 0 {
		maps.Copy(attributes, map[string]int{
			"zoned": 1, "zone_size": c.zone, "zone_capacity": c.capacity, "zone_nr_conv": c.conventional,
			"zone_max_open": c.open, "zone_max_active": c.active,
		})
	}
	for attribute, value := range attributes {
		set(attribute, value)
	}
	set("power", 1)
	for _, node := range []string{"/dev/" + name, "/dev/nullb0"} { // depends on the kernel
		if _, err := os.Stat(node); err == nil {
			return node
		}
	}
	t.Fatal("null_blk has made no device")
	return ""
}

// scsiDebug is a shape of the imitated SCSI disk; sizes are MiB.
type scsiDebug struct {
	name                 string
	size, zone, capacity int
	conventional, open   int
	block                int
}

var scsiDebugs = []scsiDebug{
	{name: "without limits", size: 64, zone: 4, capacity: 4, block: 512},
	{name: "with limits", size: 128, zone: 4, capacity: 3, conventional: 2, open: 4, block: 4096},
}

func makeScsiDebug(t *testing.T, c scsiDebug) (node string) {
	t.Helper()
	command(t, "modprobe", "sd_mod")
	command(t, "modprobe", "scsi_debug", "zbc=managed", "delay=0", fmt.Sprint("dev_size_mb=", c.size),
		fmt.Sprint("zone_size_mb=", c.zone), fmt.Sprint("zone_cap_mb=", c.capacity), fmt.Sprint("zone_nr_conv=", c.conventional),
		fmt.Sprint("zone_max_open=", c.open), fmt.Sprint("sector_size=", c.block))
	t.Cleanup(func() { command(t, "modprobe", "-r", "scsi_debug") })
	// The disk comes when the SCSI layer has looked at it.
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		found, err := filepath.Glob("/sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/*")
		if err == nil && len(found) == 1 {
			node = "/dev/" + filepath.Base(found[0])
			if _, err := os.Stat(node); err == nil {
				return node
			}
		}
		if time.Now().After(end) {
			t.Fatalf("scsi_debug has made no disk: %v, %v", found, err)
		}
	}
}

// shape is an image of ours.
type shape struct {
	name, options string
	block         int
	queues        []int
}

var images = []shape{
	{"4M zones without limits", "size=800M,zone.size=4M", 512, []int{1, 4}},
	{"4M zones, everything at once", "size=256M,zone.size=4M,zone.capacity=3M,zone.conventional_zones=26,zone.max_open_zones=8,zone.max_active_zones=10", 512, []int{1, 2, 4}},
	{"64M zones", "size=1G,zone.size=64M,zone.capacity=48M,zone.max_open_zones=12,zone.max_active_zones=12", 512, []int{2}},
	{"blocks of 4096", "size=128M,zone.size=8M,zone.capacity=6M,zone.conventional_zones=2,zone.max_open_zones=3,zone.max_active_zones=5", 4096, []int{2}},
	{"limits of one", "size=64M,zone.size=4M,zone.max_open_zones=1,zone.max_active_zones=1", 512, []int{2}},
	{"an open limit of one", "size=64M,zone.size=4M,zone.capacity=3M,zone.conventional_zones=1,zone.max_open_zones=1,zone.max_active_zones=4", 4096, []int{2}},
	{"limits of as many as there are", "size=64M,zone.size=4M,zone.conventional_zones=4,zone.max_open_zones=12,zone.max_active_zones=12", 512, []int{2}},
	{"zones of 2G", "size=16G,zone.size=2G,zone.capacity=1536M,zone.max_open_zones=3,zone.max_active_zones=4", 512, []int{2}},
	{"zones of 4G", "size=32G,zone.size=4G,zone.conventional_zones=1,zone.max_open_zones=3,zone.max_active_zones=4", 4096, []int{2}},
}

// attach serves a new image until the end of the test.
func attach(t *testing.T, c shape, queues int) (node string) {
	t.Helper()
	qzbd := os.Getenv("QZBD_BIN")
	if qzbd == "" {
		qzbd = filepath.Join("..", "..", "bin", "qzbd")
	}
	if _, err := os.Stat("/dev/ublk-control"); errors.Is(err, os.ErrNotExist) {
		command(t, "modprobe", "ublk_drv")
	}
	image := filepath.Join(t.TempDir(), "image.qcow2")
	command(t, qzbd, "create", "-o", c.options, image)
	node = command(t, qzbd, "attach", "--queues", fmt.Sprint(queues), "--block-size", fmt.Sprint(c.block), image)
	t.Cleanup(func() {
		command(t, qzbd, "detach", node)
		command(t, qzbd, "check", image)
	})
	return node
}
