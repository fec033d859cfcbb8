package cluster

import (
	"net/netip"
	"reflect"
	"slices"

	"github.com/netctl/netctl/internal/model"
)

// snapshot is what every source knows of the cluster, object by object, and
// builds States from it. A change costs its own size and one copy of the
// pointers of its kind: the lists stay sorted, and what changed is spliced into
// a copy. Not safe for concurrent use.
type snapshot struct {
	last    model.State                     // the State that was built last
	changed [kindCount]map[model.Name]any   // since then; nil says that the object is gone
	ranges  [kindCount]map[model.Name]any   // the objects of kinds that a State has in merged form
	lists   [kindCount]list                 // the kinds that a State has as objects
	merge   [kindCount]func(s *model.State) // the kinds that a State has in merged form
}

func newSnapshot() *snapshot {
	x := &snapshot{}
	x.lists[kindNode] = listOf[model.Node]{
		func(s *model.State) *[]*model.Node { return &s.Nodes },
		func(o *model.Node) model.Name { return model.Name{Name: o.Name} },
	}
	x.lists[kindNamespace] = listOf[model.Namespace]{
		func(s *model.State) *[]*model.Namespace { return &s.Namespaces },
		func(o *model.Namespace) model.Name { return model.Name{Name: o.Name} },
	}
	x.lists[kindPod] = listOf[model.Pod]{
		func(s *model.State) *[]*model.Pod { return &s.Pods },
		func(o *model.Pod) model.Name { return o.Name },
	}
	x.lists[kindService] = listOf[model.Service]{
		func(s *model.State) *[]*model.Service { return &s.Services },
		func(o *model.Service) model.Name { return o.Name },
	}
	x.lists[kindEndpointSlice] = listOf[model.EndpointSlice]{
		func(s *model.State) *[]*model.EndpointSlice { return &s.EndpointSlices },
		func(o *model.EndpointSlice) model.Name { return o.Name },
	}
	x.lists[kindNetworkPolicy] = listOf[model.NetworkPolicy]{
		func(s *model.State) *[]*model.NetworkPolicy { return &s.NetworkPolicies },
		func(o *model.NetworkPolicy) model.Name { return o.Name },
	}
	x.merge[kindServiceCIDR] = func(s *model.State) { s.ServiceCIDRs = x.serviceCIDRs() }
	x.merge[kindBlock] = func(s *model.State) { s.Blocks = x.blocks() }
	x.merge[kindBlockPool] = func(s *model.State) { s.BlockPools = x.blockPools() }
	for k := range x.merge {
		if x.merge[k] != nil {
			x.ranges[k] = map[model.Name]any{}
		}
	}
	return x
}

// only returns a copy of a State that has some kinds only.
func (x *snapshot) only(s *model.State, kinds []kind) *model.State {
	out := *s
	for k := range kindCount {
		switch {
		case slices.Contains(kinds, k):
		case x.lists[k] != nil:
			x.lists[k].clear(&out)
		case x.merge[k] != nil:
			x.merge[k](&out) // of nothing, in a snapshot that has read nothing yet
		}
	}
	return &out
}

// seed makes the snapshot begin with an earlier State, so that what is still
// the same keeps its pointers. What a State has in merged form only begins
// empty, and the next State is built even if nothing else changes.
func (x *snapshot) seed(s *model.State) {
	x.last = *s
	x.last.Synced = false
	x.last.ServiceCIDRs, x.last.Blocks, x.last.BlockPools = nil, nil, nil
}

// base returns the object as the last State has it, or nil.
func (x *snapshot) base(k kind, name model.Name) any {
	if x.lists[k] != nil {
		return x.lists[k].get(&x.last, name)
	}
	return x.ranges[k][name]
}

// set stores an object; a nil value removes it. What says the same as the last
// State changes nothing, and the pointer there stays.
func (x *snapshot) set(k kind, name model.Name, value any) {
	if same(x.base(k, name), value) {
		delete(x.changed[k], name)
		return
	}
	if x.changed[k] == nil {
		x.changed[k] = map[model.Name]any{}
	}
	x.changed[k][name] = value
}

// same reports whether two objects, either of which may be nil, say the same.
func same(a, b any) bool {
	return a == b || a != nil && b != nil && reflect.DeepEqual(a, b)
}

