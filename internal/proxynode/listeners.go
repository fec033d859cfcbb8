package proxynode

import (
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/proxy/health"
)

// listeners lists the sockets of node ports and of health checks. What nobody stands
// behind is refused by the kernel, as a port that nobody has.
func (c *compiler) listeners() {
	at := c.in.NodePorts.On(c.self.Addresses, c.in.Host)
	for _, p := range c.out.Services.NodePorts() {
		if p.Protocol != model.TCP && p.Protocol != model.UDP {
			continue // said with its service
		}
		for _, a := range at {
			if a.Is4() && !p.IPv4 || a.Is6() && !p.IPv6 {
				continue
			}
			c.listen(netip.AddrPortFrom(a, p.Port), p.Protocol, p.Service, p.Name)
		}
	}
	externals := c.out.Services.Externals()
	for _, a := range c.in.Host {
		if _, ok := slices.BinarySearchFunc(externals, a, netip.Addr.Compare); ok {
			c.bound(a)
		}
	}
	for _, h := range c.out.Services.HealthChecks() {
		for _, a := range at {
			if local := h.Local[family(a)]; local >= 0 {
				c.out.Checks = append(c.out.Checks, health.Check{Service: h.Service, At: netip.AddrPortFrom(a, h.Port), Local: local})
			}
		}
	}
}

// bound listens on a load balancer's address that is on this node's own interfaces,
// as kube-vip and keepalived leave it: the kernel keeps what is sent there.
func (c *compiler) bound(a netip.Addr) {
	for _, svc := range c.in.State.Services {
		if !slices.Contains(svc.LoadBalancerIPs, a) && !slices.Contains(svc.ExternalIPs, a) {
			continue
		}
		for _, p := range svc.Ports {
			f, _ := c.out.Services.Frontend(packet.AddrFrom(a), p.Port, uint8(p.Protocol))
			if f != nil && f.External() && f.Service == svc.Name && p.Protocol != model.SCTP {
				c.listen(netip.AddrPortFrom(a, p.Port), p.Protocol, svc.Name, p.Name)
			}
		}
	}
}

func (c *compiler) listen(at netip.AddrPort, proto model.Protocol, svc model.Name, port string) {
	c.out.Listeners = append(c.out.Listeners, nodeport.Listener{
		Addr: at, Proto: proto, Owner: "service " + svc.String() + " port " + port, Service: svc,
	})
}
