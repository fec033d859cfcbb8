package cluster

import (
	"cmp"
	"fmt"
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
	value any // a pointer to a model value, *nodePatch, *serviceRanges or *blockRanges
}

// before orders the definitions of one object: the first one counts.
func (e *entry) before(o *entry) int {
	return cmp.Or(cmp.Compare(e.file, o.file), cmp.Compare(e.line, o.line), cmp.Compare(e.item, o.item))
}

// index holds every entry of a directory by kind and name, decides which of
// several definitions counts, merges the patches over the nodes and keeps the
// snapshot that States are built from. Not safe for concurrent use.
type index struct {
	objects  [kindCount]map[model.Name][]*entry // ordered by before
	snapshot *snapshot
}

func newIndex() *index {
	x := &index{snapshot: newSnapshot()}
	for k := range x.objects {
		x.objects[k] = map[model.Name][]*entry{}
	}
	return x
}

// build returns the State of all entries, or nil when nothing moved since the
// last one.
func (x *index) build() *model.State { return x.snapshot.build() }

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
	if len(list) > 0 {
		x.objects[e.kind][e.name] = list
	} else {
		delete(x.objects[e.kind], e.name)
	}
	k := e.kind
	if k == kindNodePatch {
		k = kindNode
	}
	x.snapshot.set(k, e.name, x.value(k, e.name))
}

// value returns what the definition that counts says of an object, nil without
// one. A patch without a node waits for it.
func (x *index) value(k kind, name model.Name) any {
	list := x.objects[k][name]
	if len(list) == 0 {
		return nil
	}
	if patches := x.objects[kindNodePatch][name]; k == kindNode && len(patches) > 0 {
		n, isNode := list[0].value.(*model.Node)
		p, isPatch := patches[0].value.(*nodePatch)
		if isNode && isPatch {
			return p.apply(n)
		}
	}
	return list[0].value
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
