package agent

import (
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/proxy/health"
)

// What the service proxy shows to those who watch it: health checks, counters, and
// Events about Services.

// applyHealth opens and closes the sockets of health checks. Beside a kube-proxy
// they are its own.
func (a *Agent) applyHealth(out Output) {
	if settings.PodsOnly(a.cfg.Proxy, a.known(), a.cfg.Node) {
		a.health.Close()
		return
	}
	self := a.state.Load().Node(a.cfg.Node)
	a.health.SetEligible(self != nil && !self.Leaving)
	bad := a.health.Apply(out.Checks)
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.EqualFunc(bad, a.badChecks, func(x, y *health.PortError) bool { return x.Error() == y.Error() }) {
		a.badChecks = bad
		a.loop.Kick() // to report them
	}
}

// complain adds to an Output what stands in the way of its sockets, and tells the
// Services' owners.
func (a *Agent) complain(out *Output, state *model.State) {
	if a.balancer != nil {
		problems, notices := a.balancer.Complaints()
		out.Problems, out.Notices = append(out.Problems, problems...), append(out.Notices, notices...)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out.Problems = append(out.Problems, a.conflicts...)
	out.Notices = append(out.Notices, a.portNotices...)
	for _, e := range a.badChecks {
		out.Problems = append(out.Problems, e.Error())
		if e.Service != (model.Name{}) {
			out.Notices = append(out.Notices, noticeOf(state, e.Service, "FailedToStartServiceHealthcheck", e.Error()))
		}
	}
}

// conflictNotices are the Events about conflicts.
func (a *Agent) conflictNotices(conflicts []*nodeport.ConflictError) []model.Notice {
	var out []model.Notice
	for _, c := range conflicts {
		if c.Listener.Service != (model.Name{}) {
			out = append(out, noticeOf(a.state.Load(), c.Listener.Service, "NodePortConflict", c.Error()))
		}
	}
	return out
}

// noLocal is what the metrics say of policies Local.
func (a *Agent) noLocal() (internal, external int) {
	return a.router.Tables().Services.NoLocalEndpoints()
}

// writeMetrics writes the agent's own counters after those that kube-proxy has, too.
func (a *Agent) writeMetrics(w io.Writer) {
	c := a.router.Counters()
	health.WriteCounters(w, "netctl_dropped_packets_total", "Packets that were not forwarded", "reason", c.ByReason())
	health.WriteCounters(w, "netctl_forwarded_total", "What was forwarded", "what", map[string]uint64{"packets": c.Packets, "bytes": c.Bytes})
	health.WriteCounters(w, "netctl_flows_total", "Decisions about flows", "what", map[string]uint64{"judged": c.Judged, "rejudged": c.Rejudged})
	health.WriteCounters(w, "netctl_events_total", "Events about Services that had to wait", "what", map[string]uint64{"postponed": a.notices.Skipped()})
}

// addressesLast is how long the host's addresses are believed: changes are told, but
// not on every kernel.
const addressesLast = 30 * time.Second

// hostAddresses are this host's addresses that others can mean; the loop's own.
func (a *Agent) hostAddresses() []netip.Addr {
	if a.addressesDue.Swap(false) || time.Since(a.addressesRead) > addressesLast {
		list, err := net.InterfaceAddrs()
		if err != nil {
			a.log.Warn("the node's addresses are not known", "error", err)
			return a.addresses
		}
		a.addresses, a.addressesRead = nil, time.Now()
		for _, one := range list {
			if p, err := netip.ParsePrefix(one.String()); err == nil && p.Addr().IsGlobalUnicast() {
				a.addresses = append(a.addresses, p.Addr().Unmap())
			}
		}
		slices.SortFunc(a.addresses, netip.Addr.Compare)
	}
	return a.addresses
}
