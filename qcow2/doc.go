// Package qcow2 is the image engine: qcow2 version 3 with the zoned extension.
package qcow2
