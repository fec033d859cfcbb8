package agent

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/kernel"
)

// compile is the loop's: what is true now, as values.
func (a *Agent) compile() Output {
	return Compile(Input{
		State: a.state.Load(), Protected: a.protected(), TunnelPort: a.cfg.ListenPort, Node: a.cfg.Node, Domain: a.cfg.Domain,
		ClusterCIDRs: a.cfg.ClusterCIDRs, Ports: a.localPorts(), Previous: &a.last,
	})
}

// protected are the addresses that the node's own network depends on.
func (a *Agent) protected() []netip.Addr {
	var out []netip.Addr
	for _, u := range a.upstreams.Upstreams() {
		out = append(out, u.Addr())
	}
	gateways, err := kernel.Gateways()
	if err != nil {
		a.log.Warn("the node's gateways are not known", "error", err)
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
	a.affinity.Sweep(out.Tables.Services, a.router.Now())
	a.resolver.Publish(out.Zone)
	unread := a.workers.Publish(out.Tables)
	a.mu.Lock()
	a.unread = unread
	a.mu.Unlock()
	return nil
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
	if _, err := kernel.Describe(nil, hostInterface); errors.Is(err, kernel.ErrNotFound) {
		select {
		case a.lost <- fmt.Errorf("somebody deleted %s: the agent ends so that its next start makes it anew; pods keep their interfaces", hostInterface):
		default: // said already
		}
		return errors.Join(errs...)
	}
	if err := a.host.Configure(kernel.Interface{
		Name: hostInterface, MTU: a.mtu, TxQueueLen: txQueueLen, GSOMaxSize: gsoMaxSize(a.mtu), Addresses: out.HostAddrs,
		OnOptional: func(err error) { a.log.Debug("optional setting of netctl0 not made", "error", err) },
	}); err != nil {
		errs = append(errs, fmt.Errorf("configure %s: %w", hostInterface, err))
	}
	if err := kernel.ApplyRoutes(a.host.Index(), out.HostRoutes); err != nil {
		errs = append(errs, fmt.Errorf("route pods and services to %s: %w", hostInterface, err))
	}
	select {
	case a.claims <- struct{}{}:
	default: // due already
	}
	return errors.Join(errs...)
}
