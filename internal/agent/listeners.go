package agent

import (
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/proxy/health"
)

// listeners says where this node listens for clients of node ports. Somebody
// else's proxy in the kernel needs no sockets, and would not like ours.
func (c *compiler) listeners() {
	if c.in.PodsOnly {
		return
	}
	var primary []netip.Addr
	for _, claim := range c.mesh.Claims {
		if claim.Address && claim.Node == c.in.Node {
			primary = append(primary, claim.Prefix.Addr())
		}
	}
	at := c.in.NodePorts.On(primary, c.in.Host)
	for _, p := range c.tables.Services.NodePorts() {
		if p.Protocol != model.TCP && p.Protocol != model.UDP {
			continue // no socket can carry it on
		}
		for _, a := range at {
			if a.Is4() && !p.IPv4 || a.Is6() && !p.IPv6 {
				continue
			}
			c.listens = append(c.listens, nodeport.Listener{
				Addr: netip.AddrPortFrom(a, p.Port), Proto: p.Protocol, Owner: "service " + p.Service.String() + " port " + p.Name, Service: p.Service,
			})
		}
	}
	c.bound()
	for _, h := range c.tables.Services.HealthChecks() {
		for _, a := range at {
			if local := h.Local[family(a)]; local >= 0 {
				c.checks = append(c.checks, health.Check{Service: h.Service, At: netip.AddrPortFrom(a, h.Port), Local: local})
			}
		}
	}
}

// bound listens on load balancers' addresses that are on this node's own interfaces,
// as kube-vip and keepalived leave them: the kernel keeps what is sent there.
func (c *compiler) bound() {
	externals := c.tables.Services.Externals()
	for _, a := range c.in.Host {
		if _, ok := slices.BinarySearchFunc(externals, a, netip.Addr.Compare); !ok {
			continue
		}
		for _, svc := range c.in.State.Services {
			if !slices.Contains(svc.LoadBalancerIPs, a) && !slices.Contains(svc.ExternalIPs, a) {
				continue
			}
			for _, p := range svc.Ports {
				f, _ := c.tables.Services.Frontend(packet.AddrFrom(a), p.Port, uint8(p.Protocol))
				if f == nil || !f.External() || f.Service != svc.Name || p.Protocol != model.TCP && p.Protocol != model.UDP {
					continue
				}
				c.listens = append(c.listens, nodeport.Listener{
					Addr: netip.AddrPortFrom(a, p.Port), Proto: p.Protocol, Owner: "service " + svc.Name.String() + " port " + p.Name, Service: svc.Name,
				})
			}
		}
	}
}
