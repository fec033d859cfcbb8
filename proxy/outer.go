package proxy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
)

// HealthCheck is what a load balancer outside asks this node about a service whose
// external policy is Local: how many of its backends are here (HC-1).
type HealthCheck struct {
	Service model.Name
	Port    uint16
	// Local are the addresses of ready endpoints on this node, IPv4 and IPv6; -1: the
	// service does not exist in the family.
	Local [2]int
}

// HealthChecks are those of this node, by service. The slice is that of the
// previous Table while nothing has changed.
func (t *Table) HealthChecks() []HealthCheck { return t.checks }

// healthCheck is the unit's, if it has one.
func (u *unit) healthCheck() (HealthCheck, bool) {
	svc := u.service
	if svc.Type != model.LoadBalancer || !svc.ExternalLocal || svc.HealthCheckNodePort == 0 {
		return HealthCheck{}, false
	}
	h := HealthCheck{Service: svc.Name, Port: svc.HealthCheckNodePort, Local: [2]int{-1, -1}}
	for i, fam := range []family{ipv4, ipv6} {
		if len(ofFamily(svc.ClusterIPs, fam)) > 0 {
			h.Local[i] = u.localReady(fam)
		}
	}
	return h, true
}

// localReady counts the addresses of ready endpoints here. Two ports of one pod are
// one, and one that terminates is none (HC-2).
func (u *unit) localReady(fam family) int {
	seen := map[netip.Addr]bool{}
	for _, s := range u.slices {
		if s.IPv6 != (fam == ipv6) || len(s.Ports) == 0 {
			continue
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if e.Ready && e.Node != "" && e.Node == u.node && e.Address.IsValid() && familyOf(e.Address) == fam {
				seen[e.Address] = true
			}
		}
	}
	return len(seen)
}

// outer lists what this node shows to the outside besides its ports.
func (c *compiler) outer(units []*unit) {
	t := c.table
	seen := map[packet.Addr]bool{}
	for _, u := range units {
		if h, ok := u.healthCheck(); ok {
			t.checks = append(t.checks, h)
		}
		for _, f := range u.external {
			if have, _ := c.frontends.Lookup(f.key); have == f && !seen[f.key.addr] {
				seen[f.key.addr] = true
				t.externals = append(t.externals, f.key.addr.Netip())
			}
		}
	}
	slices.SortFunc(t.externals, netip.Addr.Compare)
	if p := c.in.Previous; p != nil && slices.Equal(p.checks, t.checks) {
		t.checks = p.checks
	}
}

// checksAgain is the health checks' part of replace: the external addresses are
// the same then.
func (c *compiler) checksAgain(touched map[model.Name]*touch) {
	t := c.table
	var changed bool
	list := slices.DeleteFunc(slices.Clone(t.checks), func(h HealthCheck) bool {
		gone := touched[h.Service] != nil
		changed = changed || gone
		return gone
	})
	for _, one := range touched {
		if h, ok := one.unit.healthCheck(); ok {
			list, changed = append(list, h), true
		}
	}
	if !changed {
		return
	}
	slices.SortFunc(list, func(a, b HealthCheck) int { return cmp.Or(a.Service.Compare(b.Service)) })
	if len(list) == 0 {
		list = nil
	}
	if !slices.Equal(list, t.checks) {
		t.checks = list
	}
}

// NoLocalEndpoints counts the service ports with policy Local, internal and
// external, that have endpoints, but none on this node.
func (t *Table) NoLocalEndpoints() (internal, external int) {
	for _, u := range t.units.All() {
		type port struct {
			name  string
			proto uint8
		}
		seen := map[port]bool{}
		count := func(f *Frontend, none bool, n *int) {
			if k := (port{f.Port, f.key.proto}); none && !seen[k] {
				seen[k] = true
				*n++
			}
		}
		for _, f := range u.internal {
			count(f, u.service.InternalLocal && f.kind == KindDrop, &internal)
		}
		clear(seen)
		for _, f := range u.external {
			count(f, f.split && len(f.outside) == 0, &external)
		}
		for i := range u.ports {
			f := u.ports[i].port.own
			count(f, f.split && len(f.outside) == 0, &external)
		}
	}
	return internal, external
}
