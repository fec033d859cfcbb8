// Package balancer gives Services of type LoadBalancer their addresses and answers for
// them on this node's networks, where the configuration has pools. It stands beside
// the agent's loop, which tells it what is in force (Put); package alive tells it who
// lives, package balance is what it decides by, package announce answers.
//
// A failover takes what it takes to find out that a node does not answer (alive), and
// one announcement; nothing is asked of the API server for it.
package balancer

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/netctl/netctl/internal/agent/alive"
	"github.com/netctl/netctl/internal/announce"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/ipam"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/proxy/balance"
)

// Status is where a Service's addresses are written.
type Status interface {
	// PublishBalancer writes the status of a Service, unless it is another one by now.
	PublishBalancer(ctx context.Context, svc model.Name, uid string, addrs []netip.Addr) error
	// Live reports whether the State is what the API server says, and not one of an
	// earlier run.
	Live() bool
}

// announcer answers for addresses: an announce.Server.
type announcer interface {
	Apply(addrs []netip.Addr) error
	Close()
}

// Balancer is one node's.
type Balancer struct {
	node   string
	pools  balance.Pools
	status Status
	log    *slog.Logger

	alive    *alive.Watcher
	announce announcer
	writer   *writer
	due      chan struct{}
	report   func() // there is news to complain about

	mu       sync.Mutex
	state    *model.State   // guarded by mu
	live     bool           // guarded by mu: the State was live when it was put
	peers    []alive.Peer   // guarded by mu: nodes with a tunnel
	self     netip.Addr     // guarded by mu
	served   []netip.Addr   // guarded by mu: load balancers' addresses that are in force here
	problems []string       // guarded by mu
	notices  []model.Notice // guarded by mu
}

// New returns a Balancer that does nothing before Run. report is called when there are
// other Complaints than before.
func New(node string, pools balance.Pools, status Status, report func(), log *slog.Logger) *Balancer {
	b := &Balancer{node: node, pools: pools, status: status, log: log, report: report, due: make(chan struct{}, 1)}
	b.writer = newWriter(status, b.kick, log)
	b.alive = alive.New(alive.Config{Changed: b.kick, Logger: log})
	b.announce = announce.New(announce.Config{Logger: log, Default: func() string {
		link, err := kernel.DefaultLink()
		if err != nil {
			return ""
		}
		return link.Name
	}})
	return b
}

func (b *Balancer) kick() {
	select {
	case b.due <- struct{}{}:
	default:
	}
}

// Put tells the balancer what is in force now: the State, whether Status.Live was true
// before it was read, the host's addresses in its own blocks, the nodes with a tunnel,
// and the addresses of load balancers.
func (b *Balancer) Put(state *model.State, live bool, own []netip.Prefix, peers []overlay.Peer, served []netip.Addr) {
	b.mu.Lock()
	b.state, b.live, b.served = state, live, served
	b.peers, b.self = nil, netip.Addr{}
	for _, p := range own { // IPv4 where there is some
		if !b.self.IsValid() || p.Addr().Is4() && b.self.Is6() {
			b.self = p.Addr()
		}
	}
	for _, p := range peers {
		for _, r := range p.AllowedIPs {
			if !r.IsSingleIP() && b.self.IsValid() && r.Addr().Is4() == b.self.Is4() {
				b.peers = append(b.peers, alive.Peer{Node: p.Node, At: ipam.HostAddr(r)})
				break
			}
		}
	}
	b.mu.Unlock()
	b.kick()
}

// Complaints are what could not be done as the cluster asks.
func (b *Balancer) Complaints() ([]string, []model.Notice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.problems, b.notices
}

const (
	// balanceRetry is how soon what could not be done is tried again.
	balanceRetry = 5 * time.Second
	// balanceAgain is how often interfaces are looked at, whatever happens.
	balanceAgain = 30 * time.Second
)

// Run turns until the context ends.
func (b *Balancer) Run(ctx context.Context) error {
	defer b.announce.Close()
	watching := make(chan error, 1)
	watched, stop := context.WithCancel(ctx)
	go func() { watching <- b.alive.Run(watched) }()
	defer func() {
		stop()
		if err := <-watching; err != nil {
			b.log.Warn("nobody watches over other nodes", "error", err)
		}
	}()
	var writing sync.WaitGroup
	writing.Go(func() { b.writer.run(watched) })
	defer func() {
		stop()
		writing.Wait()
	}()
	wait := time.NewTimer(balanceAgain)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.due:
		case <-wait.C:
		}
		next := balanceAgain
		if err := b.turn(); err != nil {
			b.log.Warn("load balancer addresses are not as they should be, trying again", "error", err)
			next = balanceRetry
		}
		b.mu.Lock()
		if !b.live {
			next = balanceRetry
		}
		b.mu.Unlock()
		wait.Reset(next)
	}
}

