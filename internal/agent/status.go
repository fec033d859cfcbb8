package agent

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"github.com/netctl/netctl/internal/agent/limits"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/agent/status"
	"github.com/netctl/netctl/internal/kernel"
)

// serveStatus says what the agent does to whoever asks, until the context ends.
func (a *Agent) serveStatus(ctx context.Context) error {
	return status.Serve(ctx, a.cfg.StateDir, a.describe)
}

// describe describes the agent as it is.
func (a *Agent) describe() (status.Status, error) {
	counters := a.router.Counters()
	s := status.Status{
		Node: a.cfg.Node, Revision: a.router.Tables().Revision, MTU: a.mtu, Flows: a.flows.Len(),
		Packets: counters.Packets, Bytes: counters.Bytes, Drops: counters.ByReason(), PortsGone: counters.PortsGone, Problems: a.loop.Problems(), Delay: a.delays.Delay(),
	}
	a.describeServices(&s)
	for _, p := range a.localPorts() {
		s.Ports = append(s.Ports, status.Port{Name: p.Name, Kind: p.Kind.String(), Addresses: p.Addrs, Limits: limits.Describe(p.Shaper)})
	}
	files, err := kernel.OpenFiles()
	if err != nil {
		return status.Status{}, err
	}
	s.Process = status.Process{PID: os.Getpid(), Goroutines: runtime.NumGoroutine(), Files: files, GC: status.GCPauses(), Memory: status.ReadMemory()}
	peers, err := a.engine.Peers()
	if err != nil {
		return status.Status{}, fmt.Errorf("ask the overlay for its peers: %w", err)
	}
	for _, p := range peers {
		s.Peers = append(s.Peers, status.Peer{
			Node: p.Node, Endpoint: p.Endpoint, AllowedIPs: p.AllowedIPs, LastHandshake: p.LastHandshake, RxBytes: p.RxBytes, TxBytes: p.TxBytes, MTU: p.MTU,
		})
	}
	s.Tunnel = a.describeTunnel()
	for _, f := range a.poolFamilies() {
		u := a.pool.Usage(f)
		s.Pool = append(s.Pool, status.Pool{Family: u.Family, Total: u.Total, Used: u.Used, Cooling: u.Cooling, Free: u.Free})
	}
	return s, nil
}

// describeTunnel says what the tunnel's sockets do.
func (a *Agent) describeTunnel() status.Tunnel {
	c, offloads := a.engine.Counters(), a.engine.UDPOffloads()
	out := status.Tunnel{
		UDPGSO: offloads.GSO, UDPGRO: offloads.GRO,
		TxDatagrams: c.TxDatagrams, TxBatches: c.TxBatches, RxDatagrams: c.RxDatagrams, RxBatches: c.RxBatches, RxShared: c.RxShared,
		Drops: make(map[string]uint64),
	}
	for reason, n := range c.Dropped {
		if n > 0 {
			out.Drops[reason.String()] = n
		}
	}
	return out
}

// describeServices says who serves what.
func (a *Agent) describeServices(s *status.Status) {
	state := a.state.Load()
	s.Services, s.DNS, s.Sockets = "full", "on", a.sockets.Stats().Listeners
	s.Egress, s.TUNOffload = string(a.egress()), a.describeOffload()
	if settings.PodsOnly(a.cfg.Proxy, state, a.cfg.Node) {
		s.Services = "pods"
	}
	if settings.ForeignDNS(a.cfg.DNS, state) {
		s.DNS = "off"
	}
	if a.installer == nil {
		return
	}
	s.Plugin, s.Before = "installed", a.installer.Before()
	if err := a.installer.Err(); err != nil {
		s.Plugin = err.Error()
	}
}
