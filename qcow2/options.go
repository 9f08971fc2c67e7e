package qcow2

import (
	"errors"
	"fmt"
	"math/big"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// CreateOptions says what image to create. Sizes are bytes. Of the fields that
// cannot be 0, 0 means the default.
type CreateOptions struct {
	Size          uint64 // virtual size; there is no default
	ClusterSize   uint64 // default 64K
	RefcountBits  uint64 // default 16
	LazyRefcounts bool
	Preallocation Preallocation
	// Progress, unless nil, is called now and then while an image is
	// preallocated, with bytes.
	Progress func(done, total int64)

	ZoneSize     uint64 // default 256M
	ZoneCapacity uint64 // default ZoneSize
	Conventional uint64
	MaxOpen      uint64 // 0: no limit; set to MaxActive if that is given alone
	MaxActive    uint64 // 0: no limit
	MaxAppend    uint64 // 0: no limit of its own
}

const (
	defaultClusterSize  = 64 << 10
	defaultRefcountBits = 16
	defaultZoneSize     = 256 << 20
	defaultMaxAppend    = 64 << 10
)

// What can be attached is less than what can be created: the kernel's driver
// reports at most so many zones, and its zone size is a 32-bit count of sectors.
const (
	attachableZones    = 16384
	attachableZoneSize = 1 << 40
	attachableZoneMin  = 4096
)

// option is one option of create, under qemu-img's name.
type option struct {
	name string
	help string
	set  func(o *CreateOptions, value string) error
}

// options is the table of all options, in the order of the help text.
var options = []option{
	{"size", "virtual size; or give it as the argument", sizeOption(func(o *CreateOptions) *uint64 { return &o.Size })},
	{"zone.mode", "zone model: host-managed (the default)", oneOf("host-managed")},
	{"zone.size", "zone size, a power of two and multiple of cluster_size (default 256M)", sizeOption(func(o *CreateOptions) *uint64 { return &o.ZoneSize })},
	{"zone.capacity", "writable bytes of a zone (default: zone.size)", sizeOption(func(o *CreateOptions) *uint64 { return &o.ZoneCapacity })},
	{"zone.conventional_zones", "so many zones at the beginning have no write pointer (default 0)", numberOption(func(o *CreateOptions) *uint64 { return &o.Conventional })},
	{"zone.max_open_zones", "open zones at most (default and 0: zone.max_active_zones)", numberOption(func(o *CreateOptions) *uint64 { return &o.MaxOpen })},
	{"zone.max_active_zones", "zones neither empty nor full at most (default 0, no limit)", numberOption(func(o *CreateOptions) *uint64 { return &o.MaxActive })},
	{"zone.max_append_bytes", "largest zone append (default 64K, less in small zones; 0: no limit of its own)", sizeOption(func(o *CreateOptions) *uint64 { return &o.MaxAppend })},
	{"cluster_size", "unit of allocation, 512 to 2M (default 64K)", sizeOption(func(o *CreateOptions) *uint64 { return &o.ClusterSize })},
	{"refcount_bits", "width of a refcount, a power of two, 1 to 64 (default 16)", numberOption(func(o *CreateOptions) *uint64 { return &o.RefcountBits })},
	{"lazy_refcounts", "postpone refcount updates: on or off (default off)", func(o *CreateOptions, v string) (err error) {
		o.LazyRefcounts, err = parseSwitch(v)
		return err
	}},
	{"preallocation", "off, metadata (mapped), falloc (reserved) or full (written); default off", func(o *CreateOptions, v string) (err error) {
		o.Preallocation, err = parsePreallocation(v)
		return err
	}},
}

// CreateOptionNames lists the names of all options.
func CreateOptionNames() []string {
	var names []string
	for _, o := range options {
		names = append(names, o.name)
	}
	return names
}

// unbuilt are options of qemu-img that are refused by name, unless they have
// the value that asks for nothing.
var unbuilt = map[string]string{
	"backing_file": "", "backing_fmt": "", "data_file": "", "data_file_raw": "off", "extended_l2": "off",
	"compression_type": "zlib", "encryption": "off", "nocow": "off", "compat": "1.1",
}

func sizeOption(field func(*CreateOptions) *uint64) func(*CreateOptions, string) error {
	return func(o *CreateOptions, v string) (err error) {
		*field(o), err = ParseSize(v)
		return err
	}
}

func numberOption(field func(*CreateOptions) *uint64) func(*CreateOptions, string) error {
	return func(o *CreateOptions, v string) (err error) {
		if *field(o), err = strconv.ParseUint(v, 0, 64); err != nil {
			return errors.New("it must be a whole number")
		}
		return nil
	}
}

func oneOf(values ...string) func(*CreateOptions, string) error {
	return func(_ *CreateOptions, v string) error {
		if !slices.Contains(values, v) {
			return fmt.Errorf("only %s is built", strings.Join(values, ", "))
		}
		return nil
	}
}

func parseSwitch(v string) (bool, error) {
	switch v {
	case "on", "yes", "true", "y":
		return true, nil
	case "off", "no", "false", "n":
		return false, nil
	}
	return false, errors.New("it must be on or off")
}

// ParseSize reads a size as qemu-img does: a number, also with a fraction,
// and a suffix b, k, M, G, T, P or E of powers of 1024 in either case.
func ParseSize(s string) (uint64, error) {
	bad := errors.New("it must be a size such as 65536, 64K, 1.5G or 1T")
	if hex := strings.TrimPrefix(strings.ToLower(s), "0x"); len(hex) < len(s) {
		n, err := strconv.ParseUint(hex, 16, 64)
		if err != nil {
			return 0, bad
		}
		return n, nil
	}
	unit := uint(0)
	digits := s
	if s != "" {
		if i := strings.IndexByte("BKMGTPE", s[len(s)-1]&^0x20); i >= 0 {
			unit, digits = uint(10*i), s[:len(s)-1]
		}
	}
	whole, fraction, _ := strings.Cut(digits, ".")
	if whole == "" || len(digits) > 32 || strings.Trim(whole+fraction, "0123456789") != "" {
		return 0, bad
	}
	r, ok := new(big.Rat).SetString(digits)
	if !ok {
		return 0, bad
	}
	// To the nearest byte, as qemu-img rounds.
	r.Mul(r, new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), unit)))
	r.Add(r, big.NewRat(1, 2))
	n := new(big.Int).Quo(r.Num(), r.Denom())
	if !n.IsUint64() {
		return 0, errors.New("it must be less than 16E")
	}
	return n.Uint64(), nil
}

