// Package qcow2 is the image engine: qcow2 version 3 with the zoned extension,
// one file that holds a zoned device. FORMAT.md has every field.
//
// A fresh image, in clusters:
//
//	offset 0        +-----------------------------------------------------+
//	                | header                                              |
//	                |   first sector: feature bits, places of the tables, |
//	                |   zoned extension (changes together with its bit)   |
//	                |   feature names, unknown extensions                 |
//	                +-----------------------------------------------------+
//	RefTableOffset  | refcount table --> refcount blocks: one count for   |
//	                | refcount block     every cluster of the file        |
//	                +-----------------------------------------------------+
//	MetaOffset      | zonedmeta: one word per zone, its write pointer     |
//	                +-----------------------------------------------------+
//	L1Offset        | L1 table --+                                        |
//	                +------------|----------------------------------------+
//	                             v
//	                | L2 table --+   (one maps cluster size / 8 clusters) |
//	                +------------|----------------------------------------+
//	                             v
//	                | data clusters, a zone's beside each other           |
//	                +-----------------------------------------------------+
//
// Two tables say what a byte of the device is. L2 says where its cluster lies
// in the file; none means zeros. In a sequential zone the write pointer masks
// L2: what is at or above it reads as zeros whatever is mapped there. So
// mappings may run ahead of data, and the order in which things become durable
// is about pointers (flush.go, reset.go).
//
// Refcounts matter only while the dirty bit is clear. A writable open sets it
// before its first other write, an orderly close clears it last, and what is
// found dirty is counted anew from L1 and L2.
//
// Where to read on:
//
//	file.go                     the file: page cache over a disk, and Sync
//	direct.go                   data past the page cache
//	format.go limits.go         the format's constants; our own limits
//	header.go ext.go validate.go  reading and writing headers; every rule
//	layout.go                   the zoned extension's layouts, the forms of a word
//	zonedmeta.go                the words of zonedmeta, and in which form they are
//	walk.go                     everything that refers to a range of the file
//	create.go options.go        fresh images
//	preallocate.go tempfile.go  mapped before anything is written; a file that
//	                            has no name before it is complete
//	check.go refmap.go          references against refcounts, read only
//	repair.go                   what a check found, mended where it loses no data
//	report.go                   what an image is, in words and JSON
//	stats.go                    what an open image has done, and its space
//	lock.go                     one writer per image, also among QEMU's tools
//
// and for an image in use:
//
//	image.go attach.go close.go opening, the first change, the orderly end
//	map.go cache.go             where bytes are, from memory; L2 tables
//	chunk.go alloc.go runs.go   mapping ahead of data; free space
//	refcount.go                 refcounts, and the table's growth
//	reserve.go                  space for what is written in place
//	pointers.go flush.go        write pointers; the order of barriers
//	reset.go                    reset, finish, zeros
//	rebuild.go clusterset.go    what an open refuses; what was not closed or
//	                            is repaired, counted anew
//
// Nothing here knows zone conditions, requests or devices: zones are ranges
// with a write pointer.
package qcow2
