package cluster

import (
	"hash/maphash"
	"maps"
	"sync"

	"github.com/netctl/netctl/internal/model"
)

// maxInterned bounds how many strings, and how many label sets, an interner
// remembers. A cluster that has more begins anew: it then shares less, and
// nothing else changes.
const maxInterned = 1 << 16

// interner makes equal strings and label sets of different objects one and the
// same in memory: every endpoint repeats a node's and a zone's name, and every
// pod of a Deployment has the same labels. Its methods may be called
// concurrently.
type interner struct {
	seed maphash.Seed

	mu      sync.Mutex
	strings map[string]string            // guarded by mu
	labels  map[uint64]map[string]string // by their hash; guarded by mu
}

func newInterner() *interner {
	return &interner{seed: maphash.MakeSeed(), strings: map[string]string{}, labels: map[uint64]map[string]string{}}
}

// object shares what it can of a model value that nobody else has seen yet.
func (x *interner) object(v any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	switch o := v.(type) {
	case *model.Namespace:
		x.one(&o.Name)
		x.set(&o.Labels)
	case *model.Node:
		x.one(&o.Name, &o.Zone)
	case *model.Pod:
		x.one(&o.Name.Namespace, &o.Node, &o.Subdomain)
		x.set(&o.Labels)
		for i := range o.Ports {
			x.one(&o.Ports[i].Name)
		}
	case *model.Service:
		x.one(&o.Name.Namespace, (*string)(&o.Type), &o.TrafficDistribution)
		for i := range o.Ports {
			x.one(&o.Ports[i].Name)
		}
	case *model.EndpointSlice:
		x.one(&o.Name.Namespace)
		for i := range o.Ports {
			x.one(&o.Ports[i].Name)
		}
		for i := range o.Endpoints {
			e := &o.Endpoints[i]
			x.one(&e.Node, &e.Zone)
			for j := range e.HintZones {
				x.one(&e.HintZones[j])
			}
			for j := range e.HintNodes {
				x.one(&e.HintNodes[j])
			}
		}
	}
}

// one shares strings.
func (x *interner) one(list ...*string) {
	for _, s := range list {
		if *s == "" {
			continue
		}
		if have, ok := x.strings[*s]; ok {
			*s = have
			continue
		}
		if len(x.strings) >= maxInterned {
			clear(x.strings)
		}
		x.strings[*s] = *s
	}
}

// set shares a set of labels as a whole.
func (x *interner) set(labels *map[string]string) {
	if len(*labels) == 0 {
		return
	}
	var sum uint64 // of the pairs' hashes, since a map has no order
	var h maphash.Hash
	h.SetSeed(x.seed)
	for k, v := range *labels {
		h.Reset()
		_, _ = h.WriteString(k) // never fails
		_ = h.WriteByte(0)
		_, _ = h.WriteString(v)
		sum += h.Sum64()
	}
	if have, ok := x.labels[sum]; ok && maps.Equal(have, *labels) {
		*labels = have
		return
	}
	if len(x.labels) >= maxInterned {
		clear(x.labels)
	}
	own := make(map[string]string, len(*labels))
	for k, v := range *labels {
		x.one(&k)
		own[k] = v
	}
	x.labels[sum], *labels = own, own
}
