package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/spf13/cobra"
)

// confDir has the configurations of the services.
const confDir = "/etc/qzbd"

// generatorName is what systemd calls this program by, as a generator
// (systemd.generator(7)).
const generatorName = "qzbd-generator"

func generatorCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "generator DIR EARLY LATE",
		Short:  "Tell systemd the order of services and mounts",
		Hidden: true, // for systemd
		Args:   cobra.MinimumNArgs(1),
		RunE:   func(_ *cobra.Command, args []string) error { return generate(confDir, args[0]) },
	}
}

// generate puts each service behind the mount that its image is on and before the
// mounts of its device, at the start as well as at the end of the machine: a
// drop-in in dir per configuration. One that is wrong is left to the service to
// complain about.
func generate(confs, dir string) error {
	paths, err := filepath.Glob(filepath.Join(confs, "*"+confSuffix))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range paths {
		var o attachOptions
		// A unit file has no way to write such a path.
		if o.readConf(path) != nil || strings.ContainsAny(o.image, `"\`) {
			continue
		}
		dropins := filepath.Join(dir, "qzbd@"+o.name+".service.d")
		if err := os.MkdirAll(dropins, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		// systemd puts whatever mounts a device behind this (systemd.special(7)).
		target := "blockdev@" + unit.UnitNamePathEscape(linkPath(o.name)) + ".target"
		text := fmt.Sprintf("# From %s.\n[Unit]\nRequiresMountsFor=\"%s\"\nWants=%s\nBefore=%s\n",
			path, strings.ReplaceAll(o.image, "%", "%%"), target, target)
		errs = append(errs, os.WriteFile(filepath.Join(dropins, "50-order.conf"), []byte(text), 0o644))
	}
	return errors.Join(errs...)
}
