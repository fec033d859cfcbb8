package flow

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/bits"
	"os"
	"sync/atomic"
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
var ErrInUse = errors.New("flow table is in use by another process")

// Refusal is why a file was not taken over.
type Refusal uint8

// The refusals.
const (
	NotRefused     Refusal = iota
	RefusedForeign         // not a flow table
	RefusedVersion         // of another layout
	RefusedTorn            // cut short, or its header does not add up
	RefusedEpoch           // from another boot
)

// String says the reason in words.
func (r Refusal) String() string {
	switch r {
	case RefusedForeign:
		return "not a flow table"
	case RefusedVersion:
		return "layout of another version"
	case RefusedTorn:
		return "torn: size or header checksum is wrong"
	case RefusedEpoch:
		return "from another boot"
	default:
		return "not refused"
	}
}

// Report says what Open found.
type Report struct {
	Refusal Refusal // why the file that was there was not used
	Adopted int     // connections taken over
	Dropped int     // slots thrown away: half-written, halves of pairs, doubles
	Joined  bool    // another process has the table open too
	Resized int     // the number of slots of the file when it was another
}

// Report returns what Open found.
func (t *Table) Report() Report { return t.report }

// The header's words.
const (
	headMagic    = 0
	headVersion  = 1 // layout version 32 | slot bytes 32
	headSlots    = 2
	headEpoch    = 3
	headKey      = 4 // hashWords words
	headSum      = headKey + hashWords
	headCount    = 64 // connections; a cache line of its own
	headEnd      = 512
	locksAt      = headEnd
	ownersAt     = locksAt + 512
	tagsAt       = ownersAt + ownerSlots
	magic        = 0x776f6c666c74636e // "nctlflow"
	version      = 2
	pageWords    = 512
	headIdentity = uint64(version)<<32 | slotBytes
)

// sizeWords returns the number of words of a table.
func sizeWords(slots int) int { return slotsAt(slots) + slots*slotWords }

// slotsAt returns the word at which the slots begin, on a page.
func slotsAt(slots int) int {
	return (tagsAt + slots/bucketSize + pageWords - 1) / pageWords * pageWords
}

// Open opens or creates the table. A file that is foreign, torn, of another
// version or of another epoch is replaced by an empty table, and Report says
// why; an interrupted writer's traces are repaired. It fails when the file
// cannot be used at all, and with ErrInUse when a process has it open.
func Open(cfg Config) (*Table, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	if cfg.Path == "" {
		t := build(make([]atomic.Uint64, sizeWords(cfg.Slots)), &cfg)
		return t, t.format(&cfg)
	}
	f, err := os.OpenFile(cfg.Path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open flow table: %w", err)
	}
	t, err := openFile(f, &cfg)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open flow table %s: %w", cfg.Path, err), f.Close())
	}
	return t, nil
}

// openFile takes the lock, exclusively when nobody else has the file, and maps
// it. Everybody keeps a shared lock while the file is mapped: who can get an
// exclusive one is alone and may repair.
func openFile(f *os.File, cfg *Config) (*Table, error) {
	err := lockFile(f, true)
	if errors.Is(err, ErrInUse) && cfg.Join {
		return join(f, cfg)
	}
	if err != nil {
		return nil, err
	}
	slots, refusal, err := judge(f, cfg)
	if err != nil {
		return nil, err
	}
	var t *Table
	switch {
	case refusal != NotRefused || slots == 0:
		t, err = create(f, cfg)
	case slots != cfg.Slots:
		t, err = resize(f, slots, cfg)
	default:
		t, err = adopt(f, cfg)
	}
	if err != nil {
		return nil, err
	}
	t.report.Refusal = refusal
	if err := lockFile(f, false); err != nil {
		return nil, errors.Join(err, unmap(t.data))
	}
	t.file = f
	return t, nil
}

// judge reads the header. No slots and no refusal means an empty file.
func judge(f *os.File, cfg *Config) (slots int, r Refusal, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	if !st.Mode().IsRegular() {
		return 0, 0, errors.New("not a regular file")
	}
	if st.Size() == 0 {
		return 0, NotRefused, nil
	}
	var b [(headSum + 1) * 8]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return 0, RefusedForeign, nil //nolint:nilerr // too short to be one
	}
	var w [headSum + 1]uint64
	for i := range w {
		w[i] = binary.NativeEndian.Uint64(b[i*8:])
	}
	switch {
	case w[headMagic] != magic:
		return 0, RefusedForeign, nil
	case w[headVersion] != headIdentity:
		return 0, RefusedVersion, nil
	case w[headSum] != checksum(w[:headSum]), w[headSlots] > maxSlots, w[headSlots] < minSlots,
		bits.OnesCount64(w[headSlots]) != 1, st.Size() != int64(sizeWords(int(w[headSlots])))*8: // at most maxSlots by the case before
		return 0, RefusedTorn, nil
	case w[headEpoch] != epochOf(cfg.Epoch):
		return 0, RefusedEpoch, nil
	}
	return int(w[headSlots]), NotRefused, nil // at most maxSlots
}

