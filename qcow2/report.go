package qcow2

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Info is what can be said about an image that nobody has open. Sizes and
// offsets are bytes.
type Info struct {
	Format       string `json:"format"`
	VirtualSize  uint64 `json:"virtual-size"`
	FileSize     int64  `json:"file-size"`
	DiskSize     int64  `json:"actual-size"` // 0 where it is not known
	ClusterSize  int64  `json:"cluster-size"`
	Allocated    *int64 `json:"allocated-size,omitempty"`         // device clusters that have one in the file; nil if something is not built
	Partial      bool   `json:"allocated-size-partial,omitempty"` // there are more mappings than were counted
	Damaged      int64  `json:"damaged-entries,omitempty"`
	RefcountBits int    `json:"refcount-bits"`
	Lazy         bool   `json:"lazy-refcounts"`
	Dirty        bool   `json:"dirty-flag"`
	// NotBuilt names what keeps this program from checking and attaching it.
	NotBuilt []string `json:"not-built,omitempty"`

	Zoned InfoZoned `json:"zoned"`
}

// InfoZoned is the zoned part of Info.
type InfoZoned struct {
	Model        string `json:"model"`
	Layout       Layout `json:"layout"`
	ByteOrder    string `json:"byte-order"`                      // of zonedmeta
	FlagBit      uint   `json:"conventional-flag-bit,omitempty"` // in zonedmeta; not there without conventional zones
	ZoneSize     uint64 `json:"zone-size"`
	ZoneCapacity uint64 `json:"zone-capacity"`
	Zones        uint32 `json:"zones"`
	LastZoneSize uint64 `json:"last-zone-size"`
	Conventional uint32 `json:"conventional-zones"`
	MaxOpen      uint32 `json:"max-open-zones"`   // 0: no limit
	MaxActive    uint32 `json:"max-active-zones"` // 0: no limit
	MaxAppend    uint32 `json:"max-append-bytes"` // 0: no limit of its own
	MetaOffset   int64  `json:"zonedmeta-offset"`
	MetaSize     uint64 `json:"zonedmeta-size"`

	Empty  uint32 `json:"empty-zones"`
	Partly uint32 `json:"partly-written-zones"`
	Full   uint32 `json:"full-zones"`
}