// CreateOptionsHelp lists the options of create, a line each.
func CreateOptionsHelp() string {
	var b strings.Builder
	b.WriteString("Supported options:\n")
	for _, o := range options {
		fmt.Fprintf(&b, "  %-24s %s\n", o.name+"=", o.help)
	}
	return b.String()
}

// ParseCreateOptions reads options as qemu-img's -o takes them: each element
// of list is name=value[,name=value...], with ",," for a comma in a value.
// sizeArg is the size as an argument, "" if there is none. The error joins one
// error for every bad value, each with name, value and rule. Warnings are
// sentences about an image that can be created, but not attached.
func ParseCreateOptions(list []string, sizeArg string) (CreateOptions, []string, error) {
	var o CreateOptions
	var errs []error
	given := make(map[string]string) // the values as they were written
	bad := make(map[string]bool)
	take := func(name, value string) {
		err := setOption(&o, name, value)
		if _, twice := given[name]; twice {
			err = fmt.Errorf("%s=%s: it is given twice, the other value is %s", name, value, given[name])
		}
		if err != nil {
			errs = append(errs, err)
			bad[name] = true
		}
		given[name] = value
	}
	for _, s := range list {
		for _, opt := range splitOptions(s) {
			name, value, found := strings.Cut(opt, "=")
			if !found {
				value = "on" // as QEMU reads a name alone
			}
			take(name, value)
		}
	}
	if sizeArg != "" {
		if v, twice := given["size"]; twice {
			errs = append(errs, fmt.Errorf("size=%s: the size is given twice, the argument is %s", v, sizeArg))
			bad["size"] = true
		} else {
			take("size", sizeArg)
		}
	}
	if _, ok := given["zone.max_append_bytes"]; !ok && !bad["zone.capacity"] && !bad["zone.size"] {
		// A default must not make small zones an error.
		d := o.withDefaults()
		o.MaxAppend = min(defaultMaxAppend, max(d.ZoneCapacity&^(sectorSize-1), 2*sectorSize)-2*sectorSize)
	}
	for _, r := range o.withDefaults().broken(given) {
		if !slices.ContainsFunc(r.needs, func(n string) bool { return bad[n] }) {
			errs = append(errs, r.err)
		}
	}
	if len(errs) > 0 {
		return CreateOptions{}, nil, errors.Join(errs...)
	}
	o = o.withDefaults()
	return o, o.warnings(), nil
}

