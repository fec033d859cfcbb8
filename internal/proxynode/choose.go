package proxynode

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/proxy"
)

// What a client of a virtual address gets instead of a backend. They wrap what the
// kernel would have said, for that decides what the client sees.
var (
	errReject  = fmt.Errorf("nobody stands behind the service's port: %w", syscall.ECONNREFUSED)
	errDrop    = fmt.Errorf("no backend may serve this client: %w", syscall.ETIMEDOUT)
	errNotOurs = fmt.Errorf("no service's address: %w", syscall.EHOSTUNREACH)
)

// question is who wants to reach what.
type question struct {
	proto       model.Protocol
	client, dst netip.AddrPort
}

// choose picks the backend of a new connection of client to a frontend.
func (n *node) choose(o *Output, f *proxy.Frontend, kind proxy.Kind, q question) (netip.AddrPort, error) {
	var b proxy.Backend
	if kind == proxy.KindBackends {
		from, number := packet.AddrFrom(q.client.Addr()), rand.Uint32()
		if f.Hashed() {
			number = proxy.Hash(uint8(q.proto), from, q.client.Port(), packet.AddrFrom(q.dst.Addr()), q.dst.Port())
		}
		b, kind = o.Services.Pick(f, from, number, n.affinity, kernel.BootClock())
	}
	switch kind {
	case proxy.KindBackends:
		to := netip.AddrPortFrom(b.Addr.Netip(), b.Port)
		err := o.Services.Dialable(to, uint8(q.proto))
		if err != nil {
			n.log.Debug("service has a backend that is never dialled", "service", f.Service.String(), "backend", to, "error", err)
		}
		return to, err
	case proxy.KindReject, proxy.KindOther:
		return netip.AddrPort{}, errReject
	case proxy.KindDrop, proxy.KindUnallocated:
		return netip.AddrPort{}, errDrop
	case proxy.KindNone:
	}
	return netip.AddrPort{}, errNotOurs
}

// frontend returns what an address and port stands for.
func (o *Output) frontend(dst netip.AddrPort, proto model.Protocol) (*proxy.Frontend, proxy.Kind) {
	return o.Services.Frontend(packet.AddrFrom(dst.Addr()), dst.Port(), uint8(proto))
}

// listened returns what an address that this node listens on stands for: a load
// balancer's, or a node port, maybe at an address that no Node object names.
func (o *Output) listened(dst netip.AddrPort, proto model.Protocol) (*proxy.Frontend, proxy.Kind) {
	if f, kind := o.frontend(dst, proto); f != nil {
		return f, kind
	}
	return o.Services.OwnNodePort(dst.Port(), uint8(proto), dst.Addr().Unmap().Is4())
}

// translate is netstack's: the backend of a virtual address.
func (n *node) translate(proto uint8, client, dst netip.AddrPort) (netip.AddrPort, error) {
	o := n.output.Load()
	f, kind := o.frontend(dst, model.Protocol(proto))
	return n.choose(o, f, kind, question{model.Protocol(proto), client, dst})
}

// pick is the node ports': the backend of one.
func (n *node) pick(dst netip.AddrPort, proto model.Protocol, client netip.AddrPort) (netip.AddrPort, bool) {
	o := n.output.Load()
	f, kind := o.listened(dst, proto)
	to, err := n.choose(o, f, kind, question{proto, client, dst})
	return to, err == nil
}

// holds is netstack's: whether a flow of datagrams stays with its backend.
func (n *node) holds(dst, backend netip.AddrPort) bool {
	f, kind := n.output.Load().frontend(dst, model.UDP)
	return kind == proxy.KindBackends && f.Has(packet.AddrFrom(backend.Addr()), backend.Port())
}

// has is the node ports': the same of one of theirs.
func (n *node) has(dst netip.AddrPort, proto model.Protocol, backend netip.AddrPort) bool {
	f, kind := n.output.Load().listened(dst, proto)
	return kind == proxy.KindBackends && f.Has(packet.AddrFrom(backend.Addr()), backend.Port())
}
