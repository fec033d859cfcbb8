package cluster

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/netctl/netctl/internal/model"
)

// entry is one object of one file. Entries are immutable.
type entry struct {
	kind  kind
	name  model.Name
	file  string
	line  int
	item  int
	value any // a pointer to a model value, *nodePatch or *serviceRanges
}

// before orders the definitions of one object: the first one counts.
func (e *entry) before(o *entry) int {
	return cmp.Or(cmp.Compare(e.file, o.file), cmp.Compare(e.line, o.line), cmp.Compare(e.item, o.item))
}

// index holds every entry by kind and name and builds States from them. It
// remembers which kinds moved, so a State shares the slices of all others with
// the State before it. Not safe for concurrent use.
type index struct {
	objects [kindCount]map[model.Name][]*entry // ordered by before
	moved   [kindCount]bool
	last    model.State
}

func newIndex() *index {
	x := &index{}
	for k := range x.objects {
		x.objects[k] = map[model.Name][]*entry{}
	}
	return x
}

// replace removes the entries of old that are not in now and adds those of now
// that are not in old.
func (x *index) replace(old, now []*entry) {
	kept := make(map[*entry]bool, len(old))
	for _, e := range old {
		kept[e] = false
	}
	for _, e := range now {
		if _, ok := kept[e]; ok {
			kept[e] = true
		}
	}
	for _, e := range old {
		if !kept[e] {
			x.update(e, slices.DeleteFunc(slices.Clone(x.objects[e.kind][e.name]), func(o *entry) bool { return o == e }))
		}
	}
	for _, e := range now {
		if !kept[e] {
			list := append(slices.Clone(x.objects[e.kind][e.name]), e)
			slices.SortFunc(list, (*entry).before)
			x.update(e, list)
		}
	}
}

// update stores the definitions of the object that e is one of.
func (x *index) update(e *entry, list []*entry) {
	var was, is any
	if before := x.objects[e.kind][e.name]; len(before) > 0 {
		was = before[0].value
	}
	if len(list) > 0 {
		is = list[0].value
		x.objects[e.kind][e.name] = list
	} else {
		delete(x.objects[e.kind], e.name)
	}
	if was != is {
		x.moved[e.kind] = true
	}
}

// duplicates reports every definition that lost against an earlier one.
func (x *index) duplicates() []Problem {
	var out []Problem
	for _, objects := range x.objects {
		for _, list := range objects {
			for _, e := range list[1:] {
				out = append(out, Problem{File: e.file, Line: e.line, Text: fmt.Sprintf(
					"%s is already defined at %s:%d; this one is ignored", describe(e.kind, e.name), list[0].file, list[0].line)})
			}
		}
	}
	return out
}

// build returns the State of all entries, or nil when nothing moved since the
// last one. The first State is never nil.
func (x *index) build() *model.State {
	if x.last.Revision > 0 && !slices.Contains(x.moved[:], true) {
		return nil
	}
	s := x.last
	s.Revision++
	s.Synced = true
	if x.moved[kindNode] || x.moved[kindNodePatch] {
		s.Nodes = x.nodes()
	}
	if x.moved[kindNamespace] {
		s.Namespaces = collect[model.Namespace](x, kindNamespace)
	}
	if x.moved[kindPod] {
		s.Pods = collect[model.Pod](x, kindPod)
	}
	if x.moved[kindService] {
		s.Services = collect[model.Service](x, kindService)
	}
	if x.moved[kindEndpointSlice] {
		s.EndpointSlices = collect[model.EndpointSlice](x, kindEndpointSlice)
	}
	if x.moved[kindNetworkPolicy] {
		s.NetworkPolicies = collect[model.NetworkPolicy](x, kindNetworkPolicy)
	}
	if x.moved[kindServiceCIDR] {
		s.ServiceCIDRs = x.serviceCIDRs()
	}
	if x.moved[kindBlock] {
		s.Blocks = x.blocks()
	}
	if x.moved[kindBlockPool] {
		s.BlockPools = x.blockPools()
	}
	x.moved = [kindCount]bool{}
	x.last = s
	return &s
}

// collect returns the objects of a kind, ordered by name.
func collect[T any](x *index, k kind) []*T {
	out := make([]*T, 0, len(x.objects[k]))
	for _, e := range x.sorted(k) {
		if v, ok := e.value.(*T); ok {
			out = append(out, v)
		}
	}
	return out
}

// sorted returns the definition that counts of every object of a kind.
func (x *index) sorted(k kind) []*entry {
	out := make([]*entry, 0, len(x.objects[k]))
	for _, list := range x.objects[k] {
		out = append(out, list[0])
	}
	slices.SortFunc(out, func(a, b *entry) int { return a.name.Compare(b.name) })
	return out
}

// nodes returns the nodes with their patches merged over them. A patch without
// a node waits for it.
func (x *index) nodes() []*model.Node {
	out := collect[model.Node](x, kindNode)
	for i, n := range out {
		list := x.objects[kindNodePatch][model.Name{Name: n.Name}]
		if len(list) == 0 {
			continue
		}
		if p, ok := list[0].value.(*nodePatch); ok {
			out[i] = p.apply(n)
		}
		if old := x.last.Node(n.Name); old != nil && reflect.DeepEqual(old, out[i]) {
			out[i] = old
		}
	}
	return out
}

// serviceCIDRs returns all service ranges once each.
func (x *index) serviceCIDRs() []netip.Prefix {
	var out []netip.Prefix
	for _, r := range collect[serviceRanges](x, kindServiceCIDR) {
		out = append(out, *r...)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// blocks returns all blocks, ordered by range.
func (x *index) blocks() []model.Block {
	var out []model.Block
	for _, b := range collect[model.Block](x, kindBlock) {
		out = append(out, *b)
	}
	slices.SortFunc(out, func(a, b model.Block) int { return a.CIDR.Compare(b.CIDR) })
	return out
}

// blockPools returns the ranges of all block pools, ordered and once each.
func (x *index) blockPools() []model.BlockPool {
	var out []model.BlockPool
	for _, r := range collect[blockRanges](x, kindBlockPool) {
		out = append(out, *r...)
	}
	slices.SortFunc(out, func(a, b model.BlockPool) int { return a.CIDR.Compare(b.CIDR) })
	return slices.CompactFunc(out, func(a, b model.BlockPool) bool { return a.CIDR == b.CIDR })
}

// describe names an object for a message.
func describe(k kind, n model.Name) string {
	text := "object"
	for key, kk := range kinds {
		if kk == k {
			text = key[1]
		}
	}
	if k == kindNodePatch {
		text = "patch of Node"
	}
	if n.Namespace == "" {
		return text + " " + n.Name
	}
	return text + " " + n.String()
}
