package qcow2

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// The file is extended by at least growBytes at once, and by at least a
// 1/growShare of its largest length. What is added is sparse; the steps are
// that large because each takes a sync of the whole file, while allocations
// wait.
const (
	growBytes = 1 << 30
	growShare = 8
)

// allocator keeps what is free in the file. Clusters are handed out from clean
// only, so that every cluster handed out reads as zeros even after a power cut:
// then mappings may be written ahead of data everywhere (I2, I2b, I6).
//
//	                 extend: Truncate, Sync
//	                          │
//	unclean ──Punch, Sync──►clean ──► homes ──► in use
//	                          ▲                   │ entries cleared in the page cache
//	                        Sync                  ▼
//	                       punched ◄─Sync, Punch─ freed
//
// The way from freed to clean is one of the rounds (flush.go): a cluster is
// punched only when no durable entry refers to it, and handed out only when the
// hole is durable (I4).
type allocator struct {
	fileEnd atomic.Int64 // clusters in the file, a length that is durable; the holder of the token extends it
	limit   int64        // clusters that the file may have before free ones are waited for

	mu      sync.Mutex     // guards what follows; never held across I/O; order: 5
	clean   runSet         // durably zero
	unclean runSet         // unused since before the image was opened, contents unknown
	freed   []run          // their cleared entries may not be durable
	punched []run          // their holes may not be durable
	homes   map[uint32]run // what active zones will continue with: durably zero
	moving  int64          // clusters in a round's hands between freed, punched and clean
}

func (a *allocator) length() int64 { return a.fileEnd.Load() }

// used returns the number of clusters that are in use.
func (a *allocator) used() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.length() - a.clean.total - a.unclean.total - a.inQuarantine()
	for _, r := range a.homes {
		n -= r.n
	}
	return n
}

// quarantined returns the number of clusters on the way from freed to clean.
func (a *allocator) quarantined() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inQuarantine()
}

// inQuarantine is quarantined with mu held.
func (a *allocator) inQuarantine() int64 { return sumRuns(a.freed) + sumRuns(a.punched) + a.moving }

// quarantine takes clusters whose entries have been cleared in the page cache.
func (im *Image) quarantine(runs []run) {
	if len(runs) == 0 {
		return
	}
	a := &im.alloc
	a.mu.Lock()
	a.freed = append(a.freed, runs...)
	a.mu.Unlock()
	im.syncer.changed()
}

// waiting reports whether rounds could make clusters clean.
func (a *allocator) waiting() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.freed) != 0 || len(a.punched) != 0
}

// release gives durably zero clusters back.
func (a *allocator) release(r run) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.addClean(r)
}

func (a *allocator) addClean(r run) error {
	if r.n != 0 && (a.unclean.overlaps(r) || !a.clean.add(r)) {
		return fmt.Errorf("image is corrupt: one of the %d clusters from %d was in use twice", r.n, r.start)
	}
	return nil
}

// dissolve gives back what zone has reserved and not used.
func (a *allocator) dissolve(zone uint32) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := a.homes[zone]
	if !ok {
		return nil
	}
	delete(a.homes, zone)
	return a.addClean(r)
}

// carve returns up to n durably zero consecutive clusters for guest clusters of
// zone. The zone reserves need of them at once, so that its clusters lie in the
// order of their data; after is the file cluster that would continue it, or 0.
// The token is held.
func (im *Image) carve(zone uint32, n, need, after int64) (run, error) {
	a := &im.alloc
	a.mu.Lock()
	home, ok := a.homes[zone]
	a.mu.Unlock()
	if !ok {
		var err error
		if home, err = im.acquire(need, after); err != nil {
			return run{}, err
		}
	}
	r := run{home.start, min(n, home.n)}
	home.start, home.n = r.end(), home.n-r.n
	a.mu.Lock()
	defer a.mu.Unlock()
	if home.n == 0 {
		delete(a.homes, zone)
	} else {
		a.homes[zone] = home
	}
	return r, nil
}

// uncarve undoes a carve whose clusters have not been used. The token is held.
func (im *Image) uncarve(zone uint32, r run) error {
	a := &im.alloc
	a.mu.Lock()
	defer a.mu.Unlock()
	if home, ok := a.homes[zone]; ok && home.start == r.end() {
		a.homes[zone] = run{r.start, r.n + home.n}
		return nil
	}
	return a.addClean(r)
}

// acquire takes n durably zero consecutive clusters out of the pool, at cluster
// after if they are free there. When the file is as long as it should become
// and nothing fits, it returns fewer. The token is held.
func (im *Image) acquire(n, after int64) (run, error) {
	a := &im.alloc
	enough := min(n, minHome) // a shorter continuation is not worth its seam
	if after != 0 {
		if r, err := im.acquireAt(after, n, enough); err != nil || r.n != 0 {
			return r, err
		}
	}
	if r := im.takeClean(n, n); r.n != 0 {
		return r, nil
	}
	if ok, err := im.launder(n, n); err != nil {
		return run{}, err
	} else if ok {
		return im.takeClean(n, n), nil
	}
	im.sweepHomes()
	if r := im.takeClean(n, n); r.n != 0 {
		return r, nil
	}
	var short error // why the file does not get longer
	if a.length()+n <= a.limit {
		if short = im.extend(n); short == nil {
			return im.takeClean(n, n), nil
		} else if errors.Is(short, ErrFailed) {
			return run{}, short
		}
	}
	// The file is as long as a full device needs it. Two rounds make clusters
	// of reset zones available: one covers their cleared entries, one the holes.
	// A round under way may have them in its hands.
	for range 2 {
		if a.quarantined() == 0 {
			break
		}
		if err := im.syncer.drain(); err != nil {
			return run{}, err
		}
		if r := im.takeClean(n, n); r.n != 0 {
			return r, nil
		}
	}
	if r := im.takeClean(n, enough); r.n != 0 {
		return r, nil
	}
	if ok, err := im.launder(n, enough); err != nil {
		return run{}, err
	} else if ok {
		return im.takeClean(n, enough), nil
	}
	if short == nil {
		if short = im.extend(n); short == nil {
			return im.takeClean(n, n), nil
		}
	}
	if r := im.takeClean(n, 1); r.n != 0 && !errors.Is(short, ErrFailed) {
		return r, nil
	}
	return run{}, short
}