// turn assigns, answers, and has written down.
func (b *Balancer) turn() error {
	b.mu.Lock()
	state, live, peers, self, served := b.state, b.live, b.peers, b.self, b.served
	b.mu.Unlock()
	if state == nil {
		return nil
	}
	list, bad := balance.Assign(b.pools, state.Services)
	var problems []string
	var notices []model.Notice
	for _, p := range bad {
		problems = append(problems, "service "+p.Service.String()+": "+p.Reason)
		n := model.Notice{Kind: "Service", Name: p.Service, Reason: "NoLoadBalancerAddress", Text: p.Reason, Warning: true}
		if svc := state.Service(p.Service); svc != nil {
			n.UID = svc.UID
		}
		notices = append(notices, n)
	}
	asking, why := b.alive.Asking()
	if why != nil {
		problems = append(problems, fmt.Sprintf("other nodes cannot find out whether this one lives, so it answers for no load balancer address: %v; free UDP port %d", why, alive.Port))
	}
	b.mu.Lock()
	news := !slices.Equal(b.problems, problems)
	b.problems, b.notices = problems, notices
	b.mu.Unlock()
	if news {
		b.report()
	}

	v := view{self: b.node, state: state, peers: peers, served: served}
	_, _, watch := v.tasks(list, func(string) bool { return true })
	b.alive.Watch(self, peers, watch) // whoever is new there lives, for now
	answer, write, _ := v.tasks(list, b.alive.Lives)
	if !asking {
		// Others take us for dead and answer in our place.
		answer, write = nil, nil
	}
	if !live {
		// What an earlier run knew may be long out of date: others would undo it.
		write = nil
		if b.status.Live() {
			b.report() // so that the State is put again
		}
	}
	b.writer.ask(write)
	return b.announce.Apply(answer)
}

// view is what a node knows of the cluster.
type view struct {
	self   string
	state  *model.State
	peers  []alive.Peer
	served []netip.Addr
}

// tasks are what a node has to do, as far as it knows who lives: for which addresses
// it answers, of those that are in force (what no status says yet is nobody's), which
// statuses it writes, and whom it watches.
func (v *view) tasks(list []balance.Assignment, lives func(string) bool) (answer []netip.Addr, write []balance.Assignment, watch map[string]bool) {
	nodes := candidates(v.state, v.self, v.peers)
	watch = map[string]bool{}
	duty := func(addr netip.Addr, may []string) bool {
		d := balance.Duty(v.self, addr, may, lives)
		for _, n := range d.Watch {
			watch[n] = true
		}
		return d.Answer
	}
	for _, a := range list {
		s := a.Service
		if !slices.Equal(a.Addrs, s.LoadBalancerIPs) && duty(cmp.Or(first(a.Addrs), s.ClusterIPs[0]), nodes) {
			write = append(write, a)
		}
		for _, addr := range s.LoadBalancerIPs {
			if !slices.Contains(a.Addrs, addr) || !slices.Contains(v.served, addr) || slices.Contains(answer, addr) {
				continue
			}
			may := nodes
			if s.ExternalLocal { // others would drop what comes; such addresses are not shared
				may = withEndpoints(v.state, s.Name, addr.Is4(), nodes)
			}
			if duty(addr, may) {
				answer = append(answer, addr)
			}
		}
	}
	return answer, write, watch
}

func first(list []netip.Addr) netip.Addr {
	if len(list) == 0 {
		return netip.Addr{}
	}
	return list[0]
}

// candidates are the nodes that can answer for addresses: this one, and those with a
// tunnel. One that is to go does not begin to, nor does one that its owner has excluded.
func candidates(state *model.State, self string, peers []alive.Peer) []string {
	var out []string
	add := func(name string) {
		if n := state.Node(name); n == nil || !n.Leaving && !n.Excluded {
			out = append(out, name)
		}
	}
	add(self)
	for _, p := range peers {
		add(p.Node)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// withEndpoints are the nodes with ready endpoints of a service.
func withEndpoints(state *model.State, svc model.Name, is4 bool, nodes []string) []string {
	have := map[string]bool{}
	for _, s := range state.EndpointSlices {
		if s.Name.Namespace != svc.Namespace || s.Service != svc.Name || s.Headless || s.IPv6 == is4 {
			continue
		}
		for i := range s.Endpoints {
			if s.Endpoints[i].Ready {
				have[s.Endpoints[i].Node] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(nodes), func(n string) bool { return !have[n] })
}
