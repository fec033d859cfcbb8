package vnet

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/packet/packettest"
)

// Port is a port in memory: it keeps what the router writes to it. It may be
// used from any goroutine.
type Port struct {
	Name string
	ID   datapath.PortID
	// Discard makes it forget what it gets, for benchmarks.
	Discard atomic.Bool

	tb     testing.TB
	inputs *datapath.Inputs

	mu   sync.Mutex
	got  [][]byte // guarded by mu
	fail error    // guarded by mu
	hook func()   // guarded by mu
}

func (c *Cluster) port(n *Node, id datapath.PortID, name string) *Port {
	p := &Port{Name: name, ID: id, tb: c.tb, inputs: n.Router.NewInputs(id)}
	c.ports[name] = p
	return p
}

// Write implements datapath.Port.
func (p *Port) Write(buf []byte) error {
	if p.Discard.Load() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hook != nil {
		p.hook()
	}
	if p.fail != nil {
		return p.fail
	}
	p.got = append(p.got, slices.Clone(buf))
	return nil
}

// Fail makes Write return err; nil mends it.
func (p *Port) Fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail = err
}

// Hook is called by every Write, in the walk; it may panic. nil: none.
func (p *Port) Hook(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = f
}

// Send walks copies of the packets in from this port, as one batch.
func (p *Port) Send(bufs ...[]byte) {
	copies := make([][]byte, len(bufs))
	for i := range bufs {
		copies[i] = slices.Clone(bufs[i])
	}
	p.inputs.Deliver(copies...)
}

// TakeUnchecked returns what the port got since the last call, not parsed.
func (p *Port) TakeUnchecked() []*packet.Packet {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*packet.Packet, len(p.got))
	for i := range p.got {
		out[i] = &packet.Packet{Buf: p.got[i]}
	}
	p.got = nil
	return out
}

// Take is TakeUnchecked with the packets parsed; it fails the test for packets
// that nobody should have been given.
func (p *Port) Take() []*packet.Packet {
	p.tb.Helper()
	var out []*packet.Packet
	for _, q := range p.TakeUnchecked() {
		if f := packet.Parse(q); f != packet.FaultNone {
			p.tb.Errorf("%s got a packet that is %v: %x", p.Name, f, q.Buf)
			continue
		}
		if q.Kind != packet.KindFirstFragment && q.Kind != packet.KindLaterFragment {
			if err := packettest.Check(q.Buf); err != nil {
				p.tb.Errorf("%s got a packet with a wrong %v: %x", p.Name, err, q.Buf)
			}
		}
		out = append(out, q)
	}
	return out
}
