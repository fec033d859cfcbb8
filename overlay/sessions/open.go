package sessions

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"github.com/netctl/netctl/internal/mapfile"
)

const (
	// DefaultSlots is four key pairs (the last, the present, the next and one
	// being negotiated) for 8192 peers.
	DefaultSlots = 4 * 8192
	maxSlots     = 1 << 20
	// firstBytes get memory at once: 1000 peers' key pairs then have room even when
	// the file system fills up later.
	firstBytes = 1 << 20
)

// Config says how to open a store.
type Config struct {
	Path  string // "": in this process's memory
	Slots int    // DefaultSlots when 0
	// Epoch names the time in which sessions have a meaning: the kernel's boot id,
	// because their times are counted since boot.
	Epoch string
	Owner [KeySize]byte // our public key
	// AnyFilesystem lets the file lie on a disk. For tests: it has keys in it.
	AnyFilesystem bool
	// Memory is a former store's Memory, which is used where Path would lie on a disk;
	// nil: a new one is made. It stays the caller's.
	Memory *os.File
	// Warn is told, at most once, that keys cannot be kept out of swap, which is so
	// when RLIMIT_MEMLOCK is small; nil: nobody is told.
	Warn func(error)
}

// Refusal is why a file was not taken over.
type Refusal uint8

// The refusals.
const (
	NotRefused     Refusal = iota
	RefusedForeign         // no table of sessions
	RefusedVersion         // of another layout
	RefusedTorn            // cut short, or its header does not add up
	RefusedEpoch           // from another boot
	RefusedOwner           // another private key's
	RefusedDisk            // would lie on a disk, and there is no former store's Memory
)

// String says the reason in words.
func (r Refusal) String() string {
	switch r {
	case NotRefused:
		return "not refused"
	case RefusedForeign:
		return "not a session file"
	case RefusedVersion:
		return "layout of another version"
	case RefusedTorn:
		return "torn: size or header checksum is wrong"
	case RefusedEpoch:
		return "from another boot"
	case RefusedOwner:
		return "of another private key"
	case RefusedDisk:
		return "not on tmpfs, and session keys must not reach a disk; they are kept in memory, for who gets that"
	default:
		return "unknown"
	}
}

// Report says what Open found.
type Report struct {
	Refusal Refusal // why the file that was there, or its place, was not used
	Adopted bool    // the file was there and is used
}

// Open opens or creates the store. It changes nothing in a file that it takes
// over: another process may be at work on it.
func Open(cfg Config) (*Store, error) {
	if cfg.Slots == 0 {
		cfg.Slots = DefaultSlots
	}
	if cfg.Slots < 1 || cfg.Slots > maxSlots {
		return nil, fmt.Errorf("session store: %d slots, want 1 to %d", cfg.Slots, maxSlots)
	}
	s := &Store{slots: cfg.Slots, warn: cfg.Warn}
	if cfg.Path == "" {
		s.anonymous(&cfg)
		return s, nil
	}
	memory, err := onTmpfs(filepath.Dir(cfg.Path))
	if err != nil {
		return nil, fmt.Errorf("session file %s: %w", cfg.Path, err)
	}
	if !memory && !cfg.AnyFilesystem {
		if err := s.nameless(&cfg); err != nil {
			return nil, fmt.Errorf("sessions in memory: %w", err)
		}
		return s, nil
	}
	// The directory has been looked at; what counts is where the file itself lies.
	f, refusal, err := existing(&cfg)
	if err == nil && f == nil {
		f, err = create(&cfg)
	} else if err == nil {
		s.report.Adopted = true
	}
	if err != nil {
		return nil, fmt.Errorf("session file %s: %w", cfg.Path, err)
	}
	s.report.Refusal = refusal
	s.use(f)
	return s, nil
}

func (s *Store) anonymous(cfg *Config) {
	s.words = make([]atomic.Uint64, sizeWords(cfg.Slots))
	format(s.words, cfg)
}

// nameless uses a file that is nothing but memory: whoever has its descriptor can go on
// with it, and when nobody does it is gone.
func (s *Store) nameless(cfg *Config) error {
	s.report.Refusal = RefusedDisk
	if cfg.Memory != nil {
		f, refusal, err := adoptMemory(cfg)
		if err != nil {
			return err
		}
		s.report.Refusal = refusal
		if f != nil {
			s.report.Adopted = true
			s.use(f)
			return nil
		}
	}
	f, err := createMemory(cfg)
	if err == nil {
		s.use(f)
	}
	return err
}

// use has the sessions in a file.
func (s *Store) use(f *file) {
	s.file, s.words, s.slots = f, f.words, (len(f.words)-headWords)/slotWords
	s.keep()
}

// adoptMemory maps what a former store left. No file: it is refused.
func adoptMemory(cfg *Config) (*file, Refusal, error) {
	m, err := duplicate(cfg.Memory)
	if err != nil {
		return nil, 0, err
	}
	f, err := reopen(m)
	if err != nil {
		return nil, 0, errors.Join(err, m.Close())
	}
	slots, refusal, err := judge(f, cfg)
	if err != nil || refusal != NotRefused {
		return nil, refusal, errors.Join(err, f.Close(), m.Close())
	}
	return mapMemory(m, f, sizeWords(slots)*8)
}

