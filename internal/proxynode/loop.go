package proxynode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
)

const (
	// applyRetry is how long the loop waits before it tries again what failed.
	applyRetry = time.Second
	// driftCheck is how often it looks unasked: others change routes and use ports.
	driftCheck = 30 * time.Second
)

// loop keeps the node as compiled from the newest State. It is level-triggered, so
// a turn that fails loses nothing.
func (n *node) loop(ctx context.Context, changes <-chan struct{}) error {
	retry := time.NewTimer(driftCheck)
	defer retry.Stop()
	var foreign uint64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.kick:
		case _, ok := <-changes: // routes go when the address they prefer goes
			if !ok {
				changes = nil
			}
		case <-retry.C:
		}
		state := n.known()
		if state == nil || !state.Synced { // before that, what is missing may be there
			continue
		}
		next := driftCheck
		if err := n.turn(state); err != nil {
			n.log.Warn("node is not as the cluster's state asks yet, trying again", "error", err)
			next = applyRetry
		}
		if now := n.foreign.Load(); now != foreign {
			n.log.Warn("packets for services came from addresses that are neither this node's nor its pods'; they were dropped", "packets", now-foreign)
			foreign = now
		}
		retry.Reset(next)
	}
}

// turn compiles, puts it in force and makes the kernel match.
func (n *node) turn(state *model.State) error {
	host, err := hostAddresses()
	if err != nil {
		return fmt.Errorf("list the node's addresses: %w", err)
	}
	protected, err := n.protected()
	if err != nil {
		return err
	}
	n.health.Begin(state.Services, state.EndpointSlices)
	out := Compile(Input{
		NodePorts: n.cfg.NodePorts, ExternalIPs: n.cfg.ExternalIPs,
		State: state, Node: n.cfg.Node, PodCIDRs: n.cfg.PodCIDRs, ServiceCIDRs: n.cfg.ServiceCIDRs,
		Host: host, Protected: protected, Previous: n.output.Load(),
	})
	n.output.Store(&out)
	n.affinity.Sweep(out.Services, kernel.BootClock())
	taken, err := n.apply(&out)
	n.report(append(slices.Clone(out.Problems), taken...))
	n.notices.Say(append(out.Notices, n.taken...))
	if err == nil {
		n.health.End(state.Revision)
	}
	if n.isReady() != nil && err == nil {
		n.log.Info("proxy serves", "node", n.cfg.Node, "services", len(state.Services), "ranges", len(out.Routes), "node_ports", len(out.Listeners))
	}
	n.setReady(err)
	return err
}

// apply makes the kernel match. All is tried, whatever fails. Node ports that
// somebody else has are no failure of ours; they are tried again with every turn.
func (n *node) apply(out *Output) (taken []string, err error) {
	var errs []error
	if err := n.device.Configure(kernel.Interface{Name: deviceName, MTU: n.cfg.MTU, TxQueueLen: txQueueLen, Routes: out.Routes}); err != nil {
		errs = append(errs, fmt.Errorf("route services to %s: %w", deviceName, err))
	}
	err = n.sockets.Apply(out.Listeners)
	n.taken = nil
	tell := func(svc model.Name, reason string, err error) {
		taken = append(taken, err.Error())
		if svc != (model.Name{}) {
			n.taken = append(n.taken, noticeOf(n.known(), svc, reason, err.Error()))
		}
	}
	for _, c := range nodeport.Conflicts(err) {
		tell(c.Listener.Service, "NodePortConflict", c)
	}
	if len(taken) == 0 {
		errs = append(errs, err)
	}
	self := n.known().Node(n.cfg.Node)
	n.health.SetEligible(self != nil && !self.Leaving)
	for _, e := range n.health.Apply(out.Checks) {
		tell(e.Service, "FailedToStartServiceHealthcheck", e)
	}
	return taken, errors.Join(errs...)
}

// protected are the addresses that the node's own network depends on.
func (n *node) protected() ([]netip.Addr, error) {
	out, err := kernel.Gateways()
	if err != nil {
		return nil, fmt.Errorf("find the node's gateways: %w", err)
	}
	if n.cfg.Servers != nil {
		for _, s := range n.cfg.Servers() {
			out = append(out, s.Addr().Unmap())
		}
	}
	return out, nil
}

// hostAddresses lists the addresses of this host that others can mean.
func hostAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().IsGlobalUnicast() {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out, nil
}

// report logs problems when they appear and when they are gone, not every turn.
func (n *node) report(problems []string) {
	now := make(map[string]bool, len(problems))
	for _, p := range problems {
		now[p] = true
		if !n.reported[p] {
			n.log.Warn("cluster state has a problem", "problem", p)
		}
	}
	for p := range n.reported {
		if !now[p] {
			n.log.Info("problem is gone", "problem", p)
		}
	}
	n.reported = now
}
