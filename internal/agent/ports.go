package agent

import (
	"errors"
	"net/netip"
	"sync"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay"
)

// tunPort is a TUN as the router sees it.
type tunPort struct{ *kernel.TUN }

// Write implements datapath.Port.
func (p tunPort) Write(buf []byte) error {
	_, err := p.TUN.Write(buf)
	switch {
	case errors.Is(err, kernel.ErrNoMemory), errors.Is(err, kernel.ErrAgain):
		return datapath.ErrFull
	case errors.Is(err, kernel.ErrInvalid):
		return datapath.ErrRefused
	default:
		return err
	}
}

// EnginePort is the overlay as the router sees it.
type EnginePort struct{ Engine overlay.Engine }

// Write implements datapath.Port.
func (p EnginePort) Write(buf []byte) error {
	err := p.Engine.Send(buf)
	switch {
	case errors.Is(err, overlay.ErrFull):
		return datapath.ErrFull
	case errors.Is(err, overlay.ErrNoPeer):
		return datapath.ErrNoPeer
	case errors.Is(err, overlay.ErrMalformed):
		return datapath.ErrRefused
	default:
		return err
	}
}

const (
	dnsHeaders = packet.VNetLen + 40 + 8 // room for IPv6 and UDP
	// dnsAnswers is how many questions are answered at the same moment at most;
	// workers and the resolver's own goroutines are fewer than that.
	dnsAnswers = 64
)

// ResolverPort is the name server as the router sees it: a question that is
// written to it is answered at once, in the caller's goroutine, or handed to the
// resolver, which answers later.
type ResolverPort struct {
	server *dns.Server
	inputs *datapath.Inputs
	free   chan *answerBuffers
}

type answerBuffers struct {
	question packet.Packet
	message  []byte
	frame    []byte
}

// NewResolverPort returns the port of a name server whose answers go in by
// inputs.
func NewResolverPort(server *dns.Server, inputs *datapath.Inputs) *ResolverPort {
	return &ResolverPort{server: server, inputs: inputs, free: make(chan *answerBuffers, dnsAnswers)}
}

func (p *ResolverPort) buffers() *answerBuffers {
	select {
	case b := <-p.free:
		return b
	default:
		return &answerBuffers{message: make([]byte, dns.MaxUDP), frame: make([]byte, dnsHeaders+dns.MaxUDP)}
	}
}

func (p *ResolverPort) release(b *answerBuffers) {
	b.question = packet.Packet{}
	select {
	case p.free <- b:
	default:
	}
}

// Write implements datapath.Port.
func (p *ResolverPort) Write(buf []byte) error {
	b := p.buffers()
	defer p.release(b)
	q := &b.question
	q.Buf = buf
	if packet.Parse(q) != packet.FaultNone {
		return datapath.ErrRefused
	}
	if q.Kind != packet.KindWhole {
		return datapath.ErrFragment // questions in pieces: nobody sends them
	}
	client := netip.AddrPortFrom(q.Tuple.Src.Netip(), q.Tuple.SrcPort)
	server := netip.AddrPortFrom(q.Tuple.Dst.Netip(), q.Tuple.DstPort)
	reply, status := p.server.Answer(client.Addr(), q.Data(), true, b.message)
	switch status {
	case dns.Answered:
		p.inputs.Deliver(packet.UDP(b.frame, server, client, reply))
	case dns.Forward:
		p.server.Forward(client.Addr(), q.Data(), true, func(msg []byte) { p.send(server, client, msg) })
	case dns.Drop:
	}
	return nil
}

// send sends an answer that came later.
func (p *ResolverPort) send(server, client netip.AddrPort, msg []byte) {
	b := p.buffers()
	defer p.release(b)
	if len(msg) > dns.MaxUDP {
		return // Forward keeps to the client's limit, which is at most this
	}
	p.inputs.Deliver(packet.UDP(b.frame, server, client, msg))
}

// portIDs are the IDs of pods' ports: the lowest free one for a new pod, the same
// as before for one that is taken over, because flows are counted against it.
// The zero value is ready for use.
type portIDs struct {
	mu   sync.Mutex
	used map[datapath.PortID]bool // guarded by mu
}

// take returns want if it is a pod's and free, else the lowest that is.
func (p *portIDs) take(want datapath.PortID) datapath.PortID {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used == nil {
		p.used = make(map[datapath.PortID]bool)
	}
	id := want
	if id < FirstPodPort || id > maxPodPort || p.used[id] {
		for id = FirstPodPort; p.used[id]; id++ {
		}
	}
	p.used[id] = true
	return id
}

// release gives an ID back; giving it back twice is fine.
func (p *portIDs) release(id datapath.PortID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.used, id)
}

// maxPodPort bounds what a record is believed: the table of ports is as long as
// the largest ID.
const maxPodPort = 1 << 14
