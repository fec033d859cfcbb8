package agent

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/dns/metrics"
	"github.com/netctl/netctl/dns/options"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/packet"
)

// openNames makes the name server. Options that it refuses are logged: pods without a
// network would not be better off.
func (a *Agent) openNames() {
	a.spaces.Store(new(map[netip.Addr]string))
	o := a.cfg.DNSOptions.Options()
	a.resolver = dns.New(dns.Config{
		Upstreams: a.upstreams.Upstreams, Refuse: a.refuseSelf, MaxInFlight: o.MaxConcurrent, Logger: a.log,
		Namespace: func(addr netip.Addr) string { return (*a.spaces.Load())[addr.Unmap()] },
	})
	a.configureNames(o)
}

// refuseSelf says why an upstream that somebody named cannot be one. Servers inside the
// cluster can: the node reaches their virtual addresses as any other.
func (a *Agent) refuseSelf(addr netip.Addr) error {
	if a.router.Tables().DNS[family(addr)] == packet.AddrFrom(addr) {
		return fmt.Errorf("%s is this name server itself", addr)
	}
	return nil
}

// configureNames makes the name server work by other options.
func (a *Agent) configureNames(o *options.Options) {
	if err := a.resolver.Configure(o); err != nil {
		a.log.Error("the name server's options are refused, the former ones hold on", "error", err)
	}
}

// namesEvery is how often the name server's options are looked at.
const namesEvery = time.Second

// followNames takes over what changes in the name server's options.
func (a *Agent) followNames(ctx context.Context) error {
	tick := time.NewTicker(namesEvery)
	defer tick.Stop()
	last := a.cfg.DNSOptions.Options()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if o := a.cfg.DNSOptions.Options(); o != last {
			last = o
			a.configureNames(o)
			a.loop.Kick()
		}
	}
}

// measureNames serves the name server's metrics. Two agents of a node share the
// address for as long as one takes over from the other.
func (a *Agent) measureNames(ctx context.Context) error {
	said := false
	for a.cfg.DNSMetrics != "" && ctx.Err() == nil {
		if err := metrics.Serve(ctx, a.cfg.DNSMetrics, a.writeNameMetrics); ctx.Err() == nil && !said {
			said = true
			a.log.Warn("the name server's metrics are not served, trying again", "error", err)
		}
		select {
		case <-time.After(namesEvery):
		case <-ctx.Done():
		}
	}
	return nil
}

// measureChanges notes that the tables and the zone of a revision are in force.
func (a *Agent) measureChanges(revision uint64) {
	for _, took := range a.delays.InForce(revision) {
		a.resolver.Programmed(took)
	}
}

func (a *Agent) writeNameMetrics(w io.Writer) error { return a.resolver.WriteMetrics(w, a.cfg.Version) }

// knowPods tells the name server whose the pods' addresses are. A pod's packets come by
// its own device with its own address, so that is who asks.
func (a *Agent) knowPods() {
	a.mu.Lock()
	defer a.mu.Unlock()
	spaces := make(map[netip.Addr]string, len(a.pods))
	for _, p := range a.pods {
		if p.port.Kind != datapath.KindPod {
			continue
		}
		for _, addr := range p.rec.Addresses {
			spaces[addr.Unmap()] = p.rec.Namespace
		}
	}
	a.spaces.Store(&spaces)
}
