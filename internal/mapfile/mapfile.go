// Package mapfile keeps fixed layouts of 64-bit words in files that are mapped
// into memory, so that what a process knows outlives it. What the words mean is
// the user's affair; this package knows the first page of a file and who has it
// open.
//
//	header, one page | the user's words
//
// # Whose file it is
//
// Who opens a file first has it alone: nobody else can open it, and what an
// interrupted process left may be repaired or refused. Share ends that. From
// then on a second process that asks to Join maps the same words, for a
// handover; both work on them until one closes.
//
// A file that is foreign, torn, of another version or of another epoch is
// never an error: it is emptied and Report says why.
//
// # Locks that survive their holder
//
// A process can be killed between any two instructions, also while it holds a
// lock that lies in the mapping. So a lock word holds a ticket: the number of
// one of a few seats and a random number. A seat is a byte far behind the end of
// the file on which its process holds a kernel lock that ends with the process,
// however it ends and in whatever container it ran. Who waits long asks the
// kernel whether the seat of the holder is still taken, and takes the lock of
// the dead. A holder that merely does not get any processor keeps it.
//
// The words that the dead one was writing are then as it left them. Died tells
// the user once, who repairs them under all of its locks.
//
// # Testing
//
// Tests start processes and kill them; FuzzHeader opens files that somebody else
// wrote.
package mapfile

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

// The header's words. Those that are not named may be used by whoever uses the
// file, from HeadUser on.
const (
	headMagic   = 0
	headVersion = 1 // layout version 32 | bytes of a unit 32
	headUnits   = 2
	headEpoch   = 3
	headKey     = 4 // KeyWords words
	headSum     = headKey + KeyWords

	// HeadUser is the first of the header's words that the user may use.
	HeadUser = 64
	// headSeats is where the tickets of the processes that have the file open are,
	// and the end of the user's words.
	headSeats = 448

	// KeyWords is the length of the random key of every file.
	KeyWords = 8
)

// joinTime bounds the wait for a process that has the file alone: it repairs or
// fills it, and shares it then or ends.
const joinTime = 3 * time.Second

// ErrInUse is returned by Open when another process has the file open.
var ErrInUse = errors.New("in use by another process")

// Refusal is why a file was not taken over.
type Refusal uint8

// The refusals.
const (
	NotRefused     Refusal = iota
	RefusedForeign         // something else
	RefusedVersion         // of another layout
	RefusedTorn            // cut short, or its header does not add up
	RefusedEpoch           // from another boot
)

