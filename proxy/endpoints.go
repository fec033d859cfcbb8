package proxy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
)

// endpoint is a candidate backend of one service port and family.
type endpoint struct {
	*model.Endpoint
	port uint16
}

// fallback: new connections may go to it when nothing is ready (EP-3, EP-4).
func (e *endpoint) fallback() bool { return e.Serving && e.Terminating }

// collect gathers the endpoints of a service port in one family: several slices
// may name an endpoint while it moves between them, and an address may be used
// again while its last owner still terminates (IN-5, IN-6, IN-11).
func collect(list []*model.EndpointSlice, p *model.ServicePort, fam family) []endpoint {
	set := endpointSet{at: map[netip.AddrPort]int{}}
	for _, s := range list {
		if s.IPv6 != (fam == ipv6) {
			continue
		}
		for _, sp := range s.Ports {
			if sp.Name != p.Name || sp.Protocol != p.Protocol || sp.Port == 0 {
				continue
			}
			for i := range s.Endpoints {
				if e := &s.Endpoints[i]; e.Address.IsValid() && familyOf(e.Address) == fam {
					set.add(endpoint{e, sp.Port})
				}
			}
		}
	}
	return set.list
}

// endpointSet keeps one endpoint per address and port: the first, but one that
// does not terminate before one that does.
type endpointSet struct {
	at   map[netip.AddrPort]int
	list []endpoint
}

func (s *endpointSet) add(e endpoint) {
	k := netip.AddrPortFrom(e.Address, e.port)
	if j, ok := s.at[k]; !ok {
		s.at[k] = len(s.list)
		s.list = append(s.list, e)
	} else if s.list[j].Terminating && !e.Terminating {
		s.list[j] = e
	}
}

// choice is what the endpoints of a service port come to on this node, by the
// algorithm of kube-proxy (EP-3, TOP-2).
type choice struct {
	cluster, local []Backend
	serving        []Backend
	any            bool // an endpoint that could be used exists somewhere
}

// uses says which lists a service port needs.
type uses struct{ cluster, local bool }

func choose(eps []endpoint, node, zone string, u uses) choice {
	var c choice
	if u.cluster {
		mode := topologyOf(eps, node, zone)
		c.cluster = pick(eps, node, func(e *endpoint) bool { return e.Ready && mode.allows(e, node, zone) })
		if len(c.cluster) == 0 {
			c.cluster = pick(eps, node, (*endpoint).fallback)
		}
		c.any = len(c.cluster) > 0
	}
	if u.local {
		c.local = localTo(eps, node, node)
		c.any = c.any || slices.ContainsFunc(eps, func(e endpoint) bool { return e.Ready || e.fallback() })
	}
	c.serving = pick(eps, node, func(e *endpoint) bool { return e.Serving || e.Ready })
	return c
}

// localTo returns the usable endpoints on node at; self is this node.
func localTo(eps []endpoint, at, self string) []Backend {
	out := pick(eps, self, func(e *endpoint) bool { return at != "" && e.Node == at && e.Ready })
	if len(out) == 0 {
		out = pick(eps, self, func(e *endpoint) bool { return at != "" && e.Node == at && e.fallback() })
	}
	return out
}

// pick returns the endpoints that want says as sorted backends.
func pick(eps []endpoint, node string, want func(*endpoint) bool) []Backend {
	var out []Backend
	for i := range eps {
		if e := &eps[i]; want(e) {
			out = append(out, Backend{Addr: packet.AddrFrom(e.Address), Port: e.port, Local: e.Node != "" && e.Node == node})
		}
	}
	slices.SortFunc(out, compareBackends)
	return out
}

func compareBackends(a, b Backend) int {
	return cmp.Or(slices.Compare(a.Addr[:], b.Addr[:]), cmp.Compare(a.Port, b.Port))
}

// topology is how hints restrict the cluster list.
type topology uint8

const (
	everywhere topology = iota
	sameNode
	sameZone
)

// topologyOf looks at the hints of ready endpoints: all of them must have one,
// and one of them must name this node or zone (TOP-2).
func topologyOf(eps []endpoint, node, zone string) topology {
	ready, nodeHints, zoneHints := 0, 0, 0
	hereNode, hereZone := false, false
	for i := range eps {
		e := &eps[i]
		if !e.Ready {
			continue
		}
		ready++
		if len(e.HintNodes) > 0 {
			nodeHints++
			hereNode = hereNode || node != "" && slices.Contains(e.HintNodes, node)
		}
		if len(e.HintZones) > 0 {
			zoneHints++
			hereZone = hereZone || zone != "" && slices.Contains(e.HintZones, zone)
		}
	}
	switch {
	case hereNode && nodeHints == ready:
		return sameNode
	case hereZone && zoneHints == ready:
		return sameZone
	default:
		return everywhere
	}
}

func (m topology) allows(e *endpoint, node, zone string) bool {
	switch m {
	case sameNode:
		return slices.Contains(e.HintNodes, node)
	case sameZone:
		return slices.Contains(e.HintZones, zone)
	default:
		return true
	}
}
