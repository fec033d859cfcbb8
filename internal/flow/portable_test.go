package flow_test

import (
	"bytes"
	"compress/gzip"
	"flag"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/mapfile"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/portable"
)

// fillAnything puts n connections in all states and with all fields into a table.
func fillAnything(t testing.TB, tab *flow.Table, n int, rng *rand.Rand) {
	t.Helper()
	anything := func() flow.Entry {
		e := stamp(rng.Uint32(), rng.Uint32N(7))
		e.FrontSlot, e.Flags = uint16(rng.Uint32()), flow.Flags(rng.Uint32N(32))&^flow.FlagReverse
		return e
	}
	for i := range n {
		k := tupleOf(i)
		k.Zone = uint16(rng.Uint32N(3))
		rev := packet.Tuple{Src: k.Dst, Dst: k.Src, SrcPort: k.DstPort, DstPort: k.SrcPort ^ 1, Proto: k.Proto}
		f, r := anything(), anything()
		ref, res := tab.Insert(&k, &rev, &f, &r, 5)
		if res != flow.Inserted {
			t.Fatal(res)
		}
		var e flow.Entry
		for range rng.IntN(6) {
			back, _ := tab.Pair(ref, &rev, &e)
			tab.Seen(ref, rng.IntN(1<<16), uint8(rng.Uint32N(32)), 6+rng.Uint32N(9))
			tab.Seen(back, rng.IntN(1<<16), uint8(rng.Uint32N(32)), 6+rng.Uint32N(9))
		}
	}
}

