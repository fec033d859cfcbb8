package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/netctl/netctl/internal/agent/estate"
	"github.com/netctl/netctl/internal/agent/port"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/rawport"
)

// Pods' way to the outside by packets, where the configuration asks for it and the
// node can. Everything here does nothing where sockets are the way.

const (
	outsidePorts = 1024
	// outsideMost bounds the ports, and so the descriptors, of which a holder and a
	// successor take a number only.
	outsideMost = 8192
	// outsideShare is which part of the files that a process may have the ports' two
	// sockets each are at most; the rest is for connections.
	outsideShare = 8
)

// openOutside makes the port for packets to the outside. What the agent before had
// for that is used; where sockets are the way it is left to be closed.
func (a *Agent) openOutside(e estate.Estate) error {
	if a.cfg.Egress == settings.EgressSockets {
		return nil
	}
	err := a.openPackets(e)
	if err != nil && a.cfg.Egress == settings.EgressAuto {
		a.log.Warn("pods' connections to the outside end in sockets, for the node cannot forward their packets", "error", err)
		return nil
	}
	return err
}

func (a *Agent) openPackets(e estate.Estate) error {
	ranges := slices.Clone(a.ranges)
	for _, p := range a.known().BlockPools {
		ranges = append(ranges, p.CIDR)
	}
	if err := kernel.ForwardOwn(nil, HostInterface, ranges...); err != nil {
		return err
	}
	files, err := kernel.FileLimit()
	if err != nil {
		return err
	}
	most := min(outsideMost, files/outsideShare/2)
	in, out := a.router.NewInputs(OutsidePort), port.TUN{TUN: a.host}
	a.outside, err = rawport.New(rawport.Config{
		Out: func(buf []byte) { in.Deliver(buf) }, Send: out.Write, Refuse: a.refuseEgress,
		Ports: min(outsidePorts, most), Most: most, Grown: a.outsideGrown, Adopt: e.TakeOutside(), MTU: a.mtu, Logger: a.log,
	})
	return err
}

// egress is the way that pods' connections to the outside take.
func (a *Agent) egress() settings.Egress {
	if a.outside != nil {
		return settings.EgressPackets
	}
	return settings.EgressSockets
}

// outsidePort is the port in the list of those that every node has, if there is one.
func (a *Agent) outsidePort() []LocalPort {
	if a.outside == nil {
		return nil
	}
	return []LocalPort{{ID: OutsidePort, Kind: datapath.KindOutside, Port: outsideWriter{a.outside}, Name: "outside", MTU: a.mtu}}
}

// outsideWriter is the port as the router sees it.
type outsideWriter struct{ *rawport.Port }

// Write implements datapath.Port.
func (p outsideWriter) Write(buf []byte) error {
	err := p.Port.Write(buf)
	if errors.Is(err, rawport.ErrRefused) {
		return datapath.ErrRefused
	}
	return err
}

// outsideSockets are the descriptors that must outlive the process, under their
// names, borrowed.
func (a *Agent) outsideSockets() estate.Estate {
	if a.outside == nil {
		return nil
	}
	all := make(estate.Estate)
	for i, fds := range a.outside.Groups() {
		if len(fds) > 0 {
			all[estate.Outside(i)] = fds
		}
	}
	return all
}

// outsideGrown has the holder keep the sockets of new ports, too. A group that has
// grown takes the place of what is held under its name.
func (a *Agent) outsideGrown([]int) {
	a.applying.Lock()
	defer a.applying.Unlock()
	if a.listening == nil {
		return // not before it has been given everything
	}
	for name, fds := range a.outsideSockets() {
		a.keeper.Put(name, fds...)
	}
}

// carryOutside reads what comes from the outside until the context ends, and wait
// returns when that is over.
func (a *Agent) carryOutside(ctx context.Context) (wait func()) {
	if a.outside == nil {
		return func() {}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := ignoreDone(ctx, a.outside.Run(ctx)); err != nil {
			select {
			case a.lost <- fmt.Errorf("packets from the outside: %w", err):
			default: // something else failed before
			}
		}
	}()
	return func() { <-ended }
}

func (a *Agent) closeOutside() {
	if a.outside != nil {
		a.outside.Close()
		a.outside = nil
	}
}
