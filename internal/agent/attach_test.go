package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/estate"
	"github.com/netctl/netctl/internal/agent/record"
	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/ipam"
)

// bare is an agent with the parts that touch no kernel: pool, records and a
// State with one node.
func bare(t *testing.T, node *model.Node, blocks ...model.Block) *Agent {
	t.Helper()
	dir := t.TempDir()
	a := &Agent{
		cfg: Config{Node: node.Name, StateDir: dir, Log: slog.New(slog.DiscardHandler)}, log: slog.New(slog.DiscardHandler),
		pods: map[cni.ID]*pod{}, state: new(atomic.Pointer[model.State]), keeper: new(estate.Custodian),
	}
	var err error
	if a.pool, err = ipam.Open(ipam.Config{Dir: filepath.Join(dir, "ipam"), LeakGrace: time.Nanosecond, Logger: a.log}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.pool.Close(); err != nil {
			t.Error(err)
		}
	})
	if a.records, err = record.Open(filepath.Join(dir, "ports")); err != nil {
		t.Fatal(err)
	}
	a.know(t, node, blocks...)
	return a
}

// know gives the agent a State with one node and blocks.
func (a *Agent) know(t *testing.T, node *model.Node, blocks ...model.Block) {
	t.Helper()
	s := &model.State{Revision: 1, Synced: true, Nodes: []*model.Node{node}, Blocks: blocks}
	a.state.Store(s)
	if err := a.pool.SetBlocks(s.NodePrefixes(node.Name)); err != nil {
		t.Fatal(err)
	}
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// Blocks of the two families are claimed one after the other. A pod that starts
// between them must not end up with one family for life.
func TestFamiliesWaitForEveryBlock(t *testing.T) {
	t.Parallel()
	both := prefixes("10.0.0.0/16", "fd00::/64")
	block := func(p string) model.Block { return model.Block{Node: "n", CIDR: netip.MustParsePrefix(p)} }
	for _, c := range []struct {
		name    string
		claims  bool
		pods    []netip.Prefix // on the Node object
		blocks  []model.Block
		want    ipam.Families
		missing string
	}{
		{"nothing yet", true, nil, nil, 0, "IPv4"},
		{"IPv4 only yet", true, nil, []model.Block{block("10.0.0.0/25")}, 0, "IPv6"},
		{"IPv6 only yet", true, nil, []model.Block{block("fd00::/121")}, 0, "IPv4"},
		{"both claimed", true, nil, []model.Block{block("10.0.0.0/25"), block("fd00::/121")}, ipam.IPv4 | ipam.IPv6, ""},
		{"Node object says one family", true, prefixes("10.0.0.0/25"), nil, ipam.IPv4, ""},
		{"Node object says both", false, prefixes("10.0.0.0/25", "fd00::/121"), nil, ipam.IPv4 | ipam.IPv6, ""},
		{"Node object says nothing and nothing is claimed", false, nil, nil, 0, "no pod range yet"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := bare(t, &model.Node{Name: "n", PodCIDRs: c.pods}, c.blocks...)
			a.ranges = both
			if c.claims {
				a.cfg.Blocks = new(cluster.BlockFiles)
			}
			got, err := a.families()
			if got != c.want {
				t.Errorf("families %v, want %v (%v)", got, c.want, err)
			}
			if c.missing == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, cni.ErrTryAgain) || !strings.Contains(err.Error(), c.missing) {
				t.Errorf("error %v, want one to try again that names %q", err, c.missing)
			}
		})
	}
}

func TestAllocationErrorHasNumbers(t *testing.T) {
	t.Parallel()
	a := bare(t, &model.Node{Name: "n", PodCIDRs: prefixes("10.0.0.0/29")})
	var err error
	for i := range 9 {
		if _, err = a.pool.Allocate(ipam.ID{ContainerID: strings.Repeat("c", i+1), IfName: "eth0"}, "", ipam.IPv4); err != nil {
			break
		}
	}
	got := allocationError(err)
	if !errors.Is(got, cni.ErrPoolExhausted) || !strings.Contains(got.Error(), "no free IPv4 address: 1 blocks with ") {
		t.Errorf("exhausted: %v", got)
	}
	if _, err := a.pool.Release(ipam.ID{ContainerID: "c", IfName: "eth0"}); err != nil {
		t.Fatal(err)
	}
	_, err = a.pool.Allocate(ipam.ID{ContainerID: "new", IfName: "eth0"}, "", ipam.IPv4)
	if got := allocationError(err); !errors.Is(got, cni.ErrPoolCooling) || !strings.Contains(got.Error(), "1 cooling down") {
		t.Errorf("cooling: %v", got)
	}
	if got := allocationError(errors.New("disk full")); errors.Is(got, cni.ErrPoolExhausted) || !strings.Contains(got.Error(), "disk full") {
		t.Errorf("other: %v", got)
	}
}