// minHome is the number of clusters from which a run is worth being a zone's
// next home although it does not hold the rest of the zone.
const minHome = 64

// runAlign, in bytes: page caches and file systems keep data in pieces of powers of
// two that are aligned to their size.
const runAlign int64 = 1 << 20

// takeClean takes n clean clusters out of the run in which they fit best, or if
// there is none the longest run of at least enough. If they are a multiple of
// runAlign and the run is that at the end of the file, they begin at such a one.
// (Further ahead a piece out of the middle of what zones had could cost them their
// places.)
func (im *Image) takeClean(n, enough int64) run {
	a := &im.alloc
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := a.clean.best(n)
	if !ok {
		if r = a.clean.largest(); r.n < enough || r.n == 0 {
			return run{}
		}
	}
	start := r.start
	if step := runAlign >> im.clusterBits; step > 1 && n%step == 0 && r.end() == a.length() {
		if s := (start + step - 1) &^ (step - 1); s+n <= r.end() {
			start = s
		}
	}
	return a.clean.takeAt(start, n)
}

// acquireAt takes between enough and n clean clusters from cluster c on.
func (im *Image) acquireAt(c, n, enough int64) (run, error) {
	a := &im.alloc
	a.mu.Lock()
	dirty := a.unclean.takeAt(c, n)
	a.mu.Unlock()
	if dirty.n != 0 {
		if err := im.clean([]run{dirty}); err != nil {
			return run{}, err
		}
	}
	if c == a.length() {
		if err := im.extend(n); err != nil {
			if errors.Is(err, ErrFailed) {
				return run{}, err
			}
			return run{}, nil // elsewhere there may be room
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.clean.takeAt(c, n)
	if r.n < enough {
		return run{}, a.addClean(r)
	}
	return r, nil
}

// launder makes unclean clusters durably zero: a run of at least n, or if there
// is none the longest of at least enough, and others under the same sync.
func (im *Image) launder(n, enough int64) (bool, error) {
	a := &im.alloc
	a.mu.Lock()
	r, ok := a.unclean.best(n)
	if !ok {
		r = a.unclean.largest()
		ok = r.n >= enough && r.n != 0
	}
	var batch []run
	if ok {
		left := max(n, growBytes>>im.clusterBits)
		batch = append(batch, a.unclean.takeAt(r.start, left))
		for left -= batch[0].n; left > 0 && len(a.unclean.runs) != 0 && len(batch) < 256; {
			r := a.unclean.takeAt(a.unclean.runs[0].start, left)
			batch, left = append(batch, r), left-r.n
		}
	}
	a.mu.Unlock()
	if !ok {
		return false, nil
	}
	return true, im.clean(batch)
}

// clean makes unused clusters durably zero. If that fails they stay unclean.
func (im *Image) clean(batch []run) error {
	a := &im.alloc
	err := im.punch(batch)
	if err != nil {
		err = fmt.Errorf("make room in the image: %w", err)
	} else if err = im.f.Sync(); err != nil {
		err = im.fail(fmt.Errorf("sync of new clusters: %w", err)) // I8
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range batch {
		if err != nil {
			a.unclean.add(r)
		} else if e := a.addClean(r); e != nil {
			return im.fail(e)
		}
	}
	return err
}

// punch makes clusters read as zeros.
func (im *Image) punch(runs []run) error {
	for _, r := range runs {
		if err := im.f.Punch(r.start<<im.clusterBits, r.n<<im.clusterBits); err != nil {
			return err
		}
	}
	return nil
}

// extend adds n clusters to the file, more if that is cheap. What is added is
// handed out only when the length is durable.
func (im *Image) extend(n int64) error {
	a := &im.alloc
	old := a.length()
	step := max(growBytes>>im.clusterBits, a.limit/growShare)
	step = max(n, min(step, a.limit-old))
	if most := int64(maxFileBytes)>>im.clusterBits - old; n > most {
		return fmt.Errorf("extend the image by %d bytes: it is %d bytes long, and must not get longer than %d", n<<im.clusterBits, old<<im.clusterBits, int64(maxFileBytes))
	} else if step > most {
		step = most
	}
	err := im.f.Truncate((old + step) << im.clusterBits)
	if err != nil && step > n {
		step = n
		err = im.f.Truncate((old + step) << im.clusterBits)
	}
	if err != nil {
		return fmt.Errorf("extend the image by %d bytes: %w", step<<im.clusterBits, err)
	}
	if err := im.f.Sync(); err != nil {
		return im.fail(fmt.Errorf("sync of the image's new length: %w", err)) // I8
	}
	a.fileEnd.Store(old + step)
	return a.release(run{old, step})
}

// sweepHomes dissolves the homes of full zones: a zone that was filled in part
// by write-zeroes leaves some of its home unused.
func (im *Image) sweepHomes() {
	a := &im.alloc
	a.mu.Lock()
	defer a.mu.Unlock()
	for zone, r := range a.homes {
		if zone < im.nrZones && im.Pointer(zone) == im.zoneEnd(zone) && a.addClean(r) == nil {
			delete(a.homes, zone)
		}
	}
}
