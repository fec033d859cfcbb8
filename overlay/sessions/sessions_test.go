package sessions

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// made is a session whose parts can be checked against each other.
func made(n byte) *Session {
	v := &Session{
		Local: uint32(n) << 8, Remote: uint32(n), Initiator: n%2 == 0, Created: int64(n) * 1e9, Confirmed: int64(n), Handshake: int64(n) * 7,
		Sent: uint64(n) * 100, Received: uint64(n) * 10, Heard: [HeardSize]byte{n, 11: n + 1},
	}
	for i := range KeySize {
		v.Peer[i], v.Send[i], v.Receive[i] = n, n+1, n+2
	}
	return v
}

func collect(s *Store) map[int]*Session {
	return maps.Collect(s.Load)
}

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	cfg.AnyFilesystem = true
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestSessionsAreFoundAgain(t *testing.T) {
	t.Parallel()
	cfg := Config{Path: filepath.Join(t.TempDir(), "sessions"), Slots: 64, Epoch: "boot", Owner: [KeySize]byte{1}}
	s := open(t, cfg)
	want := map[int]*Session{}
	for n := range byte(20) {
		i, err := s.Alloc()
		if err != nil {
			t.Fatal(err)
		}
		s.Put(i, made(n))
		want[i] = made(n)
	}
	s.Free(7)
	delete(want, 7)
	s.Sent(3).Add(50)
	want[3].Sent += 50
	s.Received(4).Store(99)
	want[4].Received = 99
	s.Confirm(5, 77, 78)
	want[5].Confirmed, want[5].Handshake = 77, 78

	again := open(t, cfg) // while the first still has it
	if r := again.Report(); r.Refusal != NotRefused || !r.Adopted {
		t.Errorf("report %+v", r)
	}
	if d := cmp.Diff(want, collect(again)); d != "" {
		t.Errorf("sessions (-want +got):\n%s", d)
	}
	if i, err := again.Alloc(); err != nil || i != 7 {
		t.Errorf("got slot %d, %v, want the free 7", i, err)
	}
	s.Sent(3).Add(1)
	if got := again.Sent(3).Load(); got != want[3].Sent+1 {
		t.Errorf("the counter is not shared: %d", got)
	}
}

// TestSentOnlyGrows: a new session in an old slot counts on, whatever it says.
func TestSentOnlyGrows(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Slots: 4})
	i, err := s.Alloc()
	if err != nil {
		t.Fatal(err)
	}
	s.Put(i, made(1))
	s.Sent(i).Add(1000)
	s.Free(i)
	s.Put(i, &Session{})
	if got := s.Sent(i).Load(); got != 1100 {
		t.Errorf("counts from %d, want 1100", got)
	}
	s.Put(i, &Session{Sent: 5000})
	if got := s.Sent(i).Load(); got != 5000 {
		t.Errorf("counts from %d, want 5000", got)
	}
}

func TestKeysAreWiped(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sessions")
	s := open(t, Config{Path: path, Slots: 16})
	i, err := s.Alloc()
	if err != nil {
		t.Fatal(err)
	}
	v := made(200)
	s.Put(i, v)
	look := func() bool {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(b, v.Send[:]) || bytes.Contains(b, v.Receive[:]) || bytes.Contains(b, v.Peer[:])
	}
	if !look() {
		t.Error("the session is not in the file")
	}
	s.Free(i)
	if look() {
		t.Error("its keys are still there after its end")
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestFull(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Slots: 3})
	for range 3 {
		if _, err := s.Alloc(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Alloc(); !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want ErrFull", err)
	}
	s.Free(1)
	if err := s.Claim(1); err != nil {
		t.Error(err)
	}
	for _, i := range []int{1, 3, 1 << 30} {
		if err := s.Claim(i); !errors.Is(err, ErrFull) {
			t.Errorf("claim %d: got %v, want ErrFull", i, err)
		}
	}
	if n := s.InUse(); n != 3 {
		t.Errorf("%d in use, want 3", n)
	}
}

// TestPoisonedSlots: a counter near the end of numbers is never counted on.
func TestPoisonedSlots(t *testing.T) {
	t.Parallel()
	cfg := Config{Path: filepath.Join(t.TempDir(), "sessions"), Slots: 8}
	s := open(t, cfg)
	for n := range byte(3) {
		i, err := s.Alloc()
		if err != nil {
			t.Fatal(err)
		}
		s.Put(i, made(n))
	}
	s.Sent(1).Store(1<<64 - 1)
	s.Put(2, &Session{Created: -1})
	again := open(t, cfg)
	if got := collect(again); len(got) != 1 || got[0] == nil {
		t.Errorf("got %v, want the session of slot 0 alone", got)
	}
	s.Sent(5).Store(MaxSent + 1)
	for range 20 {
		if i, err := again.Alloc(); err == nil && (i == 1 || i == 5) {
			t.Errorf("slot %d was given out", i)
		}
	}
	if n := again.InUse(); n != 6 {
		t.Errorf("%d in use, want 6", n)
	}
}

// TestExportGivesNumbersAway: who imports and who still has the table never meet.
func TestExportGivesNumbersAway(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Slots: 4})
	i, err := s.Alloc()
	if err != nil {
		t.Fatal(err)
	}
	s.Put(i, made(1))
	for v := range s.Export {
		if own := s.Sent(i).Load(); v.Sent != 100 || own < v.Sent+lease {
			t.Errorf("exported from %d on, our own go on at %d", v.Sent, own)
		}
	}
}

