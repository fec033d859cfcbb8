package agent

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/agent/claim"
	"github.com/netctl/netctl/internal/agent/record"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

// compile is the loop's: what is true now, as values.
func (a *Agent) compile() Output {
	state := a.known()
	a.health.Begin(state.Services, state.EndpointSlices)
	out := Compile(Input{
		NodePorts: a.cfg.NodePorts, ExternalIPs: a.cfg.ExternalIPs, Host: a.hostAddresses(),
		State: state, Protected: a.protected(state), TunnelPort: a.cfg.ListenPort, Node: a.cfg.Node,
		Domain:       settings.Domain(a.cfg.Domain, a.facts.Domain),
		Names:        a.cfg.DNSOptions.Options(),
		ClusterCIDRs: a.ranges, Ports: a.localPorts(), Previous: &a.last,
		PodsOnly: settings.PodsOnly(a.cfg.Proxy, state, a.cfg.Node), ForeignDNS: settings.ForeignDNS(a.cfg.DNS, state),
	})
	if a.state.Load().Node(a.cfg.Node) == nil {
		out.Problems = append(out.Problems, fmt.Sprintf("node %q is not in the cluster's state: is --node right, and is the kubelet registered?", a.cfg.Node))
	}
	out.Problems = append(out.Problems, strays(a.localPorts(), state.NodePrefixes(a.cfg.Node))...)
	a.complain(&out, state)
	return out
}

// strays names the pods whose addresses are not of this node's ranges any more,
// as after its Node object was made anew and given another podCIDR. They go on as
// far as this node goes: its own pods and processes reach them, other nodes look
// for the address elsewhere.
func strays(ports []LocalPort, ranges []netip.Prefix) []string {
	var out []string
	for _, p := range ports {
		for _, addr := range p.Addrs {
			if p.Kind == datapath.KindPod && !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(addr) }) {
				out = append(out, fmt.Sprintf("pod %s has the address %s, which is in no range of this node: delete the pod so that it is made anew", p.Name, addr))
			}
		}
	}
	return out
}

// known is the cluster's State with this node in it. While its Node object is
// missing (deleted by mistake, about to be registered anew), the last one stands
// for it: the machine has not moved, and neither have its pods.
func (a *Agent) known() *model.State {
	state := a.state.Load()
	if self := state.Node(a.cfg.Node); self != nil {
		a.self = self
	}
	return settings.WithNode(state, a.self)
}

// protected are the addresses that the node's own network depends on.
func (a *Agent) protected(s *model.State) []netip.Addr {
	var out []netip.Addr
	for _, u := range a.upstreams.Upstreams() {
		out = append(out, u.Addr())
	}
	gateways, err := kernel.Gateways()
	if err != nil {
		a.log.Warn("the node's gateways are not known", "error", err)
	}
	if a.cfg.Cluster != nil {
		out = append(out, settings.OutsideServers(a.cfg.Cluster.Servers(), s)...)
	}
	return append(out, gateways...)
}

// localPorts returns the ports that exist, by ID.
func (a *Agent) localPorts() []LocalPort {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := slices.Clone(a.fixed)
	for _, p := range a.pods {
		out = append(out, p.port)
	}
	slices.SortFunc(out, func(x, y LocalPort) int { return int(x.ID) - int(y.ID) })
	return out
}

// publish is the loop's: it puts what was compiled in force.
func (a *Agent) publish(out Output) error {
	a.last = out
	if err := a.pool.SetBlocks(out.Blocks); err != nil {
		return fmt.Errorf("use the node's pod ranges: %w", err)
	}
	a.pool.Hold(record.Missing(a.state.Load(), out.Blocks, a.owners()))
	a.affinity.Sweep(out.Tables.Services, a.router.Now())
	a.knowPods()
	a.resolver.Publish(out.Zone)
	a.limit(out)
	unread := a.workers.Publish(out.Tables)
	a.measureChanges(out.Tables.Revision)
	a.health.End(out.Tables.Revision)
	a.notices.Say(out.Notices)
	if a.balancer != nil {
		live := a.cfg.Balancers.Live() // before the State is read, which is published first
		a.balancer.Put(a.state.Load(), live, out.HostAddrs, out.Peers, out.Tables.Services.Externals())
	}
	a.mu.Lock()
	a.unread, a.services = unread, out.Listeners
	a.mu.Unlock()
	return nil
}

// owners are the pods that have a port here, by name and by UID: the API server
// and the runtime know static pods under different UIDs.
func (a *Agent) owners() map[string]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[string]bool, 2*len(a.pods))
	for _, p := range a.pods {
		out[p.rec.UID], out[p.rec.Name()] = true, true
	}
	delete(out, "") // of runtimes that know no pods
	return out
}

// readable returns why a published port's packets are not read, nil when they
// are.
func (a *Agent) readable(id datapath.PortID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.unread[id]
}

// unreadable returns the errors of all ports that are not read.
func (a *Agent) unreadable() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(a.unread)) {
		errs = append(errs, a.unread[id])
	}
	return errors.Join(errs...)
}

// apply is the loop's: it makes the engine and the kernel match. All is tried,
// whatever fails. The cluster is told in another goroutine: whoever waits for a
// turn of the loop must not wait for an API server.
func (a *Agent) apply(out Output) error {
	errs := []error{a.unreadable()} // publish tries them again
	if err := a.engine.Apply(out.Peers); err != nil {
		errs = append(errs, fmt.Errorf("set the overlay's peers: %w", err))
	}
	if _, err := kernel.Describe(nil, HostInterface); errors.Is(err, kernel.ErrNotFound) {
		select {
		case a.lost <- fmt.Errorf("somebody deleted %s: the agent ends so that its next start makes it anew; pods keep their interfaces", HostInterface):
		default: // said already
		}
		return errors.Join(errs...)
	}
	if err := a.host.Configure(kernel.Interface{
		Name: HostInterface, MTU: a.mtu, TxQueueLen: txQueueLen, GSOMaxSize: gsoMaxSize(a.mtu),
		Addresses: out.HostAddrs, Routes: out.HostRoutes, // pods and services
		OnOptional: func(err error) { a.log.Debug("optional setting of netctl0 not made", "error", err) },
	}); err != nil {
		errs = append(errs, fmt.Errorf("configure %s: %w", HostInterface, err))
	}
	if _, err := a.applySockets(); err != nil {
		errs = append(errs, fmt.Errorf("listen on the node's ports: %w", err))
	}
	a.setQueues()
	a.applyHealth(out)
	a.claims.Kick()
	return errors.Join(errs...)
}

// claimConfig is what this node tells the cluster.
func (a *Agent) claimConfig() claim.Config {
	cfg := claim.Config{
		Node: a.cfg.Node, PublicKey: a.key.String(), ListenPort: a.cfg.ListenPort, State: a.state.Load, Publisher: a.cfg.Claims,
		DNS: a.cfg.DNS, NameServers: a.facts.NameServers, Blocks: a.cfg.Blocks, Ranges: a.ranges, Usage: a.pool.Usage, Log: a.log,
	}
	if a.cfg.Cluster != nil {
		cfg.NameServer = a.cfg.Cluster
	}
	return cfg
}