// ReadInfo describes an image. It reads the header, zonedmeta and, unless it
// needs what is not built, all mapping tables, and writes nothing.
func ReadInfo(f File) (*Info, error) {
	h, wps, err := ReadPointers(f)
	if err != nil {
		return nil, err
	}
	z := &h.Zoned
	in := &Info{
		Format: "qcow2", VirtualSize: h.Size, ClusterSize: h.ClusterSize(), RefcountBits: 1 << h.RefcountOrder,
		Lazy: h.Compatible&compatLazyRefcounts != 0, Dirty: h.Dirty(), NotBuilt: h.NotBuilt,
		Zoned: InfoZoned{
			Model: "host-managed", Layout: z.Layout, ByteOrder: z.Form.ByteOrder(), ZoneSize: z.ZoneSize, ZoneCapacity: z.ZoneCapacity,
			Zones: z.NrZones, LastZoneSize: h.ZoneLength(z.NrZones - 1), Conventional: z.Conventional,
			MaxOpen: z.MaxOpen, MaxActive: z.MaxActive, MaxAppend: z.MaxAppend,
			MetaOffset: z.MetaOffset, MetaSize: z.MetaSize,
		},
	}
	if z.Conventional != 0 {
		in.Zoned.FlagBit = z.Form.FlagBit()
	}
	for i := z.Conventional; i < z.NrZones; i++ {
		switch start := h.ZoneStart(i); {
		case wps[i] == start:
			in.Zoned.Empty++
		case wps[i] >= start+h.ZoneCapacity(i):
			in.Zoned.Full++
		default:
			in.Zoned.Partly++
		}
	}
	if in.FileSize, err = f.Size(); err != nil {
		return nil, err
	}
	if in.DiskSize, err = diskSize(f); err != nil {
		return nil, err
	}
	if h.Built() != nil {
		return in, nil
	}
	in.Allocated = new(int64)
	seen := make(tableSet)
	errEnough := errors.New("enough")
	err = walk(f, h, false, func(r *ref) error {
		switch {
		case r.bad != "":
			in.Damaged++
		case r.kind == RefL2 && seen.twice(r.off>>h.ClusterBits):
			in.Damaged++
			return errSkip
		case r.kind == RefL2 && int64(len(seen))<<h.ClusterBits > maxInfoTables:
			in.Partial = true
			return errEnough
		case r.kind == RefData, r.kind == RefCompressed:
			*in.Allocated += h.ClusterSize()
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	return in, nil
}

// tableSet knows which L2 tables a walk has seen, so that a damaged image
// cannot make it read one table over and over.
type tableSet map[int64]struct{}

func (s tableSet) twice(cluster int64) bool {
	_, was := s[cluster]
	s[cluster] = struct{}{}
	return was
}

// diskSize is how much the file takes on its disk.
func diskSize(f File) (int64, error) {
	o, ok := f.(*OSFile)
	if !ok {
		return 0, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(o.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", o.Name(), err)
	}
	return st.Blocks * 512, nil
}

// String is the report as text, a line per fact.
func (in *Info) String() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-20s %s\n", name+":", fmt.Sprintf(format, args...))
	}
	limit := func(n uint32) string {
		if n == 0 {
			return "no limit"
		}
		return fmt.Sprint(n)
	}
	z := &in.Zoned
	line("format", "%s, zoned (%s, layout %s)", in.Format, z.Model, z.Layout)
	line("virtual size", "%s", sizeText(in.VirtualSize))
	line("file size", "%s", sizeText(uint64(in.FileSize)))
	line("disk size", "%s", sizeText(uint64(in.DiskSize)))
	switch {
	case in.Allocated == nil:
	case in.Partial:
		line("allocated", "at least %s: not all tables were read", sizeText(uint64(*in.Allocated)))
	default:
		line("allocated", "%s", sizeText(uint64(*in.Allocated)))
	}
	line("cluster size", "%s", sizeText(uint64(in.ClusterSize)))
	line("refcount bits", "%d", in.RefcountBits)
	line("lazy refcounts", "%v", in.Lazy)
	line("dirty", "%v", in.Dirty)
	if in.Damaged > 0 {
		line("damaged entries", "%d: run check", in.Damaged)
	}
	line("zones", "%d: %d conventional, %d empty, %d partly written, %d full", z.Zones, z.Conventional, z.Empty, z.Partly, z.Full)
	line("zone size", "%s", sizeText(z.ZoneSize))
	if z.LastZoneSize != z.ZoneSize {
		line("last zone size", "%s", sizeText(z.LastZoneSize))
	}
	line("zone capacity", "%s", sizeText(z.ZoneCapacity))
	line("max open zones", "%s", limit(z.MaxOpen))
	line("max active zones", "%s", limit(z.MaxActive))
	if z.MaxAppend == 0 {
		line("max append", "no limit of its own")
	} else {
		line("max append", "%s", sizeText(uint64(z.MaxAppend)))
	}
	entries := z.ByteOrder
	if z.FlagBit != 0 {
		entries += fmt.Sprintf(", conventional flag bit %d", z.FlagBit)
	}
	line("zonedmeta", "%d bytes at %#x, %s", z.MetaSize, z.MetaOffset, entries)
	for _, what := range in.NotBuilt {
		line("not built", "%s: zones can be shown, but neither check nor attach", what)
	}
	return b.String()
}

// sizeText is a size as a person says it, with the bytes behind it.
func sizeText(n uint64) string {
	const units = "KMGTPE"
	unit, v := "", n
	for i := 0; i < len(units) && v >= 1024 && v%1024 == 0; i++ {
		v, unit = v/1024, units[i:i+1]
	}
	if unit != "" {
		return fmt.Sprintf("%d%s (%d bytes)", v, unit, n)
	}
	if n < 1024 {
		return fmt.Sprintf("%d bytes", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f%s (%d bytes)", f, units[i:i+1], n)
}