// splitOptions cuts at single commas; a double one stands for a comma.
func splitOptions(s string) []string {
	var parts []string
	var cur strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != ',' {
			cur.WriteByte(s[i])
		} else if i+1 < len(s) && s[i+1] == ',' {
			cur.WriteByte(',')
			i++
		} else {
			parts = append(parts, cur.String())
			cur.Reset()
		}
	}
	return append(parts, cur.String())
}

func setOption(o *CreateOptions, name, value string) error {
	for _, opt := range options {
		if opt.name == name {
			if err := opt.set(o, value); err != nil {
				return fmt.Errorf("%s=%s: %w", name, value, err)
			}
			return nil
		}
	}
	nothing, known := unbuilt[name]
	switch {
	case known && nothing != "" && value == nothing, name == "compat" && value == "v3":
		return nil
	case known && nothing != "":
		return fmt.Errorf("%s=%s: this is not built, only %s is", name, value, nothing)
	case known, strings.HasPrefix(name, "encrypt."):
		return fmt.Errorf("%s=%s: this option is not built: leave it out", name, value)
	}
	return fmt.Errorf("%s=%s: there is no such option: -o help lists them", name, value)
}

// withDefaults fills in what was left out.
func (o CreateOptions) withDefaults() CreateOptions {
	set := func(field *uint64, v uint64) {
		if *field == 0 {
			*field = v
		}
	}
	set(&o.ClusterSize, defaultClusterSize)
	set(&o.RefcountBits, defaultRefcountBits)
	set(&o.ZoneSize, defaultZoneSize)
	set(&o.ZoneCapacity, o.ZoneSize)
	set(&o.MaxOpen, o.MaxActive)
	return o
}

// rule is a broken rule and the options that it speaks of.
type rule struct {
	err   error
	needs []string
}

