package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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
		Short:  "Tell systemd where the images of services are",
		Hidden: true, // for systemd
		Args:   cobra.MinimumNArgs(1),
		RunE:   func(_ *cobra.Command, args []string) error { return generate(confDir, args[0]) },
	}
}

// generate puts each service behind the mount that its image is on, at the start
// as well as at the end of the machine: a drop-in in dir per configuration. One
// that is wrong is left to the service to complain about.
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
		unit := filepath.Join(dir, "qzbd@"+o.name+".service.d")
		if err := os.MkdirAll(unit, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		text := fmt.Sprintf("# From %s.\n[Unit]\nRequiresMountsFor=\"%s\"\n", path, strings.ReplaceAll(o.image, "%", "%%"))
		errs = append(errs, os.WriteFile(filepath.Join(unit, "50-image.conf"), []byte(text), 0o644))
	}
	return errors.Join(errs...)
}
