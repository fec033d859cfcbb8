package netstack

import (
	"container/list"
	"net/netip"
	"sync"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/quota"
)

// datagrams holds the flows of UDP and ICMP echo: one kernel socket for each
// tuple, found by it, in the order of use for each pod, so that at its bound a
// pod loses its own oldest flow.
type datagrams struct {
	stack                *Stack
	flowQuota, echoQuota *quota.Quota

	mu     sync.Mutex
	flows  map[packet.Tuple]*flow   // guarded by mu
	recent map[recentKey]*list.List // guarded by mu; of *flow, most recent first; no empty lists
	closed bool                     // guarded by mu
	heir   Heir                     // guarded by mu; nil: this stack serves

	idMu sync.Mutex
	ids  map[echoID]struct{} // guarded by idMu; identifiers in use on raw sockets
}

// recentKey: a pod's pings do not push out its UDP flows.
type recentKey struct {
	src   packet.Addr
	proto uint8
}

func newDatagrams(s *Stack) *datagrams {
	return &datagrams{
		stack:     s,
		flowQuota: share(s.cfg.Limits.Flows, s.cfg.Limits.FlowsPerPod),
		echoQuota: share(s.cfg.Limits.Echoes, s.cfg.Limits.EchoesPerPod),
		flows:     make(map[packet.Tuple]*flow),
		recent:    make(map[recentKey]*list.List),
		ids:       make(map[echoID]struct{}),
	}
}

// receiveUDP sends a datagram, or the datagrams of a super-packet.
func (d *datagrams) receiveUDP(p *packet.Packet) {
	if !p.Partial && p.GSOSize == 0 && !verified(p) {
		d.stack.counters.drop(DropChecksum)
		return
	}
	f := d.flow(p)
	if f == nil {
		return
	}
	payload := p.Data()
	size := p.GSOSize
	if size == 0 {
		size = max(len(payload), 1)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mark(p)
	if len(payload) == 0 {
		f.send(payload) // an empty datagram is one too
	}
	for len(payload) > 0 {
		n := min(size, len(payload))
		f.send(payload[:n])
		payload = payload[n:]
	}
}

// flow returns the flow of a packet, a new one if there is none; nil: a bound
// is reached, or closing, or new flows are an heir's.
func (d *datagrams) flow(p *packet.Packet) *flow {
	f := d.find(&p.Tuple)
	if f == nil {
		d.stack.giveBack(p.Buf, d.stack.link)
	}
	return f
}

func (d *datagrams) find(key *packet.Tuple) *flow {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.flows[*key]; f != nil {
		if f.holds() {
			f.order.MoveToFront(f.element)
			return f
		}
		d.detach(f)
		f.close()
	}
	if d.closed {
		d.stack.counters.drop(DropClosing)
		return nil
	}
	if d.heir != nil {
		return nil
	}
	f := newFlow(d, *key)
	if d.enter(f) != nil {
		return nil
	}
	d.stack.counters.flowsOpened.Add(1)
	return f
}

// enter takes a new flow in and runs it, unless a bound is reached. Called with
// mu held.
func (d *datagrams) enter(f *flow) error {
	key := &f.key
	q, full := d.flowQuota, DropFlowLimit
	if key.Proto != packet.ProtoUDP {
		q, full = d.echoQuota, DropEchoLimit
	}
	owner := key.Src.Netip()
	who := recentKey{key.Src, key.Proto}
	g := q.Take(owner)
	if g != quota.OK {
		// The oldest goes before the bound is reached: its socket needs a
		// moment to close, and counts until then.
		d.evict(who)
	}
	if g == quota.None {
		d.stack.counters.drop(full)
		return ErrLimit
	}
	if !d.stack.start(f.run) {
		q.Give(owner)
		d.stack.counters.drop(DropClosing)
		return ErrClosed
	}
	d.flows[*key] = f
	f.order = d.recent[who]
	if f.order == nil {
		f.order = list.New()
		d.recent[who] = f.order
	}
	f.element = f.order.PushFront(f)
	return nil
}

// has reports whether a pod has a flow of that tuple.
func (d *datagrams) has(key *packet.Tuple) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flows[*key] != nil
}

// evict closes a pod's oldest flow.
func (d *datagrams) evict(who recentKey) {
	l := d.recent[who]
	if l == nil {
		return
	}
	f := l.Back().Value.(*flow)
	d.detach(f)
	f.close()
	d.stack.counters.evicted.Add(1)
}

// detach takes a flow out of the tables. Called with mu held; idempotent.
func (d *datagrams) detach(f *flow) {
	if d.remove(f) && d.heir != nil && f.key.Proto == packet.ProtoUDP {
		d.heir.Ended(f.key)
	}
}

// remove is detach without a word to the heir; false: it was out.
func (d *datagrams) remove(f *flow) bool {
	if d.flows[f.key] != f {
		return false
	}
	delete(d.flows, f.key)
	f.order.Remove(f.element)
	if f.order.Len() == 0 {
		delete(d.recent, recentKey{f.key.Src, f.key.Proto})
	}
	return true
}

// ended is the last thing a flow's goroutine does.
func (d *datagrams) ended(f *flow) {
	d.mu.Lock()
	d.detach(f)
	d.mu.Unlock()
	q := d.flowQuota
	if f.key.Proto != packet.ProtoUDP {
		q = d.echoQuota
	}
	q.Give(f.key.Src.Netip())
}

// forget closes the flows of an address.
func (d *datagrams) forget(pod netip.Addr) {
	src := packet.AddrFrom(pod)
	d.closeIf(func(f *flow) bool { return f.key.Src == src })
}

// close closes all flows; there will be no new ones.
func (d *datagrams) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.closeIf(func(*flow) bool { return true })
}

func (d *datagrams) closeIf(match func(*flow) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.flows {
		if match(f) {
			d.detach(f)
			f.close()
		}
	}
}