// broken returns the rules that complete options break. given has the values
// as the user wrote them.
func (o CreateOptions) broken(given map[string]string) []rule {
	var out []rule
	// check reports the first option of needs unless ok holds.
	check := func(ok bool, value uint64, needs []string, format string, args ...any) bool {
		if ok {
			return true
		}
		v, written := given[needs[0]]
		if !written {
			v = strconv.FormatUint(value, 10)
		}
		out = append(out, rule{fmt.Errorf("%s=%s: %s", needs[0], v, fmt.Sprintf(format, args...)), needs})
		return false
	}
	names := func(n ...string) []string { return n }
	explicitZero := func(name string) bool {
		v, ok := given[name]
		n, err := ParseSize(v)
		return ok && err == nil && n == 0
	}

	cluster := check(isPower(o.ClusterSize) && o.ClusterSize >= 1<<minClusterBits && o.ClusterSize <= 1<<maxClusterBits && !explicitZero("cluster_size"),
		o.ClusterSize, names("cluster_size"), "it must be a power of two from 512 to 2M")
	check(isPower(o.RefcountBits) && o.RefcountBits <= 1<<maxRefcountOrder && !explicitZero("refcount_bits"),
		o.RefcountBits, names("refcount_bits"), "it must be a power of two from 1 to 64")
	if !check(int(o.Preallocation) < len(preallocationNames), uint64(o.Preallocation), names("preallocation"), "there is no such mode") {
		return out
	}
	if _, written := given["size"]; o.Size == 0 && !written {
		return append(out, rule{errors.New("size is missing: give it as the argument or as the option size"), names("size")})
	}
	size := check(o.Size != 0 && o.Size%sectorSize == 0, o.Size, names("size"), "it must be a multiple of %d above 0", sectorSize)
	zone := check(isPower(o.ZoneSize) && o.ZoneSize >= sectorSize && !explicitZero("zone.size"),
		o.ZoneSize, names("zone.size"), "it must be a power of two from 512")
	if cluster && zone {
		check(o.ZoneSize%o.ClusterSize == 0, o.ZoneSize, names("zone.size", "cluster_size"), "it must be a multiple of cluster_size, %d", o.ClusterSize)
	}
	if zone {
		check(o.ZoneCapacity <= o.ZoneSize && o.ZoneCapacity%sectorSize == 0 && !explicitZero("zone.capacity"),
			o.ZoneCapacity, names("zone.capacity", "zone.size"), "it must be a multiple of %d, from that to zone.size, %d", sectorSize, o.ZoneSize)
	}
	check(o.MaxAppend%sectorSize == 0 && o.MaxAppend < 1<<32, o.MaxAppend, names("zone.max_append_bytes"), "it must be a multiple of %d below 4G", sectorSize)
	check(o.MaxAppend == 0 || o.MaxAppend >= 1<<32 || o.MaxAppend+sectorSize < o.ZoneCapacity, o.MaxAppend,
		names("zone.max_append_bytes", "zone.capacity", "zone.size"), "with %d added it must be less than zone.capacity, %d", sectorSize, o.ZoneCapacity)
	if !size || !zone || !cluster {
		return out
	}

	zones := (o.Size-1)/o.ZoneSize + 1
	counted := check(zones <= MaxZones, o.Size, names("size", "zone.size"), "%d zones of %d bytes are needed, at most %d are supported", zones, o.ZoneSize, MaxZones)
	hi, end := bits.Mul64(zones, o.ZoneSize)
	fits := check(hi == 0 && end <= maxZoneEnd, o.Size, names("size", "zone.size"), "the last zone ends beyond 2^59, where a write pointer does not fit")
	fits = fits && check(l1EntriesFor(o.Size, uint32(bits.TrailingZeros64(o.ClusterSize))) <= maxL1Bytes/8,
		o.Size, names("size", "cluster_size"), "with a cluster_size of %d the L1 table would exceed %d bytes", o.ClusterSize, maxL1Bytes)
	if !counted || !fits {
		return out
	}
	if isPower(o.RefcountBits) && o.RefcountBits <= 1<<maxRefcountOrder {
		_, err := planImage(o)
		check(err == nil, o.Size, names("size", "cluster_size", "refcount_bits", "zone.size"), "%v", err)
	}
	check(o.Conventional < zones, o.Conventional, names("zone.conventional_zones", "size", "zone.size"),
		"it must be less than the number of zones, %d", zones)
	sequential := zones - min(o.Conventional, zones)
	needs := names("size", "zone.size", "zone.conventional_zones")
	if o.Conventional >= zones {
		return out // the limits would only repeat it
	}
	active := check(o.MaxActive <= sequential, o.MaxActive, append(names("zone.max_active_zones"), needs...),
		"it must be at most the number of sequential zones, %d", sequential)
	if _, written := given["zone.max_open_zones"]; written || o.MaxOpen != o.MaxActive {
		open := check(o.MaxOpen <= sequential, o.MaxOpen, append(names("zone.max_open_zones"), needs...),
			"it must be at most the number of sequential zones, %d", sequential)
		if open && active {
			check(o.MaxActive == 0 || o.MaxOpen <= o.MaxActive, o.MaxOpen, append(names("zone.max_open_zones", "zone.max_active_zones"), needs...),
				"it must be at most zone.max_active_zones, %d", o.MaxActive)
		}
	}
	return out
}

func isPower(n uint64) bool { return bits.OnesCount64(n) == 1 }

// warnings says what keeps the image from being attached.
func (o CreateOptions) warnings() []string {
	var w []string
	if zones := (o.Size-1)/o.ZoneSize + 1; zones > attachableZones {
		w = append(w, fmt.Sprintf("the image has %d zones: with more than %d it cannot be attached", zones, attachableZones))
	}
	if rest, whole := o.Size%o.ZoneSize, o.Size/o.ZoneSize; rest != 0 {
		then := "such an image can be attached only without that zone, with --drop-short-zone"
		if whole <= o.Conventional {
			then = "no Linux kernel serves it, and without it no sequential zone is left to attach: make the size a multiple of zone.size, or zone.size smaller"
		}
		w = append(w, fmt.Sprintf("the last zone is only %d of %d bytes long: %s", rest, o.ZoneSize, then))
	}
	if o.ZoneSize < attachableZoneMin {
		w = append(w, fmt.Sprintf("zones are %d bytes long: with zones of less than 4K the image cannot be attached", o.ZoneSize))
	}
	if o.ZoneSize > attachableZoneSize {
		w = append(w, fmt.Sprintf("zones are %d bytes long: with zones of more than 1T the image cannot be attached", o.ZoneSize))
	}
	return w
}
