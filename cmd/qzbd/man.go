package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

func manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages",
		Hidden: true, // for make install
		Args:   needs("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return writeMan(cmd.Root(), args[0])
		},
	}
}

// writeMan writes a page per command, and the one of configurations.
func writeMan(root *cobra.Command, dir string) error {
	for _, section := range []string{"man1", "man5"} {
		if err := os.MkdirAll(filepath.Join(dir, section), 0o755); err != nil {
			return err
		}
	}
	root.DisableAutoGenTag = true // the same sources make the same pages
	header := &doc.GenManHeader{Section: "1", Source: "qzbd " + version, Manual: "qzbd"}
	if err := doc.GenManTree(root, header, filepath.Join(dir, "man1")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "man5/qzbd.conf.5"), md2man.Render([]byte(confPage())), 0o644)
}

// confPage is qzbd.conf(5) in Markdown.
func confPage() string {
	var b strings.Builder
	fmt.Fprintf(&b, `%% "QZBD.CONF" "5" "" "qzbd %s" "qzbd"
# NAME
qzbd.conf - configuration of a zoned block device of qzbd

# SYNOPSIS
/etc/qzbd/NAME.conf

# DESCRIPTION
The service **qzbd@NAME** serves the image that /etc/qzbd/NAME.conf names as the block device /dev/qzbd/NAME. NAME takes %s.

A configuration has lines **key = value**, and comments, which are lines that begin with **#**. Each key is set at most once, and all but **image** can be left out. A key that says yes or no takes these words; true, false, on, off, 1 and 0 mean the same.

**qzbd config-check** /etc/qzbd/NAME.conf says of every line what is wrong with it. Changes take effect when the device is attached the next time: not by a reload, nor when another server goes on after the death of one.

# KEYS
**image** = *path*
: The image, from the root directory on.

`, version, nameRule)
	f := pflag.NewFlagSet("attach", pflag.ContinueOnError)
	new(attachOptions).flags(f)
	f.VisitAll(func(flag *pflag.Flag) {
		value := map[string]string{"bool": "yes|no", "stringSlice": "list"}[flag.Value.Type()]
		if value == "" {
			value = flag.Value.Type()
		}
		usage := []rune(flag.Usage)
		fmt.Fprintf(&b, "**%s** = *%s*\n: %s%s.", flag.Name, value, strings.ToUpper(string(usage[0])), string(usage[1:]))
		if !slices.Contains([]string{"", "[]", "false"}, flag.DefValue) {
			fmt.Fprintf(&b, " Default: %s.", flag.DefValue)
		}
		b.WriteString("\n\n")
	})
	b.WriteString(`# EXAMPLE
~~~
# Two queues, data past the page cache of the host.
image = /srv/zoned.qcow2
queues = 2
direct = yes
~~~

In /etc/fstab (never with x-systemd.requires, which would unmount the file system when a dead server is started again):

~~~
/dev/qzbd/NAME /srv/data f2fs nofail 0 0
~~~

# SEE ALSO
**qzbd**(1), **qzbd-attach**(1), **qzbd-config-check**(1), **systemd.mount**(5)
`)
	return b.String()
}
