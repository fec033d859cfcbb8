package mapfile_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/mapfile"
)

// numbers is a kind of file: units are words.
func numbers() *mapfile.Format {
	return &mapfile.Format{
		Name: "numbers", Magic: 0x736f72656d756e, Version: 1, Unit: 8, Min: 1, Max: 1 << 20,
		Words: func(units int) int { return mapfile.HeadWords + units },
	}
}

// open opens a file and shares it.
func open(t testing.TB, cfg mapfile.Config) *mapfile.File {
	t.Helper()
	f, err := mapfile.Open(numbers(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Share(); err != nil {
		t.Fatal(err)
	}
	return f
}

func closeFile(t testing.TB, f *mapfile.File) {
	t.Helper()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestWordsOutliveTheProcess(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{"file": filepath.Join(t.TempDir(), "f"), "memory": ""} {
		f := open(t, mapfile.Config{Path: path, Units: 10})
		key := f.Key()
		f.Words()[mapfile.HeadWords+9].Store(7)
		if f.Report() != (mapfile.Report{}) || f.Units() != 10 || len(f.Words()) != mapfile.HeadWords+10 || key == [8]uint64{} {
			t.Errorf("%s: %+v, %d units, key %v", name, f.Report(), f.Units(), key)
		}
		closeFile(t, f)
		closeFile(t, f)
		f = open(t, mapfile.Config{Path: path, Units: 20})
		if path != "" && (!f.Report().Found || f.Units() != 10 || f.Key() != key || f.Words()[mapfile.HeadWords+9].Load() != 7) {
			t.Errorf("%s: again: %+v, %d units", name, f.Report(), f.Units())
		}
		closeFile(t, f)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	flip := func(at int) func([]byte) []byte { return func(b []byte) []byte { b[at] ^= 1; return b } }
	for _, tt := range []struct {
		name  string
		spoil func([]byte) []byte
		want  mapfile.Refusal
	}{
		{"as it was", func(b []byte) []byte { return b }, mapfile.NotRefused},
		{"empty", func([]byte) []byte { return nil }, mapfile.NotRefused},
		{"short", func([]byte) []byte { return []byte("hello") }, mapfile.RefusedForeign},
		{"foreign", flip(0), mapfile.RefusedForeign},
		{"unit", flip(8), mapfile.RefusedVersion},
		{"version", flip(12), mapfile.RefusedVersion},
		{"size", flip(16), mapfile.RefusedTorn},
		{"key", flip(40), mapfile.RefusedTorn},
		{"sum", flip(96), mapfile.RefusedTorn},
		{"cut", func(b []byte) []byte { return b[:len(b)-8] }, mapfile.RefusedTorn},
		{"longer", func(b []byte) []byte { return append(b, 0) }, mapfile.RefusedTorn},
	} {
		cfg := mapfile.Config{Path: filepath.Join(t.TempDir(), "f"), Units: 10}
		f := open(t, cfg)
		f.Words()[mapfile.HeadWords].Store(7)
		closeFile(t, f)
		b, err := os.ReadFile(cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(cfg.Path, tt.spoil(b), 0o600); err != nil {
			t.Fatal(err)
		}
		f = open(t, cfg)
		if r := f.Report(); r.Refusal != tt.want || r.Found != (tt.name == "as it was") {
			t.Errorf("%s: %+v, want %v", tt.name, r, tt.want)
		}
		if got := f.Words()[mapfile.HeadWords].Load(); (got == 7) != f.Report().Found {
			t.Errorf("%s: the word is %d", tt.name, got)
		}
		closeFile(t, f)
		cfg.Epoch = "another boot"
		f = open(t, cfg)
		if r := f.Report(); r.Refusal != mapfile.RefusedEpoch || f.Words()[mapfile.HeadWords].Load() != 0 {
			t.Errorf("%s: %+v after a boot", tt.name, r)
		}
		closeFile(t, f)
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/dev/zero", link); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]mapfile.Config{
		"too few": {Units: 0}, "too many": {Units: 1<<20 + 1}, "a directory": {Path: dir, Units: 1},
		"nowhere": {Path: filepath.Join(dir, "no", "f"), Units: 1}, "a device": {Path: "/dev/null", Units: 1}, "a link": {Path: link, Units: 1},
	} {
		if f, err := mapfile.Open(numbers(), cfg); err == nil {
			t.Errorf("%s: opened", name)
			closeFile(t, f)
		}
	}
}

func TestJoin(t *testing.T) {
	t.Parallel()
	cfg := mapfile.Config{Path: filepath.Join(t.TempDir(), "f"), Units: 10}
	alone, err := mapfile.Open(numbers(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	join := cfg
	join.Join = true
	if f, err := mapfile.Open(numbers(), join); !errors.Is(err, mapfile.ErrInUse) {
		t.Errorf("joined a file that is not shared: %v %v", f, err)
	}
	// Who joins while the other one still has it alone waits for it.
	shared := make(chan error, 1)
	time.AfterFunc(100*time.Millisecond, func() { shared <- alone.Share() })
	early := open(t, join)
	if err := <-shared; err != nil {
		t.Fatal(err)
	}
	if !early.Report().Joined {
		t.Error("a file that was shared late is not joined")
	}
	closeFile(t, early)
	if f, err := mapfile.Open(numbers(), cfg); !errors.Is(err, mapfile.ErrInUse) {
		t.Errorf("opened without joining: %v %v", f, err)
	}
	second := open(t, join)
	if !second.Report().Joined || !second.Shared() || !alone.Shared() || second.Last() {
		t.Error("not joined")
	}
	alone.Words()[mapfile.HeadUser].Store(3)
	closeFile(t, alone)
	if second.Died() || second.Shared() {
		t.Error("a process that closed the file is said to have died")
	}
	if got := second.Words()[mapfile.HeadUser].Load(); got != 3 {
		t.Errorf("the word is %d, want 3", got)
	}
	closeFile(t, second)
}

// A file of another version that is in use keeps its words for who has it; who
// joins gets a new one in its place.
func TestJoinAnotherVersion(t *testing.T) {
	t.Parallel()
	cfg := mapfile.Config{Path: filepath.Join(t.TempDir(), "f"), Units: 10}
	other := numbers()
	other.Version++
	old, err := mapfile.Open(other, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Share(); err != nil {
		t.Fatal(err)
	}
	if f, err := mapfile.Open(numbers(), cfg); !errors.Is(err, mapfile.ErrInUse) {
		t.Errorf("opened without joining: %v %v", f, err)
	}
	cfg.Join = true
	next := open(t, cfg)
	if r := next.Report(); r != (mapfile.Report{Refusal: mapfile.RefusedVersion}) {
		t.Errorf("report %+v", r)
	}
	old.Words()[mapfile.HeadUser].Store(3)
	next.Words()[mapfile.HeadUser].Store(4)
	if got := old.Words()[mapfile.HeadUser].Load(); got != 3 || old.Shared() || old.Last() || !next.Last() {
		t.Errorf("the old file's word is %d, want 3; last %v, %v", got, old.Last(), next.Last())
	}
	closeFile(t, old)
	third := open(t, cfg)
	if got := third.Words()[mapfile.HeadUser].Load(); got != 4 || !third.Report().Joined {
		t.Errorf("the new file's word is %d, want 4", got)
	}
	closeFile(t, next)
	closeFile(t, third)
	if list, err := os.ReadDir(filepath.Dir(cfg.Path)); err != nil || len(list) != 1 {
		t.Errorf("files beside it: %v, %v", list, err)
	}
}

// TestMain lets the test's program play a process that holds a lock.
func TestMain(m *testing.M) {
	if path := os.Getenv("MAPFILE_HOLD"); path != "" {
		f, err := mapfile.Open(numbers(), mapfile.Config{Path: path, Units: 10, Join: true})
		if err == nil {
			err = f.Share()
		}
		if err != nil {
			panic(err)
		}
		f.Lock(&f.Words()[mapfile.HeadUser])
		os.Stdout.WriteString("locked\n")
		os.Stdin.Read(make([]byte, 1)) // until somebody speaks
		f.Unlock(&f.Words()[mapfile.HeadUser])
		os.Stdout.WriteString("unlocked\n")
		os.Stdin.Read(make([]byte, 1)) // until the end
		return
	}
	os.Exit(m.Run())
}

// holder is a process that holds the lock of a file.
type holder struct {
	cmd *exec.Cmd
	say func()
	out *bufio.Reader
}

func (h *holder) expect(t *testing.T, want string) {
	t.Helper()
	if line, err := h.out.ReadString('\n'); strings.TrimSpace(line) != want {
		t.Fatalf("holder said %q, %v; want %q", line, err, want)
	}
}

func startHolder(t *testing.T, path string) *holder {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "MAPFILE_HOLD="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &holder{cmd: cmd, out: bufio.NewReader(out), say: func() {
		if _, err := in.Write([]byte{1}); err != nil {
			t.Error(err)
		}
	}}
	h.expect(t, "locked")
	return h
}

func (h *holder) kill(t *testing.T) {
	t.Helper()
	if err := h.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = h.cmd.Wait() // killed
}

// A lock whose holder was killed is taken; a second process that comes after it
// and gets its seat changes nothing.
func TestLockOfTheDead(t *testing.T) {
	t.Parallel()
	for _, seatTaken := range []bool{false, true} {
		cfg := mapfile.Config{Path: filepath.Join(t.TempDir(), "f"), Units: 10}
		f := open(t, cfg)
		startHolder(t, cfg.Path).kill(t)
		if seatTaken {
			cfg.Join = true
			next := open(t, cfg)
			if !next.Died() || next.Died() {
				t.Error("who got the seat of the dead was not told once")
			}
			defer closeFile(t, next)
		}
		f.Lock(&f.Words()[mapfile.HeadUser])
		f.Unlock(&f.Words()[mapfile.HeadUser])
		if !f.Died() || f.Died() {
			t.Error("the death was not told once")
		}
		closeFile(t, f)
	}
}

// A death is noticed without meeting a lock.
func TestDeathIsNoticed(t *testing.T) {
	t.Parallel()
	cfg := mapfile.Config{Path: filepath.Join(t.TempDir(), "f"), Units: 10}
	f := open(t, cfg)
	defer closeFile(t, f)
	h := startHolder(t, cfg.Path)
	if f.Died() {
		t.Error("said to have died while it lives")
	}
	h.kill(t)
	if !f.Died() || f.Died() {
		t.Error("the death was not told once")
	}
}

// A holder that is stopped keeps its lock, however long that takes.
func TestLockOfTheStopped(t *testing.T) {
	t.Parallel()
	cfg := mapfile.Config{Path: filepath.Join(t.TempDir(), "f"), Units: 10}
	f := open(t, cfg)
	defer closeFile(t, f)
	h := startHolder(t, cfg.Path)
	defer h.kill(t)
	if err := h.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	w := &f.Words()[mapfile.HeadUser]
	held := w.Load()
	if f.Dead(held, 1<<30) || f.Died() {
		t.Error("a process that is stopped is taken for dead")
	}
	if err := h.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	h.say()
	h.expect(t, "unlocked")
	f.Lock(w)
	if w.Load() == held {
		t.Error("the lock still has the other's ticket")
	}
}

// A lock word that nobody wrote, or a process without a seat, is believed for a
// while and not for ever.
func TestLockWithoutSeat(t *testing.T) {
	t.Parallel()
	f := open(t, mapfile.Config{Path: filepath.Join(t.TempDir(), "f"), Units: 10})
	defer closeFile(t, f)
	for _, ticket := range []uint64{1, 200 << 56} {
		if f.Dead(ticket, 0) || !f.Dead(ticket, 1<<20) {
			t.Errorf("ticket %#x: dead %v at once, %v after a million naps", ticket, f.Dead(ticket, 0), f.Dead(ticket, 1<<20))
		}
	}
}

func TestInMemory(t *testing.T) {
	t.Parallel()
	f := open(t, mapfile.Config{Units: 1})
	if ok, err := f.InMemory(); !ok || err != nil {
		t.Errorf("anonymous memory: %v, %v", ok, err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "mapfile") //nolint:usetesting // must be in memory
	if err != nil {
		t.Skip("no tmpfs at /dev/shm:", err)
	}
	defer os.RemoveAll(dir)
	f = open(t, mapfile.Config{Path: filepath.Join(dir, "f"), Units: 1})
	defer closeFile(t, f)
	if ok, err := f.InMemory(); !ok || err != nil {
		t.Errorf("tmpfs: %v, %v", ok, err)
	}
}

// FuzzHeader opens a file that begins with anything.
func FuzzHeader(f *testing.F) {
	path := filepath.Join(f.TempDir(), "f")
	m := open(f, mapfile.Config{Path: path, Units: 4})
	closeFile(f, m)
	valid, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(valid, 0)
	f.Add(valid[:104], 8)
	f.Fuzz(func(t *testing.T, b []byte, extra int) {
		path := filepath.Join(t.TempDir(), "f")
		b = append(b, make([]byte, min(max(extra, 0), 1<<16))...)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		m := open(t, mapfile.Config{Path: path, Units: 4})
		if want := mapfile.HeadWords + m.Units(); len(m.Words()) != want {
			t.Errorf("%d words, want %d", len(m.Words()), want)
		}
		m.Words()[len(m.Words())-1].Add(1)
		closeFile(t, m)
	})
}
