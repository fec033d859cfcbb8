package datapath

import (
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/policy"
	"github.com/netctl/netctl/proxy"
)

// Config is what a Router is made of.
type Config struct {
	Flows    *flow.Table
	Affinity *proxy.Affinity
	// Clock returns seconds since an arbitrary moment; nil: since New.
	Clock func() uint32
}

// Router owns the published Tables, the flow table and the counters. All its
// methods are safe for concurrent use.
type Router struct {
	flows    *flow.Table
	affinity *proxy.Affinity
	clock    func() uint32
	frags    *fragments
	tables   atomic.Pointer[Tables]

	portsGone atomic.Uint64
	panic     atomic.Pointer[Panic] // the first one

	mu      sync.Mutex
	inputs  []*Input // guarded by mu
	retired Counters // guarded by mu: what closed inputs counted
}

// New returns a Router whose Tables are empty: it drops everything until the
// first Publish.
func New(cfg Config) *Router {
	r := &Router{flows: cfg.Flows, affinity: cfg.Affinity, clock: cfg.Clock, frags: newFragments()}
	if r.clock == nil {
		start := time.Now()
		r.clock = func() uint32 { return uint32(time.Since(start) / time.Second) }
	}
	services, _ := proxy.Compile(proxy.Input{})
	policies, _ := policy.Compile(nil)
	r.tables.Store(&Tables{Ports: make([]PortEntry, 1), Routes: new(bart.Table[Route]), Services: services, Policy: policies})
	return r
}

// Tables returns what was published last.
func (r *Router) Tables() *Tables { return r.tables.Load() }

// Publish swaps in other Tables and returns when no input works with the ones
// before: whatever only they refer to may then be closed.
func (r *Router) Publish(t *Tables) {
	old := r.tables.Swap(t)
	if old == t {
		return // nothing to wait for, and batches under it go on
	}
	r.mu.Lock()
	inputs := append([]*Input(nil), r.inputs...)
	r.mu.Unlock()
	for _, in := range inputs {
		for in.active.Load() == old {
			runtime.Gosched() // a batch takes microseconds
		}
	}
}

// Counters are the packets that an input carried.
type Counters struct {
	Packets uint64 // forwarded; a super-packet is one
	Bytes   uint64
	// Judged are packets that were the first of their flow, Rejudged those whose
	// flow was judged again because something that it depends on has changed.
	Judged, Rejudged uint64
	// PortsGone are TUNs whose device somebody else deleted while it was read.
	PortsGone uint64

	Drops [dropCount]uint64
}

func (c *Counters) add(o *Counters) {
	c.Packets += o.Packets
	c.Bytes += o.Bytes
	c.Judged += o.Judged
	c.Rejudged += o.Rejudged
	for i := range c.Drops {
		c.Drops[i] += o.Drops[i]
	}
}

// ByReason returns the drops that happened, keyed by the reason's name.
func (c *Counters) ByReason() map[string]uint64 {
	out := make(map[string]uint64)
	for i, n := range c.Drops {
		if n > 0 {
			out[Drop(i).String()] = n
		}
	}
	return out
}

// Counters returns the sum over all inputs.
func (r *Router) Counters() Counters {
	r.mu.Lock()
	defer r.mu.Unlock()
	sum := r.retired
	sum.PortsGone = r.portsGone.Load()
	for _, in := range r.inputs {
		c := in.counters()
		sum.add(&c)
	}
	return sum
}

// Panic is a bug that the walk met.
type Panic struct {
	Value any
	Stack string
}

// panicked keeps the first panic: the walk does not log, and who can cause one
// can cause many.
func (r *Router) panicked(v any) {
	if r.panic.Load() == nil {
		r.panic.CompareAndSwap(nil, &Panic{Value: v, Stack: string(debug.Stack())})
	}
}

// Panic returns the first panic of the walk, nil when there was none. The
// packets that panics cost are counted under DropPanic.
func (r *Router) Panic() *Panic { return r.panic.Load() }

// Flows returns the flow table, for those who show it.
func (r *Router) Flows() *flow.Table { return r.flows }

// Now returns the router's clock in seconds, which flow ages refer to.
func (r *Router) Now() uint32 { return r.clock() }
