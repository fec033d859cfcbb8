package main

import (
	"context"
	"errors"
	"net/netip"

	"github.com/netctl/netctl/test/bench/rivals"
)

// egressNames are the contests from a pod to a host outside of the cluster.
func egressNames() []string {
	return []string{
		"egress-vs-masquerade", "egress-vs-masquerade-udp-1200", "egress-vs-masquerade-ask", "egress-vs-masquerade-connect",
		"egress-vs-pasta", "egress-vs-pasta-ask", "egress-vs-pasta-connect",
		"egress-vs-slirp4netns", "egress-vs-slirp4netns-ask", "egress-vs-slirp4netns-connect",
	}
}

// outsideAddr is the lab's host beyond the nodes.
func outsideAddr() netip.Addr { return netip.MustParseAddr("198.51.100.10") }

// egress compares with rivals on a second node, which has an idle agent.
func (b *bench) egress(ctx context.Context) (err error) {
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
	where := podsOf{name: "egress", nodes: 2}
	l, err := b.pods(ctx, &c, b.netctl, where)
	if err != nil {
		return err
	}
	ours, err := b.egressWay(l)
	if err != nil {
		return err
	}
	if b.against != "" {
		where.name += "-b"
		if l, err = b.pods(ctx, &c, b.against, where); err != nil {
			return err
		}
		theirs, err := b.egressWay(l)
		if err != nil {
			return err
		}
		return b.contests(ctx, egressNames()[:4], ours, theirs)
	}
	sites, err := l.sites()
	if err != nil {
		return err
	}
	for _, r := range []struct {
		names []string
		make  func(node, outside string, addr netip.Addr) (*rivals.Path, error)
	}{
		{egressNames()[:4], rivals.Masquerade},
		{egressNames()[4:7], rivals.Pasta},
		{egressNames()[7:], rivals.Slirp},
	} {
		if !b.any(r.names...) {
			continue
		}
		theirs, err := b.rival(ctx, &c, where, func() (*rivals.Path, error) { return r.make(sites[1].Node, l.outside(), outsideAddr()) })
		if err != nil {
			return err
		}
		if err := b.contests(ctx, r.names, ours, theirs); err != nil {
			return err
		}
	}
	return nil
}

// egressWay is from the client to the host outside; the client's node's agent alone
// carries it.
func (b *bench) egressWay(l *testLab) (*way, error) {
	p, err := l.between("client", "server")
	if err != nil {
		return nil, err
	}
	p.To, p.Addr, p.Carriers = l.outside(), outsideAddr(), p.Carriers[:1]
	return b.open(p)
}
