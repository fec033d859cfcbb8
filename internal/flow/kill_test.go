package flow_test

import (
	"bufio"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/flow"
)

// killSlots makes a table so small that its writers meet, evict and fill it.
const killSlots = 1 << 10

// TestMain lets the test's program play a process that works on a table until
// it is killed.
func TestMain(m *testing.M) {
	path := os.Getenv("FLOW_WRITER")
	if path == "" {
		os.Exit(m.Run())
	}
	tab, err := flow.Open(flow.Config{Path: path, Slots: killSlots, Join: true})
	if err != nil {
		panic(err)
	}
	for i := range 100 {
		insert(tab, tupleOf(i), uint32(1+i%5), 1)
	}
	for g := range uint64(3) {
		go writeForever(tab, rand.New(rand.NewPCG(g, uint64(os.Getpid()))))
	}
	os.Stdout.WriteString("writing\n")
	select {}
}

// writeForever does at random what workers do, mostly what takes locks.
func writeForever(tab *flow.Table, rng *rand.Rand) {
	for {
		k := tupleOf(rng.IntN(600))
		ref, res := insert(tab, k, rng.Uint32N(6), 1)
		if res != flow.Exists {
			continue
		}
		switch rng.IntN(8) {
		case 0:
			e := stamp(rng.Uint32(), 0)
			tab.Update(ref, &e)
		case 1:
			tab.Seen(ref, 100, 0x12, 2)
		case 2:
			tab.Expire(40)
		default:
			tab.Remove(ref)
		}
	}
}

// startWriter returns once the writer is at work.
func startWriter(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "FLOW_WRITER="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("writer said %q: %v", line, err)
	}
	return cmd
}

// killSoon ends a process at some moment of the next milliseconds.
func killSoon(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	<-time.After(time.Duration(rand.IntN(2000)) * time.Microsecond)
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
}

func killRounds() int {
	if testing.Short() {
		return 10
	}
	return 100
}

// TestKilledWriter kills processes with SIGKILL in the middle of whatever they
// do; the next one must find a table in order.
func TestKilledWriter(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "flows")
	dropped := 0
	for round := range killRounds() {
		killSoon(t, startWriter(t, path))
		tab := open(t, flow.Config{Path: path, Slots: killSlots})
		if r := tab.Report(); r.Refusal != flow.NotRefused || r.Adopted == 0 {
			t.Errorf("round %d: %+v, want adopted connections", round, r)
		}
		dropped += tab.Report().Dropped
		check(t, tab)
		closeTable(t, tab)
	}
	t.Logf("%d slots were half-written", dropped)
}

// TestKilledNeighbour kills processes that share the table with one that goes on
// working: it must not wait for the dead, and be in order after the next Expire.
func TestKilledNeighbour(t *testing.T) {
	t.Parallel()
	cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: killSlots}
	tab := open(t, cfg)
	defer closeTable(t, tab)
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range killRounds() {
		cmd := startWriter(t, cfg.Path)
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			killSoon(t, cmd)
		}()
		for working := true; working; {
			select {
			case <-killed:
				working = false
			default:
			}
			k := tupleOf(rng.IntN(600))
			if ref, res := insert(tab, k, rng.Uint32N(6), 1); res == flow.Exists && rng.IntN(2) == 0 {
				tab.Remove(ref)
			}
		}
		tab.Expire(1)
		if got := tab.Stats().Mended; got < uint64(round+1) { // once for the lock, perhaps once more for the seat
			t.Fatalf("round %d: mended %d times", round, got)
		}
		check(t, tab)
	}
}

// TestKilledBesideRetired: the process that serves is killed while its
// predecessor still has the table, so its successor joins; it mends at once.
func TestKilledBesideRetired(t *testing.T) {
	t.Parallel()
	cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: killSlots, Join: true}
	retired := open(t, cfg)
	defer closeTable(t, retired)
	for range killRounds() / 5 {
		killSoon(t, startWriter(t, cfg.Path))
		tab := open(t, cfg)
		if r := tab.Report(); !r.Joined || tab.Stats().Mended != 1 {
			t.Errorf("%+v, mended %d times", r, tab.Stats().Mended)
		}
		check(t, tab)
		closeTable(t, tab)
	}
}
