package flow

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/netctl/netctl/internal/mapfile"
	"github.com/netctl/netctl/internal/portable"
)

// Config says how to open a table.
type Config struct {
	Path     string   // file to map; "" keeps the table in this process's memory
	Slots    int      // two per connection; a power of two, DefaultSlots when 0
	PerOwner int      // connections that one owner may have, DefaultPerOwner when 0
	Timeouts Timeouts // zero fields mean the defaults

	// Epoch names the time in which entries have a meaning, such as the kernel's
	// boot id when the caller's clock is the time since boot. A file of another
	// epoch is refused.
	Epoch string
	// Join maps a table that a living process has open, for a handover: both
	// work on it until one closes. Without it such a table is ErrInUse.
	Join bool
}

// Validate reports what is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	if c.Slots != 0 && (c.Slots < minSlots || c.Slots > maxSlots || bits.OnesCount(uint(c.Slots)) != 1) {
		errs = append(errs, fmt.Errorf("flow table: %d slots: want a power of two from %d to %d", c.Slots, minSlots, maxSlots))
	}
	if c.PerOwner < 0 || c.PerOwner > maxSlots {
		errs = append(errs, fmt.Errorf("flow table: %d connections per owner: want 1 to %d", c.PerOwner, maxSlots))
	}
	if c.Join && c.Path == "" {
		errs = append(errs, errors.New("flow table: only a table with a path can be joined"))
	}
	return errors.Join(errs...)
}

func (c *Config) setDefaults() {
	if c.Slots == 0 {
		c.Slots = DefaultSlots
	}
	if c.PerOwner == 0 {
		c.PerOwner = DefaultPerOwner
	}
	c.Timeouts.setDefaults()
}

// ErrInUse is returned by Open when another process has the table mapped.
var ErrInUse = mapfile.ErrInUse

// Refusal is why a file was not taken over.
type Refusal = mapfile.Refusal

// The refusals.
const (
	NotRefused     = mapfile.NotRefused
	RefusedForeign = mapfile.RefusedForeign // not a flow table
	RefusedVersion = mapfile.RefusedVersion // of another layout
	RefusedTorn    = mapfile.RefusedTorn    // cut short, or its header does not add up
	RefusedEpoch   = mapfile.RefusedEpoch   // from another boot
)

// Report says what Open found.
type Report struct {
	Refusal Refusal // why the file that was there was not used
	Adopted int     // connections taken over
	Dropped int     // slots thrown away: half-written, halves of pairs, doubles
	Joined  bool    // another process has the table open too
	Resized int     // the number of slots of the file when it was another

	Imported  int   // connections that a process of another version left in words for all
	ImportErr error // why what it left could not be read
}

// String says it for a log.
func (r Report) String() string {
	out := fmt.Sprintf("%d connections taken over", r.Adopted+r.Imported)
	if r.Dropped > 0 {
		out += fmt.Sprintf(", %d half-written slots thrown away", r.Dropped)
	}
	if r.Refusal != NotRefused {
		out += fmt.Sprintf(", file refused: %s", r.Refusal)
	}
	if r.ImportErr != nil {
		out += fmt.Sprintf(", nor can what was left be read: %v", r.ImportErr)
	}
	return out
}

// Report returns what Open found.
func (t *Table) Report() Report { return t.report }

// The layout in words, behind the header of every mapped file.
const (
	headCount = mapfile.HeadUser // connections; a cache line of its own
	locksAt   = mapfile.HeadWords
	ownersAt  = locksAt + 512
	tagsAt    = ownersAt + ownerSlots
	magic     = 0x776f6c666c74636e // "nctlflow"
	version   = 2
	pageWords = 512
)

//nolint:gochecknoglobals // a description known at compile time
var format = mapfile.Format{
	Name: "flow table", Magic: magic, Version: version, Unit: slotBytes, Min: minSlots, Max: maxSlots, Words: sizeWords,
}

// sizeWords returns the number of words of a table, or a negative number when
// no table has so many slots.
func sizeWords(slots int) int {
	if bits.OnesCount(uint(slots)) != 1 {
		return -1
	}
	return slotsAt(slots) + slots*slotWords
}

// slotsAt returns the word at which the slots begin, on a page.
func slotsAt(slots int) int {
	return (tagsAt + slots/bucketSize + pageWords - 1) / pageWords * pageWords
}

// Open opens or creates the table. A file that is foreign, torn, of another
// version or of another epoch is replaced by an empty table, and Report says
// why; an interrupted writer's traces are repaired. Nobody else is expected to
// write the file; should somebody have, Expire finds that within a minute. It
// fails when the file cannot be used at all, and with ErrInUse when a process has
// it open.
func Open(cfg Config) (*Table, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	f, err := mapfile.Open(&format, mapfile.Config{Path: cfg.Path, Units: cfg.Slots, Epoch: cfg.Epoch, Join: cfg.Join})
	if err != nil {
		return nil, err
	}
	t, err := openFile(f, &cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open flow table %s: %w", cfg.Path, err), f.Close())
	}
	return t, nil
}

// openFile makes a table of a file's words and, while it is ours alone, puts
// them in order.
func openFile(f *mapfile.File, cfg *Config) (*Table, error) {
	t := build(f, cfg)
	found := f.Report()
	switch {
	case found.Joined:
		if f.Died() { // the one before, beside one that retires
			t.mend()
		}
		t.report = Report{Joined: true, Adopted: t.Len()}
		return t, nil
	case found.Found && f.Units() == cfg.Slots && !t.interrupted():
		t.unverified.Store(int64(len(t.tags))) // at most maxSlots
		t.report.Adopted = t.Len()
	case found.Found:
		for i := range t.locks {
			t.locks[i].Store(0)
		}
		t.report.Adopted, t.report.Dropped = t.repair()
	}
	if found.Found && f.Units() != cfg.Slots {
		var err error
		if t, err = resize(t, cfg); err != nil {
			return nil, err
		}
	}
	t.report.Refusal = found.Refusal
	if cfg.Path != "" {
		t.report.Imported, t.report.ImportErr = portable.Take(cfg.Path, found.Refusal == RefusedVersion, t.Import)
	}
	return t, f.Share()
}

// build cuts the words of a file into the table's parts.
func build(f *mapfile.File, cfg *Config) *Table {
	w, n := f.Words(), f.Units()
	at := slotsAt(n)
	return &Table{
		file: f, path: cfg.Path, key: f.Key(), epoch: cfg.Epoch,
		head: w[:mapfile.HeadWords], locks: w[locksAt : locksAt+stripes], owners: w[ownersAt : ownersAt+ownerSlots],
		tags: w[tagsAt : tagsAt+n/bucketSize], slots: mapfile.Records[slot](w[at : at+n*slotWords]), nslots: uint32(n), // at most maxSlots
		bucketMask: uint32(n/bucketSize) - 1, perOwner: uint32(cfg.PerOwner), timeouts: cfg.Timeouts, // at most maxSlots
	}
}

// Close undoes the mapping and releases the file, which stays. No other method
// may be called during or after Close: the memory is gone.
//
// Who has the table last leaves it for a successor of another version as well.
func (t *Table) Close() error {
	var err error
	if t.file.Last() {
		err = portable.Leave(t.path, t.Export)
	}
	t.slots, t.nslots, t.tags = nil, 0, nil
	return errors.Join(err, t.file.Close())
}
