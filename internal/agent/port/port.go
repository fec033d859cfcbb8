// Package port shows the parts of a node to the router: what each does with a packet
// that is written to it, and what an error of it means to who counts drops.
package port

import (
	"errors"
	"net/netip"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay"
)

// TUN is a device as the router sees it.
type TUN struct{ *kernel.TUN }

// Write implements datapath.Port.
func (p TUN) Write(buf []byte) error {
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

// Engine is the overlay as the router sees it.
type Engine struct{ Engine overlay.Engine }

// Write implements datapath.Port.
func (p Engine) Write(buf []byte) error { return enginePortError(p.Engine.Send(buf)) }

// NewBatch implements datapath.Batcher.
func (p Engine) NewBatch() datapath.Batch { return engineBatch{p.Engine.NewBatch()} }

// MTU implements datapath.Narrower.
func (p Engine) MTU(dst packet.Addr) int { return p.Engine.PathMTU(dst.Netip()) }

type engineBatch struct{ overlay.Batch }

// Write implements datapath.Batch.
func (b engineBatch) Write(buf []byte) error { return enginePortError(b.Send(buf)) }

// enginePortError says what an engine's error means to the router.
func enginePortError(err error) error {
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

// Resolver is the name server as the router sees it: a question that is
// written to it is answered at once, in the caller's goroutine, or handed to the
// resolver, which answers later.
type Resolver struct {
	server *dns.Server
	inputs *datapath.Inputs
	free   chan *answerBuffers
}

type answerBuffers struct {
	question packet.Packet
	message  []byte
	frame    []byte
}

// NewResolver returns the port of a name server whose answers go in by
// inputs.
func NewResolver(server *dns.Server, inputs *datapath.Inputs) *Resolver {
	return &Resolver{server: server, inputs: inputs, free: make(chan *answerBuffers, dnsAnswers)}
}

func (p *Resolver) buffers() *answerBuffers {
	select {
	case b := <-p.free:
		return b
	default:
		return &answerBuffers{message: make([]byte, dns.MaxUDP), frame: make([]byte, dnsHeaders+dns.MaxUDP)}
	}
}

func (p *Resolver) release(b *answerBuffers) {
	b.question = packet.Packet{}
	select {
	case p.free <- b:
	default:
	}
}

// Write implements datapath.Port.
func (p *Resolver) Write(buf []byte) error {
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
func (p *Resolver) send(server, client netip.AddrPort, msg []byte) {
	b := p.buffers()
	defer p.release(b)
	if len(msg) > dns.MaxUDP {
		return // Forward keeps to the client's limit, which is at most this
	}
	p.inputs.Deliver(packet.UDP(b.frame, server, client, msg))
}
