package offload_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/offload"
	"github.com/netctl/netctl/internal/packet"
)

func need(t *testing.T) {
	t.Helper()
	if err := errors.Join(kernel.HaveTUN(), kernel.HaveNamespaces()); err != nil {
		t.Skipf("needs TUNs in network namespaces: %v", err)
	}
}

// faulty is a TUN whose kernel breaks super-packets of some types.
type faulty struct {
	*kernel.TUN

	supers      map[uint8]int // by type, those that were seen in either direction
	read, write func(gso uint8, buf []byte) bool
}

func (f *faulty) Read(buf []byte) (int, error) {
	n, err := f.TUN.Read(buf)
	if err == nil && n > packet.VNetLen {
		f.supers[buf[1]]++
		if f.read != nil && !f.read(buf[1], buf[:n]) {
			return 0, kernel.ErrAgain
		}
	}
	return n, err
}

func (f *faulty) Write(buf []byte) (int, error) {
	f.supers[buf[1]]++
	if f.write != nil && !f.write(buf[1], buf) {
		return len(buf), nil
	}
	return f.TUN.Write(buf)
}

// This kernel's work, and it is super-packets that they are tested with.
func TestWhatWorks(t *testing.T) {
	t.Parallel()
	need(t)
	seen := map[uint8]int{}
	r, err := offload.Through(func(t *kernel.TUN) offload.Link { return &faulty{TUN: t, supers: seen} })
	if err != nil {
		t.Fatal(err)
	}
	if !r.Works.Checksum || !r.Works.TSO || r.Why != "tested" {
		t.Errorf("found %+v", r)
	}
	if seen[packet.GSOTCPv4] < 2 || r.Works.USO && seen[packet.GSOUDPL4] < 2 {
		t.Errorf("packets by type: %v", seen)
	}
}

// A boot is tested once.
func TestFindRemembers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "offloads")
	want := offload.Result{Works: kernel.Offloads{Checksum: true}, Why: "as the file says"}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"boot":"b1","result":{"Works":{"Checksum":true},"Why":"as the file says"}}`)
	if r, err := offload.Find(path, "b1"); err != nil || r != want {
		t.Errorf("this boot: %+v, %v", r, err)
	}
	need(t)
	for _, text := range []string{`{"boot":"b0","result":{"Works":{},"Why":"another boot"}}`, `{"boot":"b1","res`} {
		write(text)
		first, err := offload.Find(path, "b1")
		if err != nil || first.Why != "tested" {
			t.Errorf("after %s: %+v, %v", text, first, err)
		}
		if again, err := offload.Find(path, "b1"); err != nil || again != first {
			t.Errorf("again: %+v, %v", again, err)
		}
	}
	if r, err := offload.Find(filepath.Join(path, "nowhere"), "b1"); err == nil || r.Why != "tested" {
		t.Errorf("no room for the file: %+v, %v", r, err)
	}
}

// What a kernel breaks is found, and the rest is kept.
func TestWhatIsBroken(t *testing.T) {
	t.Parallel()
	need(t)
	tcp := func(gso uint8) bool { return gso == packet.GSOTCPv4 || gso == packet.GSOTCPv6 }
	udp := func(gso uint8) bool { return gso == packet.GSOUDPL4 }
	spoil := func(is func(uint8) bool) func(uint8, []byte) bool {
		return func(gso uint8, buf []byte) bool {
			if is(gso) {
				buf[len(buf)-1500] ^= 1
			}
			return true
		}
	}
	lose := func(is func(uint8) bool) func(uint8, []byte) bool {
		return func(gso uint8, _ []byte) bool { return !is(gso) }
	}
	all := kernel.AllOffloads()
	for _, c := range []struct {
		name        string
		read, write func(uint8, []byte) bool
		want        kernel.Offloads
		says        []string
	}{
		{"TCP out of the device is spoilt", spoil(tcp), nil, kernel.Offloads{Checksum: true, USO: all.USO}, []string{"TCP super-packets", "out of"}},
		{"TCP into the device is spoilt", nil, spoil(tcp), kernel.Offloads{Checksum: true, USO: all.USO}, []string{"TCP super-packets", "into"}},
		{"TCP into the device is lost", nil, lose(tcp), kernel.Offloads{Checksum: true, USO: all.USO}, []string{"TCP super-packets", "0 of 4000"}},
		{"UDP out of the device is spoilt", spoil(udp), nil, kernel.Offloads{Checksum: true, TSO: true}, []string{"UDP super-packets", "out of"}},
		{"UDP out of the device is lost", lose(udp), nil, kernel.Offloads{Checksum: true, TSO: true}, []string{"UDP super-packets", "0 of 3900"}},
		{"UDP into the device is spoilt", nil, spoil(udp), kernel.Offloads{Checksum: true, TSO: true}, []string{"UDP super-packets", "into"}},
		{"all of them are", spoil(func(gso uint8) bool { return gso != packet.GSONone }), nil, kernel.Offloads{Checksum: true}, []string{"TCP super-packets", "UDP super-packets"}},
		{
			"checksums that are left to the device", nil,
			func(_ uint8, buf []byte) bool { return buf[0]&packet.VNetNeedsCsum == 0 },
			kernel.Offloads{},
			[]string{"checksums do not work"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			granted := kernel.Offloads{}
			r, err := offload.Through(func(t *kernel.TUN) offload.Link {
				if granted == (kernel.Offloads{}) {
					granted = t.Offloads()
				}
				return &faulty{TUN: t, supers: map[uint8]int{}, read: c.read, write: c.write}
			})
			if err != nil {
				t.Fatal(err)
			}
			if !granted.USO { // an old kernel
				if c.want.USO = false; strings.HasPrefix(c.name, "UDP") {
					t.Skip("this kernel knows no UDP super-packets")
				}
			}
			if r.Works != c.want {
				t.Errorf("works %+v, want %+v (%s)", r.Works, c.want, r.Why)
			}
			for _, w := range c.says {
				if granted.USO && !strings.Contains(r.Why, w) {
					t.Errorf("it says %q, without %q", r.Why, w)
				}
			}
		})
	}
}
