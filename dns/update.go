package dns

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/sharemap"
)

// update makes the zone from the previous one when nothing but slices of
// services that it knows has changed, which costs what has changed; nil: it
// cannot.
func update(in Input) *Zone {
	p := in.Previous
	if p == nil || !p.sameFrame(&in) {
		return nil
	}
	gone, come, few := model.Diff(p.made.Slices, in.Slices)
	if !few {
		return nil
	}
	z := *p
	z.made, z.soa, z.ranges = remembered(in), makeSOA(in), disjoint(in.Ranges)
	z.problems = nil
	touched := map[model.Name]*service{}
	for _, sl := range slices.Concat(gone, come) {
		key := model.Name{Namespace: sl.Name.Namespace, Name: sl.Service}
		if sl.Service == "" || touched[key] != nil {
			continue
		}
		old := p.service(key)
		if old == nil || slices.ContainsFunc(p.problems, func(x Problem) bool { return x.Object == key }) {
			return nil
		}
		next := makeService(old.object, splice(old.slices, key, gone, come))
		if !z.fits(next) || len(z.problems) > 0 {
			return nil
		}
		touched[key] = next
	}
	z.problems = p.problems
	z.replace(p, touched)
	return &z
}

// remembered is what a zone keeps of its input.
func remembered(in Input) Input {
	in.Previous, in.Pods, in.Ranges = nil, nil, nil
	return in
}

// sameFrame reports whether everything but the slices is as it was.
func (z *Zone) sameFrame(in *Input) bool {
	m := &z.made
	return m.Domain == in.Domain && m.TTL == in.TTL && m.NegativeTTL == in.NegativeTTL && m.Synced == in.Synced &&
		m.PodMode == in.PodMode && m.PodMode != PodsVerified && m.Server == in.Server && slices.Equal(m.Addresses, in.Addresses) &&
		slices.Equal(m.Namespaces, in.Namespaces) && slices.Equal(m.Services, in.Services)
}

// service returns the service of exactly that name, nil when the zone has none.
func (z *Zone) service(name model.Name) *service {
	n := z.namespaces[strings.ToLower(name.Namespace)]
	if n == nil {
		return nil
	}
	s := n.services[strings.ToLower(name.Name)]
	if s == nil || s.name != name {
		return nil
	}
	return s
}

// splice returns a service's slices after a change, sorted; nil when there are
// none.
func splice(list []*model.EndpointSlice, of model.Name, gone, come []*model.EndpointSlice) []*model.EndpointSlice {
	var out []*model.EndpointSlice
	for _, s := range list {
		if !slices.Contains(gone, s) {
			out = append(out, s)
		}
	}
	for _, s := range come {
		if s.Name.Namespace == of.Namespace && s.Service == of.Name {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, compareSlices)
	return out
}

// replace puts touched services in the place of what they were.
func (z *Zone) replace(p *Zone, touched map[model.Name]*service) {
	z.namespaces = maps.Clone(p.namespaces)
	index := p.index()
	copied := map[string]bool{}
	for name, next := range touched {
		key, label := strings.ToLower(name.Namespace), strings.ToLower(name.Name)
		if !copied[key] {
			n := *z.namespaces[key]
			n.services = maps.Clone(n.services)
			z.namespaces[key], copied[key] = &n, true
		}
		old := p.service(name)
		z.namespaces[key].services[label] = next
		if z.server == old {
			z.server = next
		}
		for _, a := range old.object.ClusterIPs {
			if have, _ := index.vips.Lookup(a.Unmap()); have == old {
				index.vips.Set(a.Unmap(), next)
			}
		}
		index.remove(old)
		index.add(next)
	}
	index.done(z)
}

// index is the addresses of a zone that is being made.
type index struct {
	vips, endpoints *sharemap.Edit[netip.Addr, *service]
	more            *sharemap.Edit[netip.Addr, []*service]
}

func (z *Zone) index() index {
	return index{vips: z.vips.Edit(), endpoints: z.endpoints.Edit(), more: z.more.Edit()}
}

func (x *index) done(z *Zone) {
	z.vips, z.endpoints, z.more = x.vips.Done(), x.endpoints.Done(), x.more.Done()
}

// add files the endpoints of a service for PTR questions.
func (x *index) add(s *service) {
	for a := range s.ready() {
		list := x.at(a)
		i, ok := slices.BinarySearchFunc(list, s, func(a, b *service) int { return a.name.Compare(b.name) })
		if !ok {
			x.set(a, slices.Insert(list, i, s))
		}
	}
}

// remove takes them out again.
func (x *index) remove(s *service) {
	for a := range s.ready() {
		x.set(a, slices.DeleteFunc(x.at(a), func(o *service) bool { return o == s }))
	}
}

// at returns a copy of the services at an address.
func (x *index) at(a netip.Addr) []*service {
	first, ok := x.endpoints.Lookup(a)
	if !ok {
		return nil
	}
	more, _ := x.more.Lookup(a)
	return append([]*service{first}, more...)
}

func (x *index) set(a netip.Addr, list []*service) {
	if len(list) == 0 {
		x.endpoints.Delete(a)
		x.more.Delete(a)
		return
	}
	x.endpoints.Set(a, list[0])
	if len(list) == 1 {
		x.more.Delete(a)
		return
	}
	x.more.Set(a, slices.Clone(list[1:]))
}

// ready ranges over the addresses of the service's ready endpoints.
func (s *service) ready() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, sl := range s.slices {
			for i := range sl.Endpoints {
				if e := &sl.Endpoints[i]; e.Ready && e.Address.IsValid() && !yield(e.Address.Unmap()) {
					return
				}
			}
		}
	}
}