// replace makes the objects of a kind those in now and no others. A nil value
// leaves what there was under that name.
func (x *snapshot) replace(k kind, now map[model.Name]any) {
	var gone []model.Name
	note := func(name model.Name) {
		if _, ok := now[name]; !ok {
			gone = append(gone, name)
		}
	}
	if x.lists[k] != nil {
		x.lists[k].each(&x.last, note)
	}
	for name := range x.ranges[k] {
		note(name)
	}
	for name := range x.changed[k] {
		note(name)
	}
	for _, name := range gone {
		x.set(k, name, nil)
	}
	for name, value := range now {
		if value != nil {
			x.set(k, name, value)
		}
	}
}

// build returns the State of all objects, or nil when nothing changed since the
// last one. The first State is never nil.
func (x *snapshot) build() *model.State {
	s := x.last
	moved := !s.Synced
	for k, changes := range x.changed {
		if len(changes) == 0 {
			continue
		}
		x.changed[k] = nil
		moved = true
		if x.lists[k] != nil {
			x.lists[k].splice(&s, changes)
			continue
		}
		for name, value := range changes {
			if value == nil {
				delete(x.ranges[k], name)
			} else {
				x.ranges[k][name] = value
			}
		}
		x.merge[k](&s)
	}
	if !moved {
		return nil
	}
	s.Revision++
	s.Synced = true
	x.last = s
	return &s
}

// serviceCIDRs returns all service ranges once each.
func (x *snapshot) serviceCIDRs() []netip.Prefix {
	var out []netip.Prefix
	for _, v := range x.ranges[kindServiceCIDR] {
		if r, ok := v.(*serviceRanges); ok {
			out = append(out, *r...)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// blocks returns all blocks, ordered by range.
func (x *snapshot) blocks() []model.Block {
	var out []model.Block
	for _, v := range x.ranges[kindBlock] {
		if b, ok := v.(*model.Block); ok {
			out = append(out, *b)
		}
	}
	slices.SortFunc(out, func(a, b model.Block) int { return a.CIDR.Compare(b.CIDR) })
	return out
}

// blockPools returns the ranges of all block pools, ordered and once each.
func (x *snapshot) blockPools() []model.BlockPool {
	var names []model.Name
	for name := range x.ranges[kindBlockPool] {
		names = append(names, name)
	}
	slices.SortFunc(names, model.Name.Compare)
	var out []model.BlockPool
	for _, name := range names {
		if r, ok := x.ranges[kindBlockPool][name].(*blockRanges); ok {
			out = append(out, *r...)
		}
	}
	slices.SortStableFunc(out, func(a, b model.BlockPool) int { return a.CIDR.Compare(b.CIDR) })
	return slices.CompactFunc(out, func(a, b model.BlockPool) bool { return a.CIDR == b.CIDR })
}

// list is how a kind's objects stand in a State: sorted by name.
type list interface {
	get(s *model.State, name model.Name) any
	each(s *model.State, visit func(model.Name))
	splice(s *model.State, changes map[model.Name]any)
	clear(s *model.State)
}

// listOf is a list of *T: where in the State it is, and what its objects are
// called.
type listOf[T any] struct {
	at   func(*model.State) *[]*T
	name func(*T) model.Name
}

func (l listOf[T]) find(in []*T, name model.Name) (int, bool) {
	return slices.BinarySearchFunc(in, name, func(o *T, name model.Name) int { return l.name(o).Compare(name) })
}

func (l listOf[T]) get(s *model.State, name model.Name) any {
	if i, ok := l.find(*l.at(s), name); ok {
		return (*l.at(s))[i]
	}
	return nil
}

func (l listOf[T]) each(s *model.State, visit func(model.Name)) {
	for _, o := range *l.at(s) {
		visit(l.name(o))
	}
}

func (l listOf[T]) clear(s *model.State) { *l.at(s) = nil }

// splice puts a copy of the list with the changes into s.
func (l listOf[T]) splice(s *model.State, changes map[model.Name]any) {
	rest := *l.at(s)
	names := make([]model.Name, 0, len(changes))
	size := len(rest)
	for name, value := range changes {
		names = append(names, name)
		if _, had := l.find(rest, name); had {
			size--
		}
		if value != nil {
			size++
		}
	}
	slices.SortFunc(names, model.Name.Compare)
	out := make([]*T, 0, size)
	for _, name := range names {
		i, had := l.find(rest, name)
		out = append(out, rest[:i]...)
		rest = rest[i:]
		if had {
			rest = rest[1:]
		}
		if o, ok := changes[name].(*T); ok {
			out = append(out, o)
		}
	}
	*l.at(s) = append(out, rest...)
}
