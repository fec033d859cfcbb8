package agent

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/record"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/proxy"
)

// nodeSockets are the sockets that this node listens on for Services and pods.
func (a *Agent) nodeSockets(limits nodeport.Limits) *nodeport.Server {
	datagrams := func(open func(src, dst netip.AddrPort, receive func([]byte)) (*netstack.InFlow, error)) func(src, dst netip.AddrPort, receive func([]byte)) (nodeport.Flow, error) {
		return func(src, dst netip.AddrPort, receive func([]byte)) (nodeport.Flow, error) {
			f, err := open(src, dst, receive)
			if err != nil {
				return nil, err // not a typed nil
			}
			return f, nil
		}
	}
	return nodeport.New(nodeport.Config{
		Pick: a.pick, Has: a.stays, Place: a.place, Router: a.routerAddr, Dial: a.stack.Dial,
		Datagrams: datagrams(a.stack.Datagrams), Resume: datagrams(a.stack.Resume),
		Limits: limits, Logger: a.log,
	})
}

// frontend returns what a client asked for at an address that this node listens on:
// a load balancer's, or a node port, maybe at an address that no Node object names.
func frontend(t *datapath.Tables, dst netip.AddrPort, proto model.Protocol) (*proxy.Frontend, proxy.Kind) {
	if f, kind := t.Services.Frontend(packet.AddrFrom(dst.Addr()), dst.Port(), uint8(proto)); f != nil {
		return f, kind
	}
	return t.Services.OwnNodePort(dst.Port(), uint8(proto), dst.Addr().Unmap().Is4())
}

// pick is the choice of a backend, as the walk makes it.
func (a *Agent) pick(dst netip.AddrPort, proto model.Protocol, client netip.AddrPort) (netip.AddrPort, bool) {
	t := a.router.Tables()
	f, kind := frontend(t, dst, proto)
	if kind != proxy.KindBackends {
		return netip.AddrPort{}, false
	}
	from, n := packet.AddrFrom(client.Addr()), rand.Uint32()
	if f.Hashed() {
		n = proxy.Hash(uint8(proto), from, client.Port(), packet.AddrFrom(dst.Addr()), dst.Port())
	}
	b, kind := t.Services.Pick(f, from, n, a.affinity, a.router.Now())
	if kind != proxy.KindBackends {
		return netip.AddrPort{}, false
	}
	backend := netip.AddrPortFrom(b.Addr.Netip(), b.Port)
	if err := t.Services.Dialable(backend, uint8(proto)); err != nil {
		a.log.Debug("service has a backend that is never dialled", "service", f.Service.String(), "backend", backend, "error", err)
		return netip.AddrPort{}, false
	}
	return backend, true
}

// stays reports whether a UDP flow may stay with its backend.
func (a *Agent) stays(dst netip.AddrPort, proto model.Protocol, backend netip.AddrPort) bool {
	f, kind := frontend(a.router.Tables(), dst, proto)
	return kind == proxy.KindBackends && f.Has(packet.AddrFrom(backend.Addr()), backend.Port())
}

// place is what an address is to this node.
func (a *Agent) place(addr netip.Addr) nodeport.Place {
	t := a.router.Tables()
	rt, ok := t.Routes.Lookup(addr)
	switch {
	case !ok || t.Outside(packet.AddrFrom(addr)): // unlike the name server, whose route is that of the outside
		return nodeport.PlaceOutside
	case rt.HostAddress && rt.Peer != 0:
		return nodeport.PlacePeer
	case rt.HostAddress:
		return nodeport.PlaceNode
	case rt.Port >= FirstPodPort:
		return nodeport.PlaceOwnPod
	default:
		return nodeport.PlacePod
	}
}

// routerAddr is the router's own address of a family.
func (a *Agent) routerAddr(is4 bool) netip.Addr {
	addrs := a.router.Tables().RouterAddrs
	f := 1
	if is4 {
		f = 0
	}
	if addrs[f] == (packet.Addr{}) {
		return netip.Addr{}
	}
	return addrs[f].Netip()
}

// applySockets opens and closes the node's sockets. It returns those that cannot
// be had, which are problems of the cluster's and are tried again with every turn.
func (a *Agent) applySockets() ([]*nodeport.ConflictError, error) {
	// From the list to the sockets it is one step: of two lists the older one would
	// close the host ports of a newer pod, or open those of a deleted one again.
	a.applying.Lock()
	defer a.applying.Unlock()
	a.mu.Lock()
	var settled, added []*record.Record
	for _, p := range a.pods {
		if p.listens {
			settled = append(settled, p.rec)
		} else {
			added = append(added, p.rec)
		}
	}
	services := a.services
	a.mu.Unlock()
	byPort := func(x, y *record.Record) int { return int(x.Port) - int(y.Port) }
	slices.SortFunc(settled, byPort)
	slices.SortFunc(added, byPort)
	var want []nodeport.Listener
	for _, r := range settled {
		want = append(want, r.Listeners()...)
	}
	want = append(want, services...)
	for _, r := range added {
		want = append(want, r.Listeners()...)
	}
	err := a.sockets.Apply(want)
	a.syncListeners()
	conflicts := nodeport.Conflicts(err)
	texts := make([]string, 0, len(conflicts))
	for _, c := range conflicts {
		texts = append(texts, c.Error())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Equal(texts, a.conflicts) {
		a.conflicts, a.portNotices = texts, a.conflictNotices(conflicts)
		a.loop.Kick() // to report them
	}
	if len(conflicts) > 0 {
		err = nil
	}
	return conflicts, err
}

// listen opens the host ports of a pod that is being added. All of them or the
// pod cannot be: a port that somebody else has may be free when the runtime tries
// again.
func (a *Agent) listen(id cni.ID, rec *record.Record) error {
	if wanted := rec.Listeners(); len(wanted) > 0 {
		conflicts, err := a.applySockets()
		if err != nil {
			return fmt.Errorf("open the pod's host ports: %w", err)
		}
		for _, c := range conflicts {
			if slices.Contains(wanted, c.Listener) {
				return fmt.Errorf("%w: %w", cni.ErrTryAgain, c)
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.pods[id]; p != nil {
		p.listens = true
	}
	return nil
}
