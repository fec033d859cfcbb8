package claim_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/netctl/netctl/internal/agent/claim"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/ipam"
)

// api is an API server that counts and can be down.
type api struct {
	mu     sync.Mutex
	down   error
	calls  int
	nodes  []cluster.NodeClaim
	dns    [][]netip.Addr
	blocks []model.Block
}

func (a *api) call(f func()) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls++
	if a.down == nil {
		f()
	}
	return a.down
}

func (a *api) PublishNode(_ context.Context, c cluster.NodeClaim) error {
	return a.call(func() { a.nodes = append(a.nodes, c) })
}

func (a *api) EnsureDNSService(_ context.Context, addrs []netip.Addr) error {
	return a.call(func() { a.dns = append(a.dns, addrs) })
}

func (a *api) Create(_ context.Context, b model.Block) error {
	var err error
	return errors.Join(a.call(func() {
		if slices.ContainsFunc(a.blocks, func(o model.Block) bool { return o.CIDR == b.CIDR }) {
			err = fs.ErrExist
			return
		}
		a.blocks = append(a.blocks, b)
	}), err)
}

func (a *api) List(context.Context) (out []model.Block, err error) {
	err = a.call(func() { out = slices.Clone(a.blocks) })
	return out, err
}

func (a *api) Delete(_ context.Context, b model.Block) error {
	return a.call(func() { a.blocks = slices.DeleteFunc(a.blocks, func(o model.Block) bool { return o == b }) })
}

// scene is a Keeper at work and what it looks at.
type scene struct {
	api   *api
	log   *bytes.Buffer
	k     *claim.Keeper
	mu    sync.Mutex
	state *model.State // guarded by mu
}

// see gives the Keeper a new State.
func (s *scene) see(state *model.State) {
	s.mu.Lock()
	s.state = state
	s.mu.Unlock()
	s.k.Kick()
	synctest.Wait()
}

// run runs a Keeper of node n in the test's bubble.
func run(t *testing.T, state *model.State, edit func(*claim.Config)) *scene {
	t.Helper()
	s := &scene{api: &api{}, log: &bytes.Buffer{}, state: state}
	cfg := claim.Config{
		Node: "n", PublicKey: "key", ListenPort: 51820, Publisher: s.api, NameServer: s.api, DNS: settings.DNSAuto, Blocks: s.api,
		Ranges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		Usage:  func(ipam.Families) ipam.Usage { return ipam.Usage{Blocks: 1, Free: 100} },
		State: func() *model.State {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.state
		},
		Log: slog.New(slog.NewTextHandler(s.log, nil)),
	}
	if edit != nil {
		edit(&cfg)
	}
	s.k = claim.New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// satisfied is a State that says everything already.
func satisfied() *model.State {
	return &model.State{
		Revision: 1, Synced: true, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")},
		Nodes: []*model.Node{{
			Name: "n", Addresses: addrs("192.0.2.1"), PublicKey: "key", Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")},
		}},
		Services: []*model.Service{
			{Name: model.Name{Namespace: "default", Name: "kubernetes"}, ClusterIPs: addrs("10.96.0.1")},
			{Name: model.Name{Namespace: "kube-system", Name: "kube-dns"}, ClusterIPs: addrs("10.96.0.10")},
		},
		Blocks: []model.Block{{CIDR: netip.MustParsePrefix("10.244.0.0/25"), Node: "n"}},
	}
}

// The API server is only spoken to when something is missing there.
func TestClaims(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name               string
		edit               func(*model.State)
		config             func(*claim.Config)
		nodes, dns, blocks int
		calls              int
	}{
		{name: "nothing is missing"},
		{name: "a new node", edit: func(s *model.State) { s.Nodes[0].PublicKey = "" }, nodes: 1, calls: 1},
		{name: "another key, as after the disk was lost", edit: func(s *model.State) { s.Nodes[0].PublicKey = "old" }, nodes: 1, calls: 1},
		{name: "another address", edit: func(s *model.State) { s.Nodes[0].Addresses = addrs("192.0.2.9") }, nodes: 1, calls: 1},
		{name: "the Node object is missing", edit: func(s *model.State) { s.Nodes = nil }},
		{name: "no name server's Service", edit: func(s *model.State) { s.Services = s.Services[:1] }, dns: 1, calls: 1},
		{
			name: "no name server's Service, and none wanted", edit: func(s *model.State) { s.Services = s.Services[:1] },
			config: func(c *claim.Config) { c.DNS = settings.DNSOff },
		},
		{name: "services are not known yet", edit: func(s *model.State) { s.Services, s.Synced = nil, false }},
		{name: "no block", edit: func(s *model.State) { s.Blocks = nil }, blocks: 1, calls: 3}, // what is there, again, create
		{name: "no block, but a podCIDR", edit: func(s *model.State) {
			s.Blocks, s.Nodes[0].PodCIDRs = nil, []netip.Prefix{netip.MustParsePrefix("10.244.7.0/24")}
		}},
		{name: "blocks are not known yet", edit: func(s *model.State) { s.Blocks, s.Synced = nil, false }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				state := satisfied()
				if c.edit != nil {
					c.edit(state)
				}
				s := run(t, state, c.config)
				s.see(state)
				if len(s.api.nodes) != c.nodes || len(s.api.dns) != c.dns || len(s.api.blocks) != c.blocks || s.api.calls != c.calls {
					t.Errorf("%d nodes, %d Services, %d blocks in %d calls; want %d, %d, %d in %d", len(s.api.nodes), len(s.api.dns), len(s.api.blocks),
						s.api.calls, c.nodes, c.dns, c.blocks, c.calls)
				}
			})
		})
	}
}

