package main

import (
	"context"
	"errors"

	"github.com/netctl/netctl/test/bench/rivals"
)

// tunnelNames are the contests between pods of two nodes.
func tunnelNames() []string {
	return []string{
		"encrypted-vs-wireguard-go", "encrypted-vs-wireguard-go-tcp-8", "encrypted-vs-wireguard-go-udp-64", "encrypted-vs-wireguard-go-ask",
		"encrypted-vs-wireguard-go-connect", "encrypted-vs-wireguard-go-under-load",
		"encrypted-vs-vxlan", "encrypted-vs-vxlan-tcp-8", "encrypted-vs-vxlan-ask", "encrypted-vs-vxlan-under-load",
	}
}

// jumboNames are the same with packets of 9000 bytes between the nodes.
func jumboNames() []string {
	return []string{"jumbo-encrypted-vs-wireguard-go", "jumbo-encrypted-vs-vxlan"}
}

const jumbo = 9000

func (b *bench) tunnel(ctx context.Context) error {
	return b.tunnels(ctx, podsOf{name: "tunnel", nodes: 2}, map[string][]string{
		"wireguard-go": tunnelNames()[:6], "vxlan": tunnelNames()[6:],
	})
}

func (b *bench) jumboTunnel(ctx context.Context) error {
	return b.tunnels(ctx, podsOf{name: "jumbo", nodes: 2, underlay: jumbo}, map[string][]string{
		"wireguard-go": jumboNames()[:1], "vxlan": jumboNames()[1:],
	})
}

// tunnels runs the contests with each rival that are named.
func (b *bench) tunnels(ctx context.Context, where podsOf, names map[string][]string) (err error) {
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
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
	for _, r := range []struct {
		name string
		make func() (*rivals.Path, error)
	}{
		{"wireguard-go", func() (*rivals.Path, error) { return rivals.WireGuard(ctx, b.tools, sites, where.mtu()) }},
		{"vxlan", func() (*rivals.Path, error) { return rivals.VXLAN(sites, where.mtu()) }},
	} {
		if !b.any(names[r.name]...) || b.against != "" && r.name == "vxlan" {
			continue
		}
		theirs, err := b.rival(ctx, &c, where, r.make)
		if err != nil {
			return err
		}
		if err := b.contests(ctx, names[r.name], ours, theirs); err != nil {
			return err
		}
	}
	return nil
}