// String says the reason in words.
func (r Refusal) String() string {
	switch r {
	case RefusedForeign:
		return "not a file of this kind"
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

// Format is a kind of file.
type Format struct {
	Name    string // in errors: "flow table"
	Magic   uint64 // the first word
	Version uint32 // of the layout: another is refused
	Unit    uint32 // bytes of one unit, which are part of the layout
	Min     int    // units
	Max     int    // units
	// Words returns the words of a file of so many units, HeadWords included.
	Words func(units int) int
}

// Config says which file to open.
type Config struct {
	Path  string // "" is memory of this process alone
	Units int    // of a file that is made
	// Epoch names the time in which the words have a meaning, such as the kernel's
	// boot id when they hold seconds since boot. A file of another is refused.
	Epoch string
	// Join maps a file that a living process has shared, and waits some seconds for
	// one that has it alone. Without it such a file is ErrInUse. One of another
	// version cannot be mapped: a new file takes its place, and the living process
	// keeps the old one, which has no name any more.
	Join bool
}

// Report says what Open found.
type Report struct {
	Refusal Refusal // why the file that was there was not used
	Found   bool    // the words are those of a former process, or of one that lives
	Joined  bool    // another process has the file open: nothing may be repaired
}

// File is words in a mapped file. Its methods but Close may be called from any
// number of goroutines after Share.
type File struct {
	format *Format
	path   string
	epoch  string
	report Report

	words  []atomic.Uint64
	units  int
	data   []byte   // the mapping; nil without a file
	file   *os.File // holds the lock of the file and the seat
	ticket uint64   // what this process writes into locks
	died   atomic.Bool
}

// Open opens or makes a file. Unless the report says Joined the caller has it
// alone until Share.
func Open(format *Format, cfg Config) (*File, error) {
	if cfg.Units < format.Min || cfg.Units > format.Max {
		return nil, fmt.Errorf("%s: %d units: want %d to %d", format.Name, cfg.Units, format.Min, format.Max)
	}
	f := &File{format: format, path: cfg.Path, epoch: cfg.Epoch, ticket: noTicket}
	if cfg.Path == "" {
		f.words, f.units = make([]atomic.Uint64, format.Words(cfg.Units)), cfg.Units
		return f, f.writeHeader()
	}
	var err error
	if f.file, err = os.OpenFile(cfg.Path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600); err != nil {
		return nil, fmt.Errorf("open %s: %w", format.Name, err)
	}
	if err := f.open(&cfg); err != nil {
		if f.data != nil {
			err = errors.Join(err, Unmap(f.data))
		}
		return nil, errors.Join(fmt.Errorf("open %s %s: %w", format.Name, cfg.Path, err), f.file.Close())
	}
	return f, nil
}

// open takes the lock, exclusively when nobody else has the file, and maps it.
// Everybody keeps a shared lock while the file is mapped: who can get an
// exclusive one is alone.
func (f *File) open(cfg *Config) error {
	alone, err := f.lock(cfg.Join)
	if err != nil {
		return err
	}
	if !alone {
		return f.join(cfg)
	}
	units, refusal, err := f.judge()
	if err != nil {
		return err
	}
	f.report = Report{Refusal: refusal, Found: units > 0}
	if units == 0 {
		return f.Make(cfg.Units)
	}
	if err := f.mapUnits(units); err != nil {
		return err
	}
	for i := range seats {
		f.words[headSeats+i].Store(0)
	}
	return nil
}

// lock takes the exclusive lock or, if joining will do, a shared one.
func (f *File) lock(join bool) (alone bool, err error) {
	for began, wait := time.Now(), time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := LockFile(f.file, true)
		if !join || !errors.Is(err, ErrInUse) {
			return err == nil, err
		}
		err = LockFile(f.file, false)
		if !errors.Is(err, ErrInUse) || time.Since(began) > joinTime {
			return false, err
		}
		<-time.After(wait)
	}
}

// join maps a file that another process works on, whose lock is shared.
func (f *File) join(cfg *Config) error {
	units, refusal, err := f.judge()
	if err != nil {
		return err
	}
	if refusal == RefusedVersion {
		f.report = Report{Refusal: refusal}
		return f.supersede(cfg)
	}
	if units == 0 {
		return fmt.Errorf("%w, and cannot be joined: %s", ErrInUse, refusal)
	}
	f.report = Report{Found: true, Joined: true}
	if err := f.mapUnits(units); err != nil {
		return err
	}
	return f.sit()
}

// supersede puts a new file in the place of one that cannot be used.
func (f *File) supersede(cfg *Config) error {
	next, err := os.CreateTemp(filepath.Dir(cfg.Path), "."+filepath.Base(cfg.Path)+".*") // mode 0600
	if err != nil {
		return err
	}
	old := f.file
	f.file = next // ours to close from here on
	err = errors.Join(old.Close(), LockFile(next, true), f.Make(cfg.Units))
	if err == nil {
		err = os.Rename(next.Name(), cfg.Path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(next.Name()))
	}
	return err
}

// judge reads the header. No units and no refusal means an empty file.
func (f *File) judge() (units int, r Refusal, err error) {
	st, err := f.file.Stat()
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
	if _, err := f.file.ReadAt(b[:], 0); err != nil {
		return 0, RefusedForeign, nil //nolint:nilerr // too short to be one
	}
	var w [headSum + 1]uint64
	for i := range w {
		w[i] = binary.NativeEndian.Uint64(b[i*8:])
	}
	switch {
	case w[headMagic] != f.format.Magic:
		return 0, RefusedForeign, nil
	case w[headVersion] != f.identity():
		return 0, RefusedVersion, nil
	case w[headSum] != checksum(w[:headSum]), w[headUnits] < uint64(f.format.Min), w[headUnits] > uint64(f.format.Max), // bounds are not negative
		st.Size() != int64(f.format.Words(int(w[headUnits])))*8: // at most Max by the case before
		return 0, RefusedTorn, nil
	case w[headEpoch] != epochOf(f.epoch):
		return 0, RefusedEpoch, nil
	}
	return int(w[headUnits]), NotRefused, nil // at most Max
}

func (f *File) identity() uint64 {
	return uint64(f.format.Version+Layout)<<32 | uint64(f.format.Unit)
}

// Make makes the file one of so many units, all of whose words are zero. The
// caller has it alone.
func (f *File) Make(units int) error {
	if f.data != nil {
		if err := Unmap(f.data); err != nil {
			return err
		}
		f.data, f.words = nil, nil
	}
	size := f.format.Words(units) * 8
	if err := f.file.Truncate(0); err != nil {
		return err
	}
	free, err := freeSpace(f.file)
	if err != nil {
		return err
	}
	if free < uint64(size) { // a size is not negative
		return fmt.Errorf("file system has %d bytes left, up to %d are needed", free, size)
	}
	if err := f.file.Truncate(int64(size)); err != nil {
		return err
	}
	if err := f.mapUnits(units); err != nil {
		return err
	}
	return f.writeHeader()
}

func (f *File) mapUnits(units int) error {
	data, words, err := Map(f.file, f.format.Words(units)*8)
	if err != nil {
		return err
	}
	f.data, f.words, f.units = data, words, units
	return nil
}

// writeHeader writes the header with a new key, the magic last.
func (f *File) writeHeader() error {
	var b [KeyWords * 8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return fmt.Errorf("key of a new %s: %w", f.format.Name, err)
	}
	var w [headSum]uint64
	w[headMagic], w[headVersion], w[headUnits], w[headEpoch] = f.format.Magic, f.identity(), uint64(f.units), epochOf(f.epoch) // not negative
	for i := range KeyWords {
		w[headKey+i] = binary.NativeEndian.Uint64(b[i*8:])
	}
	f.words[headSum].Store(checksum(w[:]))
	for i := headSum - 1; i >= 0; i-- {
		f.words[i].Store(w[i])
	}
	return nil
}

// Share lets other processes join. Until then the caller has the file alone.
func (f *File) Share() error {
	if f.file == nil || f.report.Joined {
		return nil
	}
	if err := f.sit(); err != nil {
		return err
	}
	return LockFile(f.file, false)
}

// Report returns what Open found.
func (f *File) Report() Report { return f.report }

// Words returns all words, those of the header first. They are gone after Close.
func (f *File) Words() []atomic.Uint64 { return f.words }

// Units returns the size of the file in units.
func (f *File) Units() int { return f.units }

// Key returns the file's random key: who cannot read the file cannot know it.
func (f *File) Key() [KeyWords]uint64 {
	var k [KeyWords]uint64
	for i := range k {
		k[i] = f.words[headKey+i].Load()
	}
	return k
}

// InMemory reports whether the file lies in memory, where nothing of it reaches
// a disk other than by swapping.
func (f *File) InMemory() (bool, error) {
	if f.file == nil {
		return true, nil
	}
	return OnMemory(f.file)
}

// Last reports whether the file has no other user that is seen to live and is
// still the one at its path: what this process leaves is for the next one then.
func (f *File) Last() bool {
	if f.file == nil || f.Shared() {
		return false
	}
	mine, err := f.file.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(f.path)
	return err == nil && os.SameFile(mine, there)
}

// Close undoes the mapping and releases the file, which stays. The words must
// not be touched during or after Close. To close twice does nothing.
func (f *File) Close() error {
	if f.file == nil {
		return nil
	}
	f.stand()
	err := errors.Join(Unmap(f.data), UnlockFile(f.file), f.file.Close())
	f.file, f.data, f.words = nil, nil, nil
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
