package ipam

import (
	"bytes"
	"net/netip"
	"testing"
)

// FuzzRecord opens a pool on arbitrary files. Whatever they hold, opening must
// not fail or hang, no address may be leased twice, and what was read must be
// there again after the compaction that follows.
func FuzzRecord(f *testing.F) {
	d := &memory{files: map[string][]byte{}, steps: -1}
	p, err := Open(Config{disk: d})
	if err != nil {
		f.Fatal(err)
	}
	if err := p.SetBlocks([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/120")}); err != nil {
		f.Fatal(err)
	}
	for _, c := range []string{"a", "b", "c"} {
		if _, err := p.Allocate(ID{c, "eth0"}, "uid-"+c, IPv4|IPv6); err != nil {
			f.Fatal(err)
		}
	}
	if _, err := p.Release(ID{"b", "eth0"}); err != nil {
		f.Fatal(err)
	}
	journal := bytes.Clone(d.files[journalName])
	if err := p.compact(); err != nil {
		f.Fatal(err)
	}
	f.Add(d.files[snapshotName], journal)
	f.Add([]byte(nil), journal)
	f.Add(journal, d.files[snapshotName])
	f.Add([]byte("00000000 {}\n"), []byte("\n\n00000000"))
	f.Fuzz(func(t *testing.T, snapshot, journal []byte) {
		d := &memory{files: map[string][]byte{snapshotName: sign(snapshot), journalName: sign(journal)}, steps: -1}
		p, err := Open(Config{disk: d})
		if err != nil {
			return // a newer format
		}
		seen := map[netip.Addr]bool{}
		for _, l := range p.Leases() {
			for _, a := range l.Addresses {
				if seen[a] {
					t.Fatalf("%s is leased twice", a)
				}
				seen[a] = true
			}
		}
		again, err := Open(Config{disk: d})
		if err != nil {
			t.Fatalf("open again: %v", err)
		}
		if !p.Report().Broken() && len(snapshot)+len(journal) > 0 && again.Report().Broken() {
			t.Fatalf("compaction broke the record: %+v", again.Report())
		}
		if got, want := len(again.Leases()), len(p.Leases()); got != want {
			t.Fatalf("%d leases after compaction, want %d", got, want)
		}
	})
}

// sign gives every line a checksum that holds, so that fuzzing gets behind it.
func sign(data []byte) []byte {
	var out []byte
	for l := range bytes.Lines(data) {
		text, complete := bytes.CutSuffix(l, []byte("\n"))
		if len(text) < 9 {
			out = append(out, l...)
			continue
		}
		out = append(out, checksum(text[9:])...)
		out = append(out, ' ')
		out = append(out, text[9:]...)
		if complete {
			out = append(out, '\n')
		}
	}
	return out
}
