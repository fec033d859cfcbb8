package main

import (
	"context"
	"errors"

	"github.com/netctl/netctl/test/bench/rivals"
)

// tunnelNames are the contests between pods of two nodes.
var tunnelNames = []string{
	"encrypted-vs-wireguard-go", "encrypted-vs-wireguard-go-tcp-8", "encrypted-vs-wireguard-go-udp-64", "encrypted-vs-wireguard-go-ask",
	"encrypted-vs-vxlan", "encrypted-vs-vxlan-ask",
}

func (b *bench) tunnel(ctx context.Context) (err error) {
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
	where := podsOf{name: "tunnel", nodes: 2}
	l, err := b.pods(ctx, &c, b.netctl, where)
	if err != nil {
		return err
	}
	ours, err := b.between(l)
	if err != nil {
		return err
	}
	sites, err := l.sites()
	if err != nil {
		return err
	}
	theirs, err := b.rival(ctx, &c, where, func() (*rivals.Path, error) { return rivals.WireGuard(ctx, b.tools, sites, where.mtu()) })
	if err != nil {
		return err
	}
	err = errors.Join(
		b.contest(ctx, "encrypted-vs-wireguard-go", stream(1), ours, theirs),
		b.contest(ctx, "encrypted-vs-wireguard-go-tcp-8", stream(8), ours, theirs),
		b.contest(ctx, "encrypted-vs-wireguard-go-udp-64", flood(64), ours, theirs),
		b.contest(ctx, "encrypted-vs-wireguard-go-ask", ask, ours, theirs),
	)
	if err != nil || b.against != "" || !b.any("encrypted-vs-vxlan", "encrypted-vs-vxlan-ask") {
		return err
	}
	if theirs, err = b.rival(ctx, &c, where, func() (*rivals.Path, error) { return rivals.VXLAN(sites, where.mtu()) }); err != nil {
		return err
	}
	return errors.Join(
		b.contest(ctx, "encrypted-vs-vxlan", stream(1), ours, theirs),
		b.contest(ctx, "encrypted-vs-vxlan-ask", ask, ours, theirs),
	)
}
