package proxynode

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/packet"
)

// deviceName is the same as an agent's: only one of them has a place on a node, and
// each takes over what the other left.
const deviceName = "netctl0"

const (
	txQueueLen = 1000
	// readBurst is how many packets are read before it is looked whether it is time
	// to end.
	readBurst = 256
)

// openDevice takes over the netctl0 that a killed one left, or makes it. It is
// persistent: for as long as a proxy is being started anew, what is sent to virtual
// addresses waits for it and does not leave by the default route.
func openDevice(mtu int) (*kernel.TUN, error) {
	found, err := kernel.Describe(nil, deviceName)
	var t *kernel.TUN
	switch {
	case errors.Is(err, kernel.ErrNotFound):
		t, err = kernel.CreateTUN(kernel.TUNConfig{
			Name: deviceName, MTU: mtu, TxQueueLen: txQueueLen, Offloads: kernel.AllOffloads(), Persist: true,
		})
	case err == nil:
		t, err = kernel.AttachTUN(nil, deviceName, found.Index)
	}
	if errors.Is(err, kernel.ErrBusy) {
		return nil, fmt.Errorf("another process serves this node by %s: an agent or a proxy; only one of them can (%w)", deviceName, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", deviceName, err)
	}
	return t, nil
}

// letGo ends what is in the kernel, or leaves it.
func (n *node) letGo() error {
	if n.cfg.Keep {
		return n.device.Close()
	}
	if err := n.device.Destroy(); err != nil { // its routes go with it
		return fmt.Errorf("remove %s: %w", deviceName, err)
	}
	return nil
}

// send is netstack's way out.
func (n *node) send(buf []byte) {
	// A full queue or a packet that the kernel refuses is a packet lost, as on any
	// network; a device that is gone is found by read.
	_, _ = n.device.Write(buf)
}

// read carries packets from netctl0 to netstack until the context ends.
func (n *node) read(ctx context.Context) error {
	poller, err := kernel.NewPoller()
	if err != nil {
		return err
	}
	defer poller.Close()
	if err := poller.Add(n.device.FD(), 1); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, poller.Wake)()
	buf := make([]byte, packet.MaxSize)
	events := make([]kernel.Event, 1)
	for ctx.Err() == nil {
		for range readBurst {
			size, err := n.device.Read(buf)
			if errors.Is(err, kernel.ErrGone) {
				return fmt.Errorf("somebody deleted %s; the next start makes it anew", deviceName)
			}
			if err != nil {
				break
			}
			n.receive(buf[:size])
		}
		if _, err := poller.Wait(events, -1); err != nil {
			return fmt.Errorf("wait for packets: %w", err)
		}
	}
	return nil
}

// receive is the guard: with forwarding switched on, the kernel would bring here
// what any machine beside the node sends to a virtual address.
func (n *node) receive(buf []byte) {
	src, ok := sourceOf(buf)
	if o := n.output.Load(); !ok || !o.Sources.Has(src) && !o.toExternal(buf) {
		n.foreign.Add(1)
		return
	}
	_ = n.stack.Write(buf) // what is wrong with it is counted there
}

// toExternal reports whether a packet is for a load balancer's or an external
// address, which clients outside may reach through this node.
func (o *Output) toExternal(buf []byte) bool {
	if len(o.Services.Externals()) == 0 {
		return false
	}
	p := packet.Packet{Buf: buf}
	if packet.Parse(&p) != packet.FaultNone || p.Kind != packet.KindWhole {
		return false
	}
	f, _ := o.Services.Frontend(p.Tuple.Dst, p.Tuple.DstPort, p.Tuple.Proto)
	return f != nil && f.External()
}

// sourceOf reads a packet's source address behind its virtio-net header.
func sourceOf(buf []byte) (netip.Addr, bool) {
	if len(buf) <= packet.VNetLen {
		return netip.Addr{}, false
	}
	ip := buf[packet.VNetLen:]
	switch {
	case ip[0]>>4 == 4 && len(ip) >= 20:
		return netip.AddrFrom4([4]byte(ip[12:16])), true
	case ip[0]>>4 == 6 && len(ip) >= 40:
		return netip.AddrFrom16([16]byte(ip[8:24])), true
	}
	return netip.Addr{}, false
}
