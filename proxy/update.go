package proxy

import (
	"maps"
	"slices"

	"github.com/netctl/netctl/internal/model"
)

// Most changes of a cluster are endpoints that come and go. Then every address
// and port belongs to whom it belonged to before, and the Table differs from the
// previous one in the backends of few services: it is made from that one, at the
// cost of what has changed. Everything else is compiled as a whole.

// update makes the table from the previous one; false: it cannot.
func (c *compiler) update() bool {
	p := c.in.Previous
	if p == nil || !c.sameFrame(p) {
		return false
	}
	goneServices, services, ok := model.Diff(p.services, c.in.Services)
	if !ok || len(goneServices) != len(services) {
		return false
	}
	goneSlices, list, ok := model.Diff(p.slices, c.in.Slices)
	if !ok || !spliced(c.in.Slices, list) {
		return false
	}
	touched := map[model.Name]*touch{}
	for i, s := range services {
		u := p.units.Get(s.Name)
		if goneServices[i].Name != s.Name || u == nil || !served(s) {
			return false
		}
		touched[s.Name] = &touch{old: u, service: s}
	}
	for _, s := range slices.Concat(goneSlices, list) {
		name, ok := serviceOf(s)
		if u := p.units.Get(name); ok && u != nil && touched[name] == nil {
			touched[name] = &touch{old: u, service: u.service}
		}
	}
	for _, t := range touched {
		if t.unit = c.newUnit(t.service, t.slices(goneSlices, list)); !sameClaims(t.old, t.unit) {
			return false
		}
	}
	c.replace(p, touched)
	return true
}

// sameFrame reports whether what all services have in common is as it was.
func (c *compiler) sameFrame(p *Table) bool {
	return p.externalIPs == c.in.ExternalIPs && p.node == c.in.Node && p.zone == c.in.Zone && slices.Equal(p.ranges, c.in.ServiceCIDRs) &&
		slices.Equal(p.local, c.in.Local) && slices.Equal(p.exclude, c.in.Exclude) && maps.Equal(p.nodes, c.nodes())
}

// touch is a service that has changed.
type touch struct {
	old, unit *unit
	service   *model.Service
}

// slices returns the service's slices after the change, sorted.
func (t *touch) slices(gone, come []*model.EndpointSlice) []*model.EndpointSlice {
	var out []*model.EndpointSlice
	for _, s := range t.old.slices {
		if !slices.Contains(gone, s) {
			out = append(out, s)
		}
	}
	for _, s := range come {
		if name, ok := serviceOf(s); ok && name == t.service.Name {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *model.EndpointSlice) int { return a.Name.Compare(b.Name) })
	return out
}

// replace makes the table: the previous one with the touched units in place of
// what they were.
func (c *compiler) replace(p *Table, touched map[model.Name]*touch) {
	t := *p
	t.services, t.slices = c.in.Services, c.in.Slices
	units, frontends, ports := p.units.Edit(), p.frontends.Edit(), p.nodePorts.Edit()
	listen := false
	for name, one := range touched {
		units.Set(name, one.unit)
		for i, f := range slices.Concat(one.old.internal, one.old.external) {
			now := i - len(one.old.internal)
			if have, _ := frontends.Lookup(f.key); have != f {
				continue // somebody else's
			}
			next := one.unit.external
			if now < 0 {
				next, now = one.unit.internal, i
			}
			frontends.Set(f.key, next[now])
			t.count(f, -1)
			t.count(next[now], 1)
		}
		for i := range one.old.ports {
			was, is := &one.old.ports[i], &one.unit.ports[i]
			if have, _ := ports.Lookup(was.key); have.own != was.port.own {
				continue
			}
			ports.Set(is.key, is.port)
			t.countPort(&was.port, -1)
			t.countPort(&is.port, 1)
			listen = true
		}
	}
	t.units, t.frontends, t.nodePorts = units.Done(), frontends.Done(), ports.Done()
	c.table, c.problems = &t, p.problems
	c.checksAgain(touched)
	if listen {
		c.table.listen = nil
		c.listen()
	}
}

// sameClaims reports whether two units ask for the same addresses, ports and
// affinities.
func sameClaims(a, b *unit) bool {
	same := func(a, b *Frontend) bool { return a.key == b.key && a.pin == b.pin && a.timeout == b.timeout }
	return slices.EqualFunc(a.internal, b.internal, same) && slices.EqualFunc(a.external, b.external, same) &&
		slices.EqualFunc(a.ports, b.ports, func(a, b nodePortUnit) bool { return a.key == b.key && same(a.port.own, b.port.own) })
}

// serviceOf is the service whose slice it is, if it says which and is of use.
func serviceOf(s *model.EndpointSlice) (model.Name, bool) {
	return model.Name{Namespace: s.Name.Namespace, Name: s.Service}, !s.Headless && s.Service != "" // IN-2, IN-4
}

// spliced reports whether a list that is sorted but for the objects that came is
// sorted.
func spliced(list, come []*model.EndpointSlice) bool {
	for _, s := range come {
		i, ok := slices.BinarySearchFunc(list, s, compareSlices)
		if !ok || list[i] != s || !slices.IsSortedFunc(list[max(i-1, 0):min(i+2, len(list))], compareSlices) {
			return false
		}
	}
	return true
}

func compareSlices(a, b *model.EndpointSlice) int { return a.Name.Compare(b.Name) }

func compareServices(a, b *model.Service) int { return a.Name.Compare(b.Name) }

// sorted returns the list in order, itself if it is.
func sorted[T any](list []*T, compare func(a, b *T) int) []*T {
	if slices.IsSortedFunc(list, compare) {
		return list
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, compare)
	return list
}