// createMemory makes a new one.
func createMemory(cfg *Config) (*file, error) {
	m, err := memoryFile()
	if err != nil {
		return nil, err
	}
	f, err := reopen(m)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	size := sizeWords(cfg.Slots) * 8
	if err := errors.Join(f.Truncate(int64(size)), allocate(f, min(size, firstBytes))); err != nil {
		return nil, errors.Join(err, f.Close(), m.Close())
	}
	out, _, err := mapMemory(m, f, size)
	if err != nil {
		return nil, err
	}
	out.ready = min(size, firstBytes)
	format(out.words, cfg)
	return out, nil
}

// mapMemory maps f, another opening of m. It owns both.
func mapMemory(m, f *os.File, size int) (*file, Refusal, error) {
	out, err := mapFile(f, size)
	if err != nil {
		return nil, NotRefused, errors.Join(err, m.Close())
	}
	out.memory = m
	return out, NotRefused, nil
}

// Memory returns the file that the sessions are in when it has no name, for whoever
// comes after this process; nil when they are under Path. It is the Store's. A lock on
// the sessions is not one of this opening, and ends with this process.
func (s *Store) Memory() *os.File {
	if s.file == nil {
		return nil
	}
	return s.file.memory
}

// Close gives the memory back. No other method, and no counter, may be used
// during or after it.
func (s *Store) Close() error {
	if s.file == nil {
		return nil
	}
	err := s.file.close()
	s.file, s.words = nil, nil
	return err
}

// onTmpfs reports whether what lies in dir stays in memory.
func onTmpfs(dir string) (bool, error) {
	d, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	memory, err := mapfile.OnMemory(d)
	return memory, errors.Join(err, d.Close())
}

// header is what identifies a file.
func header(cfg *Config, slots int) [headSum]uint64 {
	return [headSum]uint64{magic, layout, uint64(slots), digest([]byte(cfg.Epoch)), digest(cfg.Owner[:])} // 1 to maxSlots
}

// format writes the header of an empty table, its magic last.
func format(w []atomic.Uint64, cfg *Config) {
	head := header(cfg, (len(w)-headWords)/slotWords)
	for i := 1; i < headSum; i++ {
		w[i].Store(head[i])
	}
	w[headSum].Store(headerSum(head))
	w[headMagic].Store(head[headMagic])
}

func headerSum(head [headSum]uint64) uint64 {
	var b []byte
	for _, v := range head {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return digest(b)
}

// existing maps the file that is there, if it is ours. No file and no refusal:
// there is none.
func existing(cfg *Config) (*file, Refusal, error) {
	f, err := os.OpenFile(cfg.Path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, NotRefused, nil
	}
	if errors.Is(err, syscall.ELOOP) { // a link: whoever made it wants our keys elsewhere
		return nil, RefusedForeign, nil
	}
	if err != nil {
		return nil, 0, err
	}
	slots, refusal, err := judge(f, cfg)
	if err != nil || refusal != NotRefused {
		return nil, refusal, errors.Join(err, f.Close())
	}
	m, err := mapFile(f, sizeWords(slots)*8)
	return m, NotRefused, err
}

// judge reads the header.
func judge(f *os.File, cfg *Config) (slots int, r Refusal, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	if !ours(st) {
		return 0, RefusedForeign, nil
	}
	if memory, err := mapfile.OnMemory(f); err != nil || !memory && !cfg.AnyFilesystem {
		return 0, RefusedDisk, err
	}
	var b [(headSum + 1) * 8]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return 0, RefusedForeign, nil //nolint:nilerr // too short to be one
	}
	var head [headSum]uint64
	for i := range head {
		head[i] = binary.NativeEndian.Uint64(b[i*8:])
	}
	want := header(cfg, cfg.Slots)
	n := head[headSlots]
	switch {
	case head[headMagic] != magic:
		return 0, RefusedForeign, nil
	case head[headLayout] != layout:
		return 0, RefusedVersion, nil
	case binary.NativeEndian.Uint64(b[headSum*8:]) != headerSum(head), n < 1, n > maxSlots, st.Size() != int64(sizeWords(int(n)))*8: // at most maxSlots by the case before
		return 0, RefusedTorn, nil
	case head[headEpoch] != want[headEpoch]:
		return 0, RefusedEpoch, nil
	case head[headOwner] != want[headOwner]:
		return 0, RefusedOwner, nil
	case n != want[headSlots]:
		return 0, RefusedVersion, nil // a build with another bound
	}
	return int(n), NotRefused, nil // at most maxSlots
}

// create makes a new file and puts it under its name when it is whole.
func create(cfg *Config) (*file, error) {
	name := filepath.Join(filepath.Dir(cfg.Path), "."+filepath.Base(cfg.Path)+".new")
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) { // of one that was killed here
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	size := sizeWords(cfg.Slots) * 8
	memory, err := mapfile.OnMemory(f)
	if err == nil && !memory && !cfg.AnyFilesystem {
		err = errors.New(RefusedDisk.String())
	}
	if err == nil {
		err = f.Truncate(int64(size))
	}
	if err == nil {
		err = allocate(f, min(size, firstBytes))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(name))
	}
	m, err := mapFile(f, size)
	if err != nil {
		return nil, errors.Join(err, os.Remove(name))
	}
	m.ready = min(size, firstBytes)
	format(m.words, cfg)
	if err := os.Rename(name, cfg.Path); err != nil {
		return nil, errors.Join(err, m.close(), os.Remove(name))
	}
	return m, nil
}
