package balance

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/model"
)

// Class is the loadBalancerClass of Services that ask for these addresses by name.
// Those without a class get them, too.
const Class = "netctl.io/load-balancer"

// Assignment is what a Service's status is to say.
type Assignment struct {
	Service *model.Service
	Addrs   []netip.Addr // one of each family that service and pools have, IPv4 first
}

// Problem is why a Service does not get what it asks for.
type Problem struct {
	Service model.Name
	Reason  string
}

// Ours reports whether a Service gets its addresses here.
func Ours(s *model.Service) bool {
	return s.Type == model.LoadBalancer && !s.ForeignProxy && (s.LoadBalancerClass == "" || s.LoadBalancerClass == Class)
}

// Assign decides which addresses services have, sorted by name, whatever the order
// that they are given in. What a service has it keeps, as long as it may have it;
// then come those who ask for certain addresses, then the others.
func Assign(p Pools, services []*model.Service) ([]Assignment, []Problem) {
	if p.Empty() {
		return nil, nil
	}
	a := assigner{pools: p, holders: make(map[netip.Addr][]*model.Service)}
	var ours []*model.Service
	for _, s := range services {
		if Ours(s) && len(s.ClusterIPs) > 0 {
			ours = append(ours, s)
		}
	}
	slices.SortFunc(ours, func(x, y *model.Service) int { return x.Name.Compare(y.Name) })
	has := make([][2]netip.Addr, len(ours))
	for _, choose := range []func(*model.Service, bool) netip.Addr{a.kept, a.wanted, a.shared, a.any} {
		for i, s := range ours {
			for _, ip := range s.ClusterIPs {
				if f := family(ip); !has[i][f].IsValid() && p.serves(f == 0) {
					has[i][f] = choose(s, f == 0)
				}
			}
		}
	}
	var out []Assignment
	for i, s := range ours {
		one := Assignment{Service: s}
		for f, addr := range has[i] {
			if addr.IsValid() {
				one.Addrs = append(one.Addrs, addr)
			} else if slices.ContainsFunc(s.ClusterIPs, func(ip netip.Addr) bool { return family(ip) == f }) {
				a.complain(s, f)
			}
		}
		out = append(out, one)
	}
	return out, a.problems
}

type assigner struct {
	pools    Pools
	holders  map[netip.Addr][]*model.Service
	problems []Problem
}

// take gives a service an address, if it may have it.
func (a *assigner) take(s *model.Service, addr netip.Addr) netip.Addr {
	if !a.pools.Has(addr) {
		return netip.Addr{}
	}
	for _, other := range a.holders[addr] {
		if why := apart(s, other); why != "" {
			return netip.Addr{}
		}
	}
	a.holders[addr] = append(a.holders[addr], s)
	return addr
}

// apart says why two services cannot have one address; "" when they can.
func apart(x, y *model.Service) string {
	if x.ShareKey == "" || x.ShareKey != y.ShareKey || x.Name.Namespace != y.Name.Namespace {
		return "they have no sharing key in common"
	}
	if x.ExternalLocal || y.ExternalLocal {
		return "with policy Local their nodes differ"
	}
	for _, p := range x.Ports {
		for _, q := range y.Ports {
			if p.Port == q.Port && p.Protocol == q.Protocol {
				return fmt.Sprintf("both have port %d/%s", p.Port, p.Protocol)
			}
		}
	}
	return ""
}

// asks returns what a service asks for in a family.
func asks(s *model.Service, is4 bool) (netip.Addr, bool) {
	for _, w := range s.WantedIPs {
		if w.Is4() == is4 {
			return w, true
		}
	}
	return netip.Addr{}, false
}

// kept is the address that a service has already. One that asks for another gives it
// up.
func (a *assigner) kept(s *model.Service, is4 bool) netip.Addr {
	for _, addr := range s.LoadBalancerIPs {
		if w, ok := asks(s, is4); addr.Is4() == is4 && (!ok || w == addr) {
			return a.take(s, addr)
		}
	}
	return netip.Addr{}
}

func (a *assigner) wanted(s *model.Service, is4 bool) netip.Addr {
	if w, ok := asks(s, is4); ok {
		return a.take(s, w)
	}
	return netip.Addr{}
}

// shared is the address of another service with the same key.
func (a *assigner) shared(s *model.Service, is4 bool) netip.Addr {
	if _, ok := asks(s, is4); ok || s.ShareKey == "" {
		return netip.Addr{}
	}
	var best netip.Addr
	for addr, others := range a.holders {
		if addr.Is4() == is4 && (!best.IsValid() || addr.Less(best)) &&
			!slices.ContainsFunc(others, func(o *model.Service) bool { return apart(s, o) != "" }) {
			best = addr
		}
	}
	if !best.IsValid() {
		return a.any(s, is4)
	}
	return a.take(s, best)
}

// any is the first address that nobody has.
func (a *assigner) any(s *model.Service, is4 bool) netip.Addr {
	if _, ok := asks(s, is4); ok {
		return netip.Addr{} // it wants that one or none
	}
	addr, ok := a.pools.free(is4, func(addr netip.Addr) bool { return len(a.holders[addr]) > 0 })
	if !ok {
		return netip.Addr{}
	}
	return a.take(s, addr)
}

// complain says why a service has no address of a family.
func (a *assigner) complain(s *model.Service, f int) {
	name := [2]string{"IPv4", "IPv6"}[f]
	reason := "no pool of load balancer addresses has a free " + name + " address"
	w, asked := asks(s, f == 0)
	switch {
	case !a.pools.serves(f == 0):
		return // of a family that is not served it gets none, and needs none
	case asked && !a.pools.Has(w):
		reason = w.String() + " is in no pool of load balancer addresses"
	case asked:
		for _, other := range a.holders[w] {
			if why := apart(s, other); why != "" {
				reason = w.String() + " belongs to " + other.Name.String() + ", and " + why
			}
		}
	}
	a.problems = append(a.problems, Problem{s.Name, reason})
}

// family is 0 for IPv4, 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