// A Node object that was deleted and comes back without annotations gets them
// again.
func TestNodeComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := run(t, satisfied(), nil)
		s.see(satisfied())
		gone := satisfied()
		gone.Nodes = nil
		s.see(gone)
		time.Sleep(time.Hour)
		back := satisfied()
		back.Nodes[0].PublicKey, back.Nodes[0].Endpoints = "", nil
		s.see(back)
		want := cluster.NodeClaim{Node: "n", PublicKey: "key", Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:51820")}}
		if len(s.api.nodes) != 1 || s.api.nodes[0].PublicKey != want.PublicKey || !slices.Equal(s.api.nodes[0].Endpoints, want.Endpoints) {
			t.Errorf("published %+v, want %+v once", s.api.nodes, want)
		}
	})
}

// An API server that is down is asked ever more rarely, whatever else happens, and
// spoken of once.
func TestQuietWhileTheServerIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		state := satisfied()
		state.Nodes[0].PublicKey = ""
		s := run(t, state, nil)
		s.api.mu.Lock()
		s.api.down = errors.New("connection refused")
		s.api.mu.Unlock()
		for range 600 {
			s.see(state)
			time.Sleep(time.Second)
		}
		s.api.mu.Lock()
		calls := s.api.calls
		s.api.down = nil
		s.api.mu.Unlock()
		if calls < 10 || calls > 30 {
			t.Errorf("%d calls in ten minutes", calls)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(s.api.nodes) != 1 {
			t.Errorf("published %d times when it was back", len(s.api.nodes))
		}
		if n := strings.Count(s.log.String(), "connection refused"); n != 1 {
			t.Errorf("said %d times", n)
		}
	})
}

// A pool that is full of the blocks of nodes that are gone is not full for ever.
func TestFullPoolIsReclaimed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		state := satisfied()
		state.Blocks = []model.Block{{CIDR: netip.MustParsePrefix("10.244.0.0/25"), Node: "gone"}}
		s := run(t, state, func(c *claim.Config) { c.Ranges = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/25")} })
		s.api.mu.Lock()
		s.api.blocks = slices.Clone(state.Blocks)
		s.api.mu.Unlock()
		s.see(state)
		time.Sleep(time.Hour) // the bubble's: more than the grace of a node that is gone
		synctest.Wait()
		s.api.mu.Lock()
		defer s.api.mu.Unlock()
		want := []model.Block{{CIDR: netip.MustParsePrefix("10.244.0.0/25"), Node: "n"}}
		if !slices.Equal(s.api.blocks, want) {
			t.Errorf("blocks %v, want %v\n%s", s.api.blocks, want, s.log)
		}
	})
}