// Records whose namespace is gone and leases that no record has are what a
// runtime that crashed leaves.
func TestCollect(t *testing.T) {
	t.Parallel()
	a := bare(t, &model.Node{Name: "n", PodCIDRs: prefixes("10.0.0.0/25")})
	for _, c := range []string{"gone", "busy", "unrecorded"} {
		id := ipam.ID{ContainerID: c, IfName: "eth0"}
		lease, err := a.pool.Allocate(id, "", ipam.IPv4)
		if err != nil {
			t.Fatal(err)
		}
		if c == "unrecorded" {
			continue
		}
		if err := a.records.Put(&record.Record{ContainerID: c, IfName: "eth0", Netns: filepath.Join(t.TempDir(), "none"), Addresses: lease.Addresses, Ready: true}); err != nil {
			t.Fatal(err)
		}
	}
	busy := cni.ID{ContainerID: "busy", IfName: "eth0"}
	release, err := a.holds.Take(t.Context(), busy)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a lease is a leak when it is one twice
		if err := a.collect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := held(t, a); !slices.Equal(got, []string{"busy"}) {
		t.Errorf("%v hold addresses, want the one that is being added", got)
	}
	release()
	if err := a.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := held(t, a); len(got) > 0 {
		t.Errorf("after it was added %v hold addresses", got)
	}
}

// A damaged record is set aside; its pod may well be alive, so its addresses stay
// taken until somebody says that it is gone.
func TestDamagedRecordsKeepTheirAddresses(t *testing.T) {
	t.Parallel()
	a := bare(t, &model.Node{Name: "n", PodCIDRs: prefixes("10.0.0.0/25")})
	id := cni.ID{ContainerID: "c", IfName: "eth0"}
	if _, err := a.pool.Allocate(ipam.ID(id), "", ipam.IPv4); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.cfg.StateDir, "ports", "c@eth0.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := a.collect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.restore(nil); err != nil {
		t.Fatal(err)
	}
	if n := len(a.pool.Leases()); n != 1 {
		t.Errorf("%d leases, want the pod's", n)
	}
	if err := a.Del(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	_, damaged, err := a.records.All()
	if n := len(a.pool.Leases()); n != 0 || len(damaged) != 0 || err != nil {
		t.Errorf("after DEL: %d leases, damaged %v, error %v", n, damaged, err)
	}
}

// held lists the containers with leases and checks that records agree.
func held(t *testing.T, a *Agent) []string {
	t.Helper()
	var out []string
	for _, l := range a.pool.Leases() {
		out = append(out, l.ContainerID)
	}
	recs, _, err := a.records.All()
	if err != nil {
		t.Fatal(err)
	}
	var recorded []string
	for _, r := range recs {
		recorded = append(recorded, r.ContainerID)
	}
	slices.Sort(out)
	slices.Sort(recorded)
	if !slices.Equal(out, recorded) {
		t.Errorf("leases of %v, records of %v", out, recorded)
	}
	return out
}

func TestGC(t *testing.T) {
	t.Parallel()
	a := bare(t, &model.Node{Name: "n", PodCIDRs: prefixes("10.0.0.0/25")})
	for _, c := range []string{"valid", "stale"} {
		lease, err := a.pool.Allocate(ipam.ID{ContainerID: c, IfName: "eth0"}, "", ipam.IPv4)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.records.Put(&record.Record{ContainerID: c, IfName: "eth0", Netns: "/proc/self/ns/net", Addresses: lease.Addresses}); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.GC(t.Context(), []cni.ID{{ContainerID: "valid", IfName: "eth0"}, {ContainerID: "unknown", IfName: "eth0"}}); err != nil {
		t.Fatal(err)
	}
	if got := held(t, a); !slices.Equal(got, []string{"valid"}) {
		t.Errorf("left: %v", got)
	}
	if err := a.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := held(t, a); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
}

func TestPortIDsStay(t *testing.T) {
	t.Parallel()
	var p portIDs
	first, second := p.take(datapath.NoPort), p.take(datapath.NoPort)
	if first != FirstPodPort || second != FirstPodPort+1 {
		t.Fatalf("ids %d and %d", first, second)
	}
	p.release(first)
	for _, c := range []struct{ want, got datapath.PortID }{
		{FirstPodPort + 7, FirstPodPort + 7}, // taken over
		{FirstPodPort + 7, first},            // somebody has it
		{HostPort, FirstPodPort + 2},         // never a pod's
		{1 << 30, FirstPodPort + 3},          // nonsense
	} {
		if got := p.take(c.want); got != c.got {
			t.Errorf("take(%d) = %d, want %d", c.want, got, c.got)
		}
	}
}

func TestServableRefusesWhatItCannotDo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		at   cni.Attachment
		says string
	}{
		{"nothing special", cni.Attachment{}, ""},
		{"fixed address", cni.Attachment{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.7")}}, "10.0.0.7"},
		{"hostPort", cni.Attachment{PortMappings: []cni.PortMapping{{HostPort: 8080, Protocol: model.UDP}}}, ""},
		{"hostPort of SCTP", cni.Attachment{PortMappings: []cni.PortMapping{{HostPort: 8080, Protocol: model.SCTP}}}, "SCTP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			err := servable(c.at)
			if (c.says == "") != (err == nil) || err != nil && (!errors.Is(err, cni.ErrUnsupported) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("error %v, want %q", err, c.says)
			}
		})
	}
}

// A runtime speaks of /var/run, the agent's image may have /run alone.
func TestVisiblePath(t *testing.T) {
	t.Parallel()
	const own = "/proc/self/ns/net"
	inode, err := inodeAt(own)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := visiblePath(own, inode); got != own || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := visiblePath(own, inode+1); err == nil || !strings.Contains(err.Error(), "another namespace") {
		t.Errorf("of another namespace: %q, %v", got, err)
	}
	if got, err := visiblePath("/var/run/no/such", inode); err == nil || !strings.Contains(err.Error(), "/run/no/such") {
		t.Errorf("of nothing: %q, %v", got, err)
	}
}