func TestLock(t *testing.T) {
	t.Parallel()
	cfg := Config{Path: filepath.Join(t.TempDir(), "sessions"), Slots: 8}
	a, b := open(t, cfg), open(t, cfg)
	if err := errors.Join(a.Lock(), a.Lock()); err != nil {
		t.Fatal(err)
	}
	if err := b.Lock(); err == nil {
		t.Error("two have the lock")
	}
	if err := errors.Join(a.Unlock(), b.Lock()); err != nil {
		t.Error(err)
	}
}

func TestLinkIsNotFollowed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	open(t, Config{Path: target, Slots: 8})
	link := filepath.Join(dir, "sessions")
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	s := open(t, Config{Path: link, Slots: 8})
	if r := s.Report(); r.Refusal != RefusedForeign || r.Adopted {
		t.Errorf("report %+v", r)
	}
	if st, err := os.Lstat(link); err != nil || !st.Mode().IsRegular() {
		t.Errorf("%v, %v: want a file in the place of the link", st.Mode(), err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	good := Config{Slots: 64, Epoch: "boot", Owner: [KeySize]byte{1}}
	for name, tt := range map[string]struct {
		want   Refusal
		change func(c *Config, b []byte) []byte
	}{
		"foreign":       {RefusedForeign, func(_ *Config, b []byte) []byte { b[0]++; return b }},
		"short":         {RefusedForeign, func(_ *Config, b []byte) []byte { return b[:20] }},
		"empty":         {RefusedForeign, func(*Config, []byte) []byte { return nil }},
		"version":       {RefusedVersion, func(_ *Config, b []byte) []byte { b[8]++; return b }},
		"size":          {RefusedTorn, func(_ *Config, b []byte) []byte { return b[:len(b)-8] }},
		"header":        {RefusedTorn, func(_ *Config, b []byte) []byte { b[16]++; return b }},
		"epoch":         {RefusedEpoch, func(c *Config, b []byte) []byte { c.Epoch = "next boot"; return b }},
		"owner":         {RefusedOwner, func(c *Config, b []byte) []byte { c.Owner[5] = 5; return b }},
		"another bound": {RefusedVersion, func(c *Config, b []byte) []byte { c.Slots = 128; return b }},
	} {
		cfg := good
		cfg.Path = filepath.Join(t.TempDir(), "sessions")
		s := open(t, cfg)
		i, err := s.Alloc()
		if err != nil {
			t.Fatal(err)
		}
		s.Put(i, made(1))
		b, err := os.ReadFile(cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		b = tt.change(&cfg, b)
		if err := os.Remove(cfg.Path); err != nil { // a new inode: who has the old one mapped keeps it
			t.Fatal(err)
		}
		if err := os.WriteFile(cfg.Path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		again := open(t, cfg)
		if r := again.Report(); r.Refusal != tt.want || r.Adopted {
			t.Errorf("%s: report %+v, want refusal %q", name, r, tt.want)
		}
		if n := len(collect(again)); n != 0 {
			t.Errorf("%s: %d sessions in a clean start", name, n)
		}
		if _, err := again.Alloc(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(collect(s)); n != 1 {
			t.Errorf("%s: the one before lost its session", name)
		}
		if third := open(t, cfg); !third.Report().Adopted {
			t.Errorf("%s: the new file is refused, too: %s", name, third.Report().Refusal)
		}
	}
}

func TestNotOnADisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if memory, err := onTmpfs(dir); err != nil || memory {
		t.Skipf("%s is in memory (%v)", dir, err)
	}
	path := filepath.Join(dir, "sessions")
	s, err := Open(Config{Path: path, Slots: 8})
	if err != nil {
		t.Fatal(err)
	}
	if s.Report().Refusal != RefusedDisk {
		t.Errorf("report %+v", s.Report())
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("there is a file")
	}
	slot, err := s.Alloc()
	if err != nil {
		t.Fatal(err)
	}
	s.Put(slot, &Session{Local: 7, Created: 1})
	if err := s.Lock(); err != nil {
		t.Error(err)
	}
	// Whoever comes next goes on with the memory, whose lock ends with who had it.
	next, err := Open(Config{Path: path, Slots: 8, Memory: s.Memory()})
	if err != nil {
		t.Fatal(err)
	}
	if got := collect(next); !next.Report().Adopted || len(got) != 1 || got[slot].Local != 7 {
		t.Errorf("report %+v, sessions %v", next.Report(), got)
	}
	if err := next.Lock(); err == nil {
		t.Error("two have the lock")
	}
	kept, err := duplicate(s.Memory())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), next.Lock(), next.Close()); err != nil {
		t.Error(err)
	}
	// One with another key, or of another boot, begins anew.
	for refusal, cfg := range map[Refusal]Config{RefusedOwner: {Owner: [KeySize]byte{1}}, RefusedEpoch: {Epoch: "other"}, NotRefused: {}} {
		cfg.Path, cfg.Slots, cfg.Memory = path, 8, kept
		other, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if r := other.Report(); r.Refusal != refusal || r.Adopted != (refusal == NotRefused) || other.Memory() == nil {
			t.Errorf("%s: report %+v", refusal, r)
		}
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := kept.Close(); err != nil {
		t.Error(err)
	}
}

// TestKilledWriter kills a process while it writes sessions, again and again.
// What is found is whole, and counters never went back.
func TestKilledWriter(t *testing.T) {
	t.Parallel()
	const file = "NETCTL_TEST_SESSION_FILE"
	cfg := Config{Path: os.Getenv(file), Slots: 32, AnyFilesystem: true}
	if cfg.Path != "" {
		writeForever(t, cfg)
	}
	cfg.Path = filepath.Join(t.TempDir(), "sessions")
	s := open(t, cfg)
	var last [32]uint64
	for range 30 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWriter$")
		cmd.Env = append(os.Environ(), file+"="+cfg.Path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it has begun
			t.Fatal(err)
		}
		time.Sleep(rand.N(3 * time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		for i, v := range collect(open(t, cfg)) {
			n := v.Peer[0]
			want := made(n)
			want.Sent, want.Confirmed, want.Handshake = v.Sent, v.Confirmed, v.Handshake
			if d := cmp.Diff(want, v); d != "" {
				t.Fatalf("slot %d is torn (-want +got):\n%s", i, d)
			}
			if v.Sent < last[i] {
				t.Fatalf("slot %d: counter went from %d to %d", i, last[i], v.Sent)
			}
			last[i] = v.Sent
		}
	}
	_ = s
}

func writeForever(t *testing.T, cfg Config) {
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	collect(s)
	for {
		i, err := s.Alloc()
		if err != nil {
			for i := range cfg.Slots {
				s.Free(i)
			}
			continue
		}
		s.Put(i, made(byte(rand.IntN(200))))
		s.Sent(i).Add(64)
		if i == 0 {
			_, _ = os.Stdout.Write([]byte{'x'})
		}
	}
}

// FuzzFile opens any bytes as a session file. It is refused, or read without
// harm, and can be used afterwards.
func FuzzFile(f *testing.F) {
	cfg := Config{Slots: 4, Epoch: "boot", AnyFilesystem: true}
	words := make([]atomic.Uint64, sizeWords(cfg.Slots))
	format(words, &cfg)
	s := &Store{words: words, slots: cfg.Slots}
	for n := range byte(3) {
		i, err := s.Alloc()
		if err != nil {
			f.Fatal(err)
		}
		s.Put(i, made(n))
	}
	b := make([]byte, len(words)*8)
	for i := range words {
		for k := range 8 {
			b[i*8+k] = byte(words[i].Load() >> (8 * k))
		}
	}
	f.Add(b, uint64(3))
	f.Add(b, uint64(1<<63))
	f.Add(b[:100], uint64(0))
	f.Add([]byte{}, uint64(0))
	cfg.Path = filepath.Join(f.TempDir(), "sessions")
	f.Fuzz(func(t *testing.T, b []byte, used uint64) {
		b = bytes.Clone(b)
		if len(b) > headUsed*8+8 {
			for k := range 8 {
				b[headUsed*8+k] = byte(used >> (8 * k))
			}
		}
		_ = os.Remove(cfg.Path)
		if err := os.WriteFile(cfg.Path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, cfg)
		n := len(collect(s))
		if n > s.Slots() {
			t.Fatalf("%d sessions in %d slots", n, s.Slots())
		}
		usable := s.Slots() // but for slots whose counter nobody may go on with
		for i := range s.Slots() {
			if s.poisoned(i) {
				usable--
			}
		}
		for range s.Slots() {
			if i, err := s.Alloc(); err == nil {
				s.Put(i, made(9))
			} else if !errors.Is(err, ErrFull) {
				t.Fatal(err)
			}
		}
		if got := len(collect(s)); got != usable {
			t.Errorf("%d sessions, want %d; %d were in the file", got, usable, n)
		}
	})
}