// create makes the file an empty table. The magic is written last.
func create(f *os.File, cfg *Config) (*Table, error) {
	size := sizeWords(cfg.Slots) * 8
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	free, err := freeSpace(f)
	if err != nil {
		return nil, err
	}
	if free < uint64(size) { // a size is not negative
		return nil, fmt.Errorf("file system has %d bytes left, the table needs up to %d", free, size)
	}
	if err := f.Truncate(int64(size)); err != nil {
		return nil, err
	}
	t, err := mapTable(f, cfg)
	if err != nil {
		return nil, err
	}
	if err := t.format(cfg); err != nil {
		return nil, errors.Join(err, unmap(t.data))
	}
	return t, nil
}

// adopt takes over a table that nobody has open.
func adopt(f *os.File, cfg *Config) (*Table, error) {
	t, err := mapTable(f, cfg)
	if err != nil {
		return nil, err
	}
	t.loadKey()
	t.repair()
	return t, nil
}

// join maps a table that another process works on; nothing is repaired.
func join(f *os.File, cfg *Config) (*Table, error) {
	if err := lockFile(f, false); err != nil {
		return nil, err
	}
	slots, refusal, err := judge(f, cfg)
	if err != nil {
		return nil, err
	}
	if refusal != NotRefused || slots == 0 {
		return nil, fmt.Errorf("join: %w: %s", ErrInUse, refusal)
	}
	own := *cfg
	own.Slots = slots
	t, err := mapTable(f, &own)
	if err != nil {
		return nil, err
	}
	t.loadKey()
	t.report = Report{Joined: true, Adopted: t.Len()}
	t.file = f
	return t, nil
}

func mapTable(f *os.File, cfg *Config) (*Table, error) {
	data, err := mapFile(f, sizeWords(cfg.Slots)*8)
	if err != nil {
		return nil, err
	}
	t := build(wordsOf(data), cfg)
	t.data = data
	return t, nil
}

// build cuts the words into the table's parts.
func build(w []atomic.Uint64, cfg *Config) *Table {
	at, n := slotsAt(cfg.Slots), cfg.Slots
	return &Table{
		head: w[:headEnd], locks: w[locksAt : locksAt+stripes], owners: w[ownersAt : ownersAt+ownerSlots],
		tags: w[tagsAt : tagsAt+n/bucketSize], slots: slotsOf(w[at : at+n*slotWords]), nslots: uint32(n), // at most maxSlots
		bucketMask: uint32(n/bucketSize) - 1, perOwner: uint32(cfg.PerOwner), timeouts: cfg.Timeouts, // at most maxSlots
	}
}

// format writes the header of an empty table with a new hash key.
func (t *Table) format(cfg *Config) error {
	var b [hashWords * 8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return fmt.Errorf("flow table hash key: %w", err)
	}
	var w [headSum]uint64
	w[headMagic], w[headVersion], w[headSlots], w[headEpoch] = magic, headIdentity, uint64(cfg.Slots), epochOf(cfg.Epoch) // validated
	for i := range hashWords {
		w[headKey+i] = binary.NativeEndian.Uint64(b[i*8:])
	}
	t.head[headSum].Store(checksum(w[:]))
	for i := headSum - 1; i >= 0; i-- {
		t.head[i].Store(w[i])
	}
	t.loadKey()
	return nil
}

func (t *Table) loadKey() {
	for i := range t.key {
		t.key[i] = t.head[headKey+i].Load()
	}
}

// Close undoes the mapping and releases the file, which stays. No other method
// may be called during or after Close: the memory is gone.
func (t *Table) Close() error {
	if t.file == nil {
		return nil
	}
	err := errors.Join(unmap(t.data), unlockFile(t.file), t.file.Close())
	t.file, t.data, t.slots, t.nslots, t.tags = nil, nil, nil, 0, nil
	return err
}

func checksum(w []uint64) uint64 {
	h := fnv.New64a()
	var b [8]byte
	for _, v := range w {
		binary.LittleEndian.PutUint64(b[:], v)
		_, _ = h.Write(b[:]) // a hash never fails
	}
	return h.Sum64()
}

func epochOf(s string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(s)) // a hash never fails
	return h.Sum64()
}
