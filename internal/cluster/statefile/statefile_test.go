package statefile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/netctl/netctl/internal/model"
)

// sample has every kind, and the values that an encoding easily confuses: nil
// and empty selectors, invalid addresses, false and true.
func sample() *Content {
	return &Content{
		Cluster:  "c0ffee",
		Settings: &Settings{PodSubnets: []netip.Prefix{netip.MustParsePrefix("fd00::/56")}, DNSDomain: "cluster.local", ClusterDNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}},
		State: &model.State{
			Revision: 7, Synced: true,
			Nodes: []*model.Node{
				{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:51820")}},
				{Name: "n2"},
			},
			Namespaces: []*model.Namespace{{Name: "default", Labels: map[string]string{"a": ""}}},
			Pods: []*model.Pod{{
				Name: model.Name{Namespace: "default", Name: "p"}, HostNetwork: true,
				Ports: []model.ContainerPort{{Name: "http", Port: 80, Protocol: model.TCP}, {HostIP: netip.MustParseAddr("::"), HostPort: 65535}},
			}},
			Services:       []*model.Service{{Name: model.Name{Namespace: "default", Name: "s"}, AffinityTimeout: 3 * time.Hour, Type: model.ClusterIP}},
			EndpointSlices: []*model.EndpointSlice{{Name: model.Name{Namespace: "default", Name: "s-1"}, Endpoints: []model.Endpoint{{Address: netip.MustParseAddr("10.1.0.1"), Ready: true}, {Address: netip.MustParseAddr("fd00::1"), Zone: "z", HintZones: []string{"z"}}}}},
			NetworkPolicies: []*model.NetworkPolicy{{
				Ingress: []model.PolicyRule{{Peers: []model.PolicyPeer{{Pods: &model.Selector{}}, {CIDR: netip.MustParsePrefix("0.0.0.0/0")}}}, {}},
			}},
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
			Blocks:       []model.Block{{CIDR: netip.MustParsePrefix("10.1.0.0/24"), Node: "n1"}},
			BlockPools:   []model.BlockPool{{CIDR: netip.MustParsePrefix("10.1.0.0/16"), Bits: 24}},
		},
	}
}

var comparable = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	if _, err := Read(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v, want fs.ErrNotExist", err)
	}
	want := sample()
	for range 2 { // the second time there is one
		if err := Write(path, want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, comparable); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file %v, %v; want mode 0600", info, err)
	}
	if list, err := os.ReadDir(filepath.Dir(path)); err != nil || len(list) != 1 {
		t.Errorf("files beside it: %v, %v", list, err)
	}
	if err := Write(filepath.Join(t.TempDir(), "none", "state"), want); err == nil {
		t.Error("writing into a directory that does not exist succeeded")
	}
}

func encoded(t testing.TB, c *Content) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := encode(&b, c); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestDamage: whichever byte is wrong or missing, the file is refused.
func TestDamage(t *testing.T) {
	t.Parallel()
	good := encoded(t, sample())
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		if _, err := decode(bad); err == nil {
			t.Errorf("byte %d changed: accepted", i)
		}
		if _, err := decode(good[:i]); err == nil {
			t.Errorf("cut to %d bytes: accepted", i)
		}
	}
	if _, err := decode(append(bytes.Clone(good), 0)); err == nil {
		t.Error("one byte more: accepted")
	}
	unsynced := sample()
	unsynced.State.Synced = false
	for name, c := range map[string]*Content{"no state": {}, "incomplete state": unsynced} {
		if _, err := decode(encoded(t, c)); err == nil || !strings.Contains(err.Error(), "no complete state") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestForeignContent: a file of somebody who knows the format.
func TestForeignContent(t *testing.T) {
	t.Parallel()
	bad := netip.Addr{}
	for name, spoil := range map[string]func(*model.State){
		"comes after":   func(s *model.State) { s.Nodes[0], s.Nodes[1] = s.Nodes[1], s.Nodes[0] },
		"n1 comes":      func(s *model.State) { s.Nodes[1].Name = "n1" },
		"address":       func(s *model.State) { s.Nodes[0].Addresses = append(s.Nodes[0].Addresses, bad) },
		"invalid":       func(s *model.State) { s.Pods[0].Addresses = []netip.Addr{bad} },
		"%eth0":         func(s *model.State) { s.Pods[0].Ports[0].HostIP = netip.MustParseAddr("fe80::1%eth0") },
		"::ffff:":       func(s *model.State) { s.Services[0].ClusterIPs = []netip.Addr{netip.MustParseAddr("::ffff:10.0.0.1")} },
		"keeps clients": func(s *model.State) { s.Services[0].AffinityTimeout = -1 },
		"invalid IP":    func(s *model.State) { s.EndpointSlices[0].Endpoints[0].Address = bad },
		"range":         func(s *model.State) { s.ServiceCIDRs[0] = netip.Prefix{} },
		"invalid Pref":  func(s *model.State) { s.Blocks[0].CIDR = netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), 99) },
		"rang":          func(s *model.State) { s.NetworkPolicies[0].Ingress[0].Peers[1].Except = []netip.Prefix{{}} },
	} {
		c := sample()
		spoil(c.State)
		if _, err := decode(encoded(t, c)); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "not what a source makes") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOddFiles: what is no file, and what an interrupted Write left.
func TestOddFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, dir, "/dev/zero"} {
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
	path := filepath.Join(dir, "state")
	old, fresh := filepath.Join(dir, ".state.1"), filepath.Join(dir, ".state.2")
	for _, name := range []string{old, fresh} {
		if err := os.WriteFile(name, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hour := time.Now().Add(-time.Hour)
	if err := os.Chtimes(old, hour, hour); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, sample()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Error("what an interrupted writer left is still there")
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Error("what another writer is at was deleted")
	}
}

func TestAge(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	if _, err := Age(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := Write(path, sample()); err != nil {
		t.Fatal(err)
	}
	hour := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, hour, hour); err != nil {
		t.Fatal(err)
	}
	if age, err := Age(path); err != nil || age < time.Hour {
		t.Errorf("age %v, %v; want an hour", age, err)
	}
	if err := Touch(path); err != nil {
		t.Fatal(err)
	}
	if age, err := Age(path); err != nil || age >= time.Hour {
		t.Errorf("age %v, %v after it was said to be the newest", age, err)
	}
}

// FuzzCacheFile decodes what anybody might have put there, with a checksum that
// matches, so that the fuzzer comes past it.
func FuzzCacheFile(f *testing.F) {
	good := encoded(f, sample())
	f.Add(good[len(magic) : len(good)-sumSize])
	f.Add([]byte{})
	foreign := sample()
	foreign.State.Nodes[0].Addresses[0] = netip.Addr{}
	bad := encoded(f, foreign)
	f.Add(bad[len(magic) : len(bad)-sumSize])
	f.Fuzz(func(t *testing.T, body []byte) {
		data := append([]byte(magic), body...)
		data = binary.BigEndian.AppendUint32(data, crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)))
		c, err := decode(data)
		if err == nil && (c.State == nil || !c.State.Synced || check(c.State) != nil) {
			t.Error("accepted without a complete state")
		}
		if _, err := decode(body); err == nil && !bytes.HasPrefix(body, []byte(magic)) {
			t.Error("accepted without the magic")
		}
	})
}