func export(t testing.TB, tab *flow.Table) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tab.Export(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestExportImport(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, n := range []int{0, 1, 400} {
		tab := open(t, flow.Config{Slots: 1 << 14, Epoch: "boot"}) // so large that nothing gives way
		fillAnything(t, tab, n, rng)
		next := open(t, flow.Config{Slots: 1 << 12, Epoch: "boot"})
		for range 2 { // again: everything is replaced by the same
			if got, err := next.Import(bytes.NewReader(export(t, tab))); err != nil || got != n {
				t.Fatalf("imported %d, %v; want %d", got, err, n)
			}
			compare(t, dump(next), dump(tab))
			check(t, next)
		}
	}
}

// What has happened since an earlier export comes with the next one; what else is
// in the table stays.
func TestImportBringsUpToDate(t *testing.T) {
	t.Parallel()
	old, next := open(t, flow.Config{Slots: 256}), open(t, flow.Config{Slots: 256})
	ref, _ := insert(old, tupleOf(1), 3, 1)
	insert(old, tupleOf(2), 3, 1)
	insert(next, tupleOf(9), 4, 1)
	for range 2 {
		if n, err := next.Import(bytes.NewReader(export(t, old))); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		compare(t, without(dump(next), tupleOf(9)), dump(old))
		establish(t, old, ref)
	}
	if next.OwnerLen(3) != 2 || next.OwnerLen(4) != 1 {
		t.Errorf("owners have %d and %d", next.OwnerLen(3), next.OwnerLen(4))
	}
	check(t, next)
}

func without(m map[packet.Tuple]flow.Entry, k packet.Tuple) map[packet.Tuple]flow.Entry {
	delete(m, k)
	delete(m, k.Reverse())
	return m
}

// A connection whose tuples are taken by another, or for which there is no room,
// is left out; nothing is evicted.
func TestImportTakesWhatFits(t *testing.T) {
	t.Parallel()
	old := open(t, flow.Config{Slots: 1 << 10})
	for i := range 200 {
		insert(old, tupleOf(i), 1, 1)
	}
	small := open(t, flow.Config{Slots: 64, PerOwner: 10})
	own := tupleOf(1)
	rev := own.Reverse()
	rev.SrcPort++
	mine := stamp(77, 2)
	if _, res := small.Insert(&own, &rev, &mine, &mine, 1); res != flow.Inserted {
		t.Fatal(res)
	}
	n, err := small.Import(bytes.NewReader(export(t, old)))
	if err != nil || n != 10 || small.Len() != 11 {
		t.Errorf("%d of owner 1 imported, %v; %d in the table", n, err, small.Len())
	}
	if e := state(t, small, own); e != flow.New {
		t.Errorf("the table's own is %v", e)
	}
	check(t, small)
}

// TestDamagedImport: whatever is wrong with a stream, nothing of it is taken.
func TestDamagedImport(t *testing.T) {
	t.Parallel()
	old := open(t, flow.Config{Slots: 256, Epoch: "boot"})
	fillAnything(t, old, 3, rand.New(rand.NewPCG(1, 1)))
	good := export(t, old)
	tab := open(t, flow.Config{Slots: 256, Epoch: "boot"})
	refused := func(b []byte) bool {
		n, err := tab.Import(bytes.NewReader(b))
		return n == 0 && err != nil && tab.Len() == 0
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if !refused(bad) || !refused(good[:i]) {
			t.Errorf("byte %d wrong, or the last one: accepted", i)
		}
	}
	other := open(t, flow.Config{Slots: 256, Epoch: "another boot"})
	if n, err := other.Import(bytes.NewReader(good)); n != 0 || err == nil || !strings.Contains(err.Error(), "from another boot") {
		t.Errorf("of another epoch: %d, %v", n, err)
	}
	huge := open(t, flow.Config{Slots: 256})
	if n, err := huge.Import(io.MultiReader(bytes.NewReader(good[:15]), zeros{})); n != 0 || err == nil {
		t.Errorf("an endless stream: %d, %v", n, err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); b[0] = 1; return len(b), nil }

// fieldsOf are a connection's, as the package writes them.
type fieldsOf map[uint64]any

// message makes a message of numbers, bytes and messages.
func message(f fieldsOf) portable.Message {
	var m portable.Message
	for n := range uint64(100) {
		switch v := f[n].(type) {
		case int:
			m.Uint(n, uint64(v))
		case []byte:
			m.Bytes(n, v)
		case fieldsOf:
			m.Bytes(n, message(v))
		}
	}
	return m
}

func written(t testing.TB, messages ...portable.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	w := portable.NewWriter(&b, portable.Title{Kind: "flows", Version: 1})
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

// TestImportOfOtherVersions writes what a later version may write, or a liar.
func TestImportOfOtherVersions(t *testing.T) {
	t.Parallel()
	a, b := packet.Addr{15: 1}, packet.Addr{15: 2}
	direction := func(src, dst packet.Addr, more fieldsOf) fieldsOf {
		f := fieldsOf{1: src[:], 2: dst[:], 7: src[:], 8: dst[:], 3: 1000, 5: 6}
		maps.Copy(f, more)
		return f
	}
	connection := func(more, first fieldsOf) portable.Message {
		f := fieldsOf{1: 2, 2: direction(a, b, first), 3: direction(b, a, nil), 4: 9, 5: int(flow.Established)}
		maps.Copy(f, more)
		return message(f)
	}
	table := message(fieldsOf{1: 1})
	for _, tt := range []struct {
		name     string
		messages []portable.Message
		want     int
		err      string
	}{
		{"as it is", []portable.Message{table, connection(nil, nil)}, 1, ""},
		{"new fields", []portable.Message{message(fieldsOf{1: 1, 50: 3, 51: []byte("x")}), connection(fieldsOf{60: 1, 61: []byte("y")}, fieldsOf{70: 1, 71: []byte("z")})}, 1, ""},
		{"new message", []portable.Message{message(fieldsOf{1: 77, 2: 3}), table, message(fieldsOf{2: []byte("?")}), connection(nil, nil)}, 1, ""},
		{"new state", []portable.Message{table, connection(fieldsOf{5: 99}, nil)}, 0, ""},
		{"new flag", []portable.Message{table, connection(nil, fieldsOf{16: 64})}, 0, ""},
		{"twice", []portable.Message{table, connection(nil, nil), connection(nil, nil)}, 2, ""},
		{"empty", nil, 0, "whose clock"},
		{"no table", []portable.Message{connection(nil, nil)}, 0, "whose clock"},
		{"no state", []portable.Message{table, connection(fieldsOf{5: 0}, nil)}, 0, "state 0"},
		{"great owner", []portable.Message{table, connection(fieldsOf{4: 1 << 32}, nil)}, 0, "owner"},
		{"no reverse", []portable.Message{table, connection(fieldsOf{3: 0}, nil)}, 0, "without its addresses"},
		{"to itself", []portable.Message{table, connection(fieldsOf{3: direction(a, b, nil)}, nil)}, 0, "damaged"},
		{"short address", []portable.Message{table, connection(nil, fieldsOf{1: []byte{1, 2}})}, 0, "address of 2 bytes"},
		{"great port", []portable.Message{table, connection(nil, fieldsOf{4: 1 << 16})}, 0, "field 4"},
		{"great time", []portable.Message{table, connection(nil, fieldsOf{17: 1 << 40})}, 0, "field 17"},
		{"nonsense", []portable.Message{table, connection(nil, nil), {0x80}}, 0, "malformed"},
		{"nonsense inside", []portable.Message{table, connection(nil, nil), connection(fieldsOf{2: []byte{0x80}}, nil)}, 0, "malformed"},
	} {
		tab := open(t, flow.Config{Slots: 256})
		n, err := tab.Import(bytes.NewReader(written(t, tt.messages...)))
		if n != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %d, %v; want %d and %q", tt.name, n, err, tt.want, tt.err)
		}
		if err != nil && tab.Len() > 0 {
			t.Errorf("%s: %d connections of a stream that was refused", tt.name, tab.Len())
		}
		check(t, tab)
	}
}

// otherVersion is a table's file of another layout.
func otherVersion() *mapfile.Format {
	return &mapfile.Format{
		Name: "flow table", Magic: 0x776f6c666c74636e, Version: 3, Unit: 64, Min: 1, Max: 1 << 20,
		Words: func(units int) int { return mapfile.HeadWords + units },
	}
}

// TestHandoverToAnotherVersion: the successor cannot join the file, begins one of
// its own and imports. What is tried here is that both directions are one: the
// other version is older or newer.
func TestHandoverToAnotherVersion(t *testing.T) {
	t.Parallel()
	cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: 256, Epoch: "boot"}
	old, err := mapfile.Open(otherVersion(), mapfile.Config{Path: cfg.Path, Units: 100, Epoch: "boot"})
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Share(); err != nil {
		t.Fatal(err)
	}
	cfg.Join = true
	tab := open(t, cfg)
	if r := tab.Report(); r != (flow.Report{Refusal: flow.RefusedVersion}) {
		t.Errorf("report %+v", r)
	}
	exported := open(t, flow.Config{Slots: 256, Epoch: "boot"})
	fillAnything(t, exported, 40, rand.New(rand.NewPCG(1, 1)))
	if n, err := tab.Import(bytes.NewReader(export(t, exported))); n != 40 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	closeTable(t, tab)
	tab = open(t, cfg)
	defer closeTable(t, tab)
	if r := tab.Report(); r != (flow.Report{Adopted: 40}) {
		t.Errorf("the next start: %+v", r)
	}
	compare(t, dump(tab), dump(exported))
}

// TestEndAfterAnotherVersion: who has handed over to another version leaves
// nothing: its connections are the other one's, which knows better by then.
func TestEndAfterAnotherVersion(t *testing.T) {
	t.Parallel()
	cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: 256, Epoch: "boot"}
	old := open(t, cfg)
	insert(old, tupleOf(1), 1, 1)
	next, err := mapfile.Open(otherVersion(), mapfile.Config{Path: cfg.Path, Units: 100, Epoch: "boot", Join: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := next.Share(); err != nil {
		t.Fatal(err)
	}
	insert(old, tupleOf(2), 1, 1)
	closeTable(t, old)
	if list, err := os.ReadDir(filepath.Dir(cfg.Path)); err != nil || len(list) != 1 {
		t.Errorf("files %v, %v; want the other's alone", list, err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

// TestEndBeforeAnotherVersion: a process that ends by Close serves a successor of
// another version, once.
func TestEndBeforeAnotherVersion(t *testing.T) {
	t.Parallel()
	cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: 256, Epoch: "boot"}
	tab := open(t, cfg)
	fillAnything(t, tab, 40, rand.New(rand.NewPCG(1, 1)))
	want := dump(tab)
	closeTable(t, tab)
	ours, err := os.ReadFile(cfg.Path)
	if err != nil {
		t.Fatal(err)
	}
	ours[flow.HeadVersion+4]++
	rewrite := func() {
		if err := os.WriteFile(cfg.Path, ours, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rewrite()
	tab = open(t, cfg)
	if r := tab.Report(); r != (flow.Report{Refusal: flow.RefusedVersion, Imported: 40}) {
		t.Errorf("report %+v", r)
	}
	compare(t, dump(tab), want)
	if _, err := os.Stat(cfg.Path + ".portable"); err == nil {
		t.Error("what was left is still there: a crash would bring it back")
	}
	// The same after a crash: nothing was left.
	rewrite()
	crashed := open(t, flow.Config{Path: cfg.Path, Slots: 256, Epoch: "boot", Join: true})
	if r := crashed.Report(); r != (flow.Report{Refusal: flow.RefusedVersion}) || crashed.Len() != 0 {
		t.Errorf("report %+v", r)
	}
	closeTable(t, tab)
	closeTable(t, crashed)
	// What was left is no such thing.
	rewrite()
	if err := os.WriteFile(cfg.Path+".portable", []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	tab = open(t, cfg)
	defer closeTable(t, tab)
	if r := tab.Report(); r.ImportErr == nil || tab.Len() != 0 {
		t.Errorf("report %+v", r)
	}
}

var update = flag.Bool("update", false, "write testdata anew")

// goldens are a table of every state in the layout and in the encoding of today.
// When the first cannot be opened any more the layout has changed and its version
// must; the second must be readable for ever.
const (
	goldenFile   = "testdata/flows-2.gz"
	goldenStream = "testdata/flows-1.portable.gz"
)

func TestGoldens(t *testing.T) {
	t.Parallel()
	want := open(t, flow.Config{Slots: 128, Epoch: "golden"})
	fillAnything(t, want, 30, rand.New(rand.NewPCG(3, 4)))
	cfg := flow.Config{Path: filepath.Join(t.TempDir(), "flows"), Slots: 128, Epoch: "golden"}
	if *update {
		tab := open(t, cfg)
		if _, err := tab.Import(bytes.NewReader(export(t, want))); err != nil {
			t.Fatal(err)
		}
		closeTable(t, tab)
		file, err := os.ReadFile(cfg.Path)
		if err != nil {
			t.Fatal(err)
		}
		pack(t, goldenFile, file)
		pack(t, goldenStream, export(t, want))
	}
	if err := os.WriteFile(cfg.Path, unpack(t, goldenFile), 0o600); err != nil {
		t.Fatal(err)
	}
	tab := open(t, cfg)
	defer closeTable(t, tab)
	if r := tab.Report(); r != (flow.Report{Adopted: 30}) {
		t.Errorf("report %+v: the layout has changed, raise its version", r)
	}
	compare(t, dump(tab), dump(want))
	again := open(t, flow.Config{Slots: 128, Epoch: "golden"})
	if n, err := again.Import(bytes.NewReader(unpack(t, goldenStream))); n != 30 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	compare(t, dump(again), dump(want))
}

func pack(t *testing.T, path string, b []byte) {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func unpack(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzImport imports a message that anybody may have written, after whole ones.
func FuzzImport(f *testing.F) {
	old := open(f, flow.Config{Slots: 256})
	fillAnything(f, old, 3, rand.New(rand.NewPCG(1, 1)))
	s, err := portable.Read(bytes.NewReader(export(f, old)), portable.Title{Kind: "flows", Version: 1}, 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	var whole []portable.Message
	for m := range s.Messages() {
		whole = append(whole, m)
		f.Add([]byte(m))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		tab := open(t, flow.Config{Slots: 256})
		n, err := tab.Import(bytes.NewReader(written(t, append(whole[:3:3], b)...)))
		if err != nil && (n != 0 || tab.Len() != 0) || err == nil && tab.Len() < 2 {
			t.Errorf("%d imported, %d in the table, %v", n, tab.Len(), err)
		}
		check(t, tab)
		for k := range dump(tab) {
			send(tab, k, 0x17, 9)
		}
		expireAll(tab, 100)
	})
}

// What was exported while the table was in use, and then what has changed since, is
// together what there is.
func TestExportSince(t *testing.T) {
	t.Parallel()
	old, next := open(t, flow.Config{Slots: 1 << 12}), open(t, flow.Config{Slots: 1 << 12})
	var first, second bytes.Buffer
	for i := range 100 {
		ref, res := insert(old, tupleOf(i), 0, 10)
		if res != flow.Inserted {
			t.Fatal(res)
		}
		if i%2 == 0 {
			establish(t, old, ref)
		}
	}
	if err := old.Export(&first); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		send(old, tupleOf(i), packet.TCPRst, 20)
		if _, res := insert(old, tupleOf(1000+i), 0, 20); res != flow.Inserted {
			t.Fatal(res)
		}
	}
	if err := old.ExportSince(&second, 20); err != nil {
		t.Fatal(err)
	}
	if n, err := next.Import(&first); n != 100 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if n, err := next.Import(&second); n != 20 || err != nil {
		t.Fatalf("%d have changed, %v", n, err)
	}
	if next.Len() != old.Len() {
		t.Errorf("%d connections, want %d", next.Len(), old.Len())
	}
	for i := range 110 {
		k := tupleOf(i)
		if i >= 100 {
			k = tupleOf(900 + i)
		}
		if got, want := state(t, next, k), state(t, old, k); got != want {
			t.Errorf("%v is %v, want %v", k, got, want)
		}
	}
	check(t, next)
}
