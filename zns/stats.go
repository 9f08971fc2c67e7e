package zns

// Stats is the state of all zones, each as it was at some instant of the call.
type Stats struct {
	Conds map[Cond]uint32 // zones by condition
	// Open and Active count against the limits, of which 0 is none.
	Open, Active       uint32
	MaxOpen, MaxActive uint32
}

// Stats looks at every zone. It holds up nobody.
func (d *Device) Stats() Stats {
	s := Stats{Conds: make(map[Cond]uint32), MaxOpen: d.g.MaxOpen, MaxActive: d.g.MaxActive}
	for i := range d.zones {
		s.Conds[d.words.load(uint32(i)).cond()]++
	}
	s.Open, s.Active = d.Counts()
	return s
}

// Conds are all zone conditions, in the order of their values.
var Conds = [...]Cond{CondNotWP, CondEmpty, CondImpOpen, CondExpOpen, CondClosed, CondReadOnly, CondFull, CondOffline}
