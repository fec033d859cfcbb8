package main

import (
	"context"
	"errors"

	"github.com/netctl/netctl/test/bench/rivals"
)

// sameNodeNames are the contests between two pods of one node and two namespaces
// that a third one connects by veth pairs and kernel routing.
func sameNodeNames() []string {
	return []string{
		"same-node-tcp", "same-node-tcp-8", "same-node-udp-64", "same-node-udp-512", "same-node-udp-1380", "same-node-ask", "same-node-connect",
		"same-node-vs-relay", "same-node-vs-relay-udp-64", "same-node-vs-relay-ask",
	}
}

func (b *bench) sameNode(ctx context.Context) (err error) {
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
	where := podsOf{name: "same", nodes: 1}
	ours, err := b.podsWay(ctx, &c, b.netctl, where)
	if err != nil {
		return err
	}
	theirs, err := b.rival(ctx, &c, where, rivals.Veth)
	if err != nil {
		return err
	}
	if err := b.contests(ctx, sameNodeNames()[:7], ours, theirs); err != nil || b.against != "" || !b.any(sameNodeNames()[7:]...) {
		return err
	}
	if theirs, err = b.rival(ctx, &c, where, rivals.Relay); err != nil {
		return err
	}
	return b.contests(ctx, sameNodeNames()[7:], ours, theirs)
}
