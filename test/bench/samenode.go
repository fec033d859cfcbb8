package main

import (
	"context"
	"errors"

	"github.com/netctl/netctl/test/bench/rivals"
)

// sameNodeNames are the contests between two pods of one node and two namespaces
// that a third one connects by veth pairs and kernel routing.
var sameNodeNames = []string{
	"same-node-tcp", "same-node-tcp-8", "same-node-udp-64", "same-node-udp-512", "same-node-udp-1400", "same-node-ask", "same-node-connect",
}

func (b *bench) sameNode(ctx context.Context) (err error) {
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
	ours, err := b.podsWay(ctx, &c, b.netctl, podsOf{name: "same", nodes: 1})
	if err != nil {
		return err
	}
	theirs, err := b.rival(ctx, &c, podsOf{name: "same", nodes: 1}, rivals.Veth)
	if err != nil {
		return err
	}
	return errors.Join(
		b.contest(ctx, "same-node-tcp", stream(1), ours, theirs),
		b.contest(ctx, "same-node-tcp-8", stream(8), ours, theirs),
		b.contest(ctx, "same-node-udp-64", flood(64), ours, theirs),
		b.contest(ctx, "same-node-udp-512", flood(512), ours, theirs),
		b.contest(ctx, "same-node-udp-1400", flood(1400), ours, theirs),
		b.contest(ctx, "same-node-ask", ask, ours, theirs),
		b.contest(ctx, "same-node-connect", connect, ours, theirs),
	)
}
