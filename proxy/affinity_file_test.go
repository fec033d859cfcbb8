package proxy_test

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/mapfile"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/portable"
	"github.com/netctl/netctl/proxy"
)

func openAffinity(t testing.TB, cfg proxy.AffinityConfig) *proxy.Affinity {
	t.Helper()
	a, err := proxy.OpenAffinity(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func closeAffinity(t testing.TB, a *proxy.Affinity) {
	t.Helper()
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func clientNumber(i int) string { return fmt.Sprintf("10.9.%d.%d", i>>8, i&255) }

// opened opens a connection of each of n clients, and returns where they went.
func (c *clients) opened(n int, now uint32) []netip.AddrPort {
	out := make([]netip.AddrPort, n)
	for i := range out {
		out[i] = c.open(front, clientNumber(i), now)
	}
	return out
}

// same checks that clients go where they went.
func (c *clients) same(want []netip.AddrPort, now uint32) {
	c.t.Helper()
	moved := 0
	for i, got := range c.opened(len(want), now) {
		if got != want[i] {
			moved++
		}
	}
	if moved > 0 {
		c.t.Errorf("%d of %d clients went elsewhere", moved, len(want))
	}
}

const manyClients = 300

// AFF-2 across a restart, also with another size.
func TestAffinityOutlivesTheProcess(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints(), sticky(time.Hour))
	cfg := proxy.AffinityConfig{Entries: 4096, Path: filepath.Join(t.TempDir(), "affinity"), Epoch: "boot"}
	c.aff = openAffinity(t, cfg)
	want := c.opened(manyClients, 100)
	for _, entries := range []int{4096, 8192, 2048} {
		closeAffinity(t, c.aff)
		closeAffinity(t, c.aff)
		cfg.Entries = entries
		c.aff = openAffinity(t, cfg)
		if r := c.aff.Report(); r != (proxy.AffinityReport{Adopted: manyClients}) {
			t.Errorf("%d entries: %+v", entries, r)
		}
		c.same(want, 200)
	}
	c.aff.Sweep(c.tab, 200+3600)
	if n := c.aff.Len(); n != 0 {
		t.Errorf("%d clients after their time", n)
	}
	closeAffinity(t, c.aff)
}

func TestAffinityRefusals(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		spoil func([]byte) []byte
		epoch string
		want  mapfile.Refusal
	}{
		"somebody's": {func([]byte) []byte { return []byte("hello") }, "boot", mapfile.RefusedForeign},
		"cut":        {func(b []byte) []byte { return b[:len(b)-8] }, "boot", mapfile.RefusedTorn},
		"other boot": {func(b []byte) []byte { return b }, "another", mapfile.RefusedEpoch},
	} {
		c := newClients(t, fiveEndpoints(), sticky(time.Hour))
		cfg := proxy.AffinityConfig{Entries: 512, Path: filepath.Join(t.TempDir(), "affinity"), Epoch: "boot"}
		c.aff = openAffinity(t, cfg)
		c.opened(10, 1)
		closeAffinity(t, c.aff)
		b, err := os.ReadFile(cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(cfg.Path, tt.spoil(b), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.Epoch = tt.epoch
		c.aff = openAffinity(t, cfg)
		if r := c.aff.Report(); r != (proxy.AffinityReport{Refusal: tt.want}) || c.aff.Len() != 0 {
			t.Errorf("%s: %+v with %d clients, want %v", name, r, c.aff.Len(), tt.want)
		}
		c.same(c.opened(10, 1), 2)
		closeAffinity(t, c.aff)
	}
	for name, cfg := range map[string]proxy.AffinityConfig{
		"too many": {Entries: 1 << 30}, "a directory": {Path: t.TempDir()}, "nowhere": {Path: "/nowhere/at/all"},
	} {
		if a, err := proxy.OpenAffinity(cfg); err == nil {
			t.Errorf("%s: opened", name)
			closeAffinity(t, a)
		}
	}
}

// During a handover both processes see what the other pins.
func TestAffinityIsShared(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints(), sticky(time.Hour))
	cfg := proxy.AffinityConfig{Entries: 4096, Path: filepath.Join(t.TempDir(), "affinity")}
	old := openAffinity(t, cfg)
	c.aff = old
	want := c.opened(manyClients, 1)
	next := openAffinity(t, cfg)
	if r := next.Report(); !r.Joined || r.Adopted != manyClients {
		t.Errorf("%+v", r)
	}
	c.aff = next
	c.same(want, 2)
	want = append(want, c.open(front, "10.8.0.1", 3))
	c.aff = old
	if got := c.open(front, "10.8.0.1", 4); got != want[manyClients] {
		t.Errorf("the old process sends a client of the new one to %v, not %v", got, want[manyClients])
	}
	closeAffinity(t, old)
	c.aff = next
	c.same(want[:manyClients], 5)
	closeAffinity(t, next)
}

func exported(t testing.TB, a *proxy.Affinity) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := a.Export(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestAffinityForAnotherVersion(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints(), sticky(time.Hour))
	want := c.opened(manyClients, 100)
	stream := exported(t, c.aff)
	// At a handover.
	c.aff = proxy.NewAffinity(proxy.AffinityConfig{Entries: 8192})
	for range 2 {
		if n, err := c.aff.Import(bytes.NewReader(stream)); n != manyClients || err != nil || c.aff.Len() != manyClients {
			t.Errorf("%d imported, %v", n, err)
		}
	}
	c.same(want, 200)
	if n, err := c.aff.Import(bytes.NewReader(stream)); n != 0 || err != nil {
		t.Errorf("%d older ones imported, %v", n, err)
	}
	// At an end: what is there has another layout.
	cfg := proxy.AffinityConfig{Entries: 8192, Path: filepath.Join(t.TempDir(), "affinity")}
	c.aff = openAffinity(t, cfg)
	if _, err := c.aff.Import(bytes.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	closeAffinity(t, c.aff)
	b, err := os.ReadFile(cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	b[12]++ // the version
	if err := os.WriteFile(cfg.Path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	c.aff = openAffinity(t, cfg)
	if r := c.aff.Report(); r != (proxy.AffinityReport{Refusal: mapfile.RefusedVersion, Imported: manyClients}) {
		t.Errorf("%+v", r)
	}
	c.same(want, 200)
	closeAffinity(t, c.aff)
}

func clientMessage(client, backend []byte, port, seen uint64) portable.Message {
	var m portable.Message
	m.Uint(1, 2)
	m.Uint(2, 99)
	m.Bytes(3, client)
	m.Bytes(4, backend)
	m.Uint(5, port)
	m.Uint(6, seen)
	return m
}

func clientStream(t testing.TB, messages ...portable.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	w := portable.NewWriter(&b, portable.Title{Kind: "affinities", Version: 1})
	for _, m := range messages {
		if err := w.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDamagedAffinities(t *testing.T) {
	t.Parallel()
	begin := portable.Message{2, 1}
	addr := make([]byte, 16)
	unknown := clientMessage(addr, addr, 1, 1)
	unknown.Uint(40, 1)
	unknown.Bytes(41, addr)
	for name, tt := range map[string]struct {
		messages []portable.Message
		want     int
		err      string
	}{
		"good":        {[]portable.Message{begin, clientMessage(addr, addr, 1, 1)}, 1, ""},
		"unknown":     {[]portable.Message{{2, 99}, begin, unknown, {80, 1}}, 1, ""},
		"empty":       {nil, 0, "whose clock"},
		"not begun":   {[]portable.Message{clientMessage(addr, addr, 1, 1)}, 0, "before the clock"},
		"no client":   {[]portable.Message{begin, clientMessage(nil, addr, 1, 1)}, 0, "without its addresses"},
		"no backend":  {[]portable.Message{begin, clientMessage(addr, nil, 1, 1)}, 0, "without its addresses"},
		"short":       {[]portable.Message{begin, clientMessage(addr[:4], addr, 1, 1)}, 0, "address of 4 bytes"},
		"great port":  {[]portable.Message{begin, clientMessage(addr, addr, 1<<16, 1)}, 0, "more than 65535"},
		"great time":  {[]portable.Message{begin, clientMessage(addr, addr, 1, 1<<32)}, 0, "more than"},
		"nonsense":    {[]portable.Message{begin, clientMessage(addr, addr, 1, 1), {0x80}}, 0, "malformed"},
		"other epoch": {[]portable.Message{append(bytes.Clone(begin), 5, 1, 'x')}, 0, "another boot"},
	} {
		a := proxy.NewAffinity(proxy.AffinityConfig{Entries: 512})
		n, err := a.Import(bytes.NewReader(clientStream(t, tt.messages...)))
		if n != tt.want || a.Len() != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %d, %v; want %d, %q", name, n, err, tt.want, tt.err)
		}
	}
	c := newClients(t, fiveEndpoints(), sticky(time.Hour))
	c.opened(3, 1)
	good := exported(t, c.aff)
	for i := range good {
		a := proxy.NewAffinity(proxy.AffinityConfig{Entries: 512})
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if n, err := a.Import(bytes.NewReader(bad)); n != 0 || err == nil || a.Len() != 0 {
			t.Errorf("byte %d wrong: %d imported, %v", i, n, err)
		}
		if n, err := a.Import(bytes.NewReader(good[:i])); n != 0 || err == nil || a.Len() != 0 {
			t.Errorf("cut to %d bytes: %d imported, %v", i, n, err)
		}
	}
}

// TestMain lets the test's program play a process that pins clients until it is
// killed.
func TestMain(m *testing.M) {
	path := os.Getenv("AFFINITY_WRITER")
	if path == "" {
		os.Exit(m.Run())
	}
	tab, _ := proxy.Compile(newWorld(fiveEndpoints(), sticky(time.Hour)).in)
	none, _ := proxy.Compile(newWorld(fiveEndpoints()).in)
	f, _ := tab.Frontend(packet.AddrFrom(netip.MustParseAddr(vip4)), 80, 6)
	a, err := proxy.OpenAffinity(proxy.AffinityConfig{Entries: 512, Path: path})
	if err != nil {
		panic(err)
	}
	for g := range uint64(3) {
		go func() {
			rng := rand.New(rand.NewPCG(g, uint64(os.Getpid())))
			for now := uint32(1); ; now++ {
				client := packet.AddrFrom(netip.AddrFrom4([4]byte{10, 7, byte(rng.IntN(8)), byte(rng.IntN(256))}))
				tab.Pick(f, client, rng.Uint32(), a, now)
				if rng.IntN(500) == 0 {
					a.Sweep(none, now) // forgets all
				}
			}
		}()
	}
	os.Stdout.WriteString("writing\n")
	select {}
}

// TestAffinityKilled kills processes that share the file with one that goes on,
// at random moments: nobody waits for the dead, and whoever is pinned is pinned
// to one of the backends.
func TestAffinityKilled(t *testing.T) {
	t.Parallel()
	c := newClients(t, fiveEndpoints(), sticky(time.Hour))
	backends := map[netip.AddrPort]bool{}
	for _, e := range newWorld(fiveEndpoints()).in.Slices[0].Endpoints {
		backends[netip.AddrPortFrom(e.Address, 8080)] = true
	}
	cfg := proxy.AffinityConfig{Entries: 512, Path: filepath.Join(t.TempDir(), "affinity")}
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	for round := range rounds {
		alone := round%2 == 0
		if !alone {
			c.aff = openAffinity(t, cfg)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), "AFFINITY_WRITER="+cfg.Path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("writer said %q: %v", line, err)
		}
		<-time.After(time.Duration(rand.IntN(2000)) * time.Microsecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // killed
		if alone {
			c.aff = openAffinity(t, cfg)
		}
		if r := c.aff.Report(); r.Refusal != mapfile.NotRefused || r.Joined {
			t.Fatalf("round %d: %+v", round, r)
		}
		first := c.opened(100, 5)
		for _, b := range first {
			if !backends[b] {
				t.Fatalf("round %d: pinned to %v", round, b)
			}
		}
		c.aff.Sweep(c.tab, 6)
		if n := c.aff.Len(); n > 512 || n != c.aff.Count() {
			t.Fatalf("round %d: %d clients counted, there are %d", round, n, c.aff.Count())
		}
		closeAffinity(t, c.aff)
	}
}

// FuzzAffinityFile opens a file whose entries anybody may have written.
func FuzzAffinityFile(f *testing.F) {
	path := filepath.Join(f.TempDir(), "affinity")
	a := openAffinity(f, proxy.AffinityConfig{Entries: 512, Path: path})
	closeAffinity(f, a)
	valid, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(0), []byte{1, 2, 3})
	f.Add(uint16(512), bytes.Repeat([]byte{0xff}, 2000))
	f.Fuzz(func(t *testing.T, at uint16, b []byte) {
		data := bytes.Clone(valid)
		copy(data[4096+int(at)%(len(data)-4096):], b)
		path := filepath.Join(t.TempDir(), "affinity")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c := newClients(t, fiveEndpoints(), sticky(time.Hour))
		c.aff = openAffinity(t, proxy.AffinityConfig{Entries: 512, Path: path})
		c.opened(600, 1)
		c.aff.Sweep(c.tab, 2)
		if _, err := c.aff.Import(bytes.NewReader(exported(t, c.aff))); err != nil {
			t.Error(err)
		}
		c.aff.Sweep(c.tab, 8000)
		if c.aff.Len() != 0 {
			t.Errorf("%d clients after their time", c.aff.Len())
		}
		closeAffinity(t, c.aff)
	})
}
