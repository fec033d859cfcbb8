package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/netctl/netctl/test/bench/ends"
	"github.com/netctl/netctl/test/bench/rivals"
)

// serviceNames are the contests through a Service.
func serviceNames() []string {
	return []string{
		"vip-vs-direct", "vip-vs-direct-udp-64", "vip-vs-direct-ask", "vip-vs-direct-connect",
		"vip-vs-kube-proxy", "vip-vs-kube-proxy-udp-64", "vip-vs-kube-proxy-ask", "vip-vs-kube-proxy-connect",
		"node-port-vs-kube-proxy", "node-port-vs-kube-proxy-ask", "node-port-vs-kube-proxy-connect",
	}
}

// servicePorts are the ends' ports.
func servicePorts() []rivals.ServicePort {
	return []rivals.ServicePort{
		{Port: ends.SinkPort, Protocol: "tcp"},
		{Port: ends.SinkPort, Protocol: "udp"},
		{Port: ends.EchoPort, Protocol: "tcp"},
		{Port: ends.GreetPort, Protocol: "tcp"},
	}
}

// service is a Service in front of the server.
func service() string {
	var b strings.Builder
	b.WriteString("---\napiVersion: v1\nkind: Service\nmetadata: {name: server}\nspec:\n  type: NodePort\n  selector: {end: server}\n  ports:\n")
	for i, p := range servicePorts() {
		fmt.Fprintf(&b, "  - {name: p%d, protocol: %s, port: %d, targetPort: %[3]d, nodePort: %d}\n",
			i, strings.ToUpper(p.Protocol), p.Port, p.Port+rivals.NodePortOffset)
	}
	return b.String()
}

func (b *bench) services(ctx context.Context) (err error) {
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
	where := podsOf{name: "services", nodes: 1, manifest: service()}
	l, err := b.pods(ctx, &c, b.netctl, where)
	if err != nil {
		return err
	}
	direct, vip, nodePort, err := b.serviceWays(l)
	if err != nil {
		return err
	}
	if b.against != "" {
		return b.servicesAgainst(ctx, &c, where, vip, nodePort)
	}
	if err := b.contests(ctx, serviceNames()[:4], vip, direct); err != nil || !b.any(serviceNames()[4:]...) {
		return err
	}
	inside, outside, err := rivals.KubeProxy(servicePorts())
	if err != nil {
		return err
	}
	c.add(inside.Close)
	theirs, err := b.open(inside)
	if err != nil {
		return err
	}
	theirsOutside, err := b.open(outside)
	if err != nil {
		return err
	}
	theirsOutside.offset = rivals.NodePortOffset
	return b.serviceContests(ctx, vip, theirs, nodePort, theirsOutside)
}

// servicesAgainst compares with another binary's services.
func (b *bench) servicesAgainst(ctx context.Context, c *closer, where podsOf, vip, nodePort *way) error {
	where.name += "-b"
	l, err := b.pods(ctx, c, b.against, where)
	if err != nil {
		return err
	}
	_, theirs, theirsOutside, err := b.serviceWays(l)
	if err != nil {
		return err
	}
	return b.serviceContests(ctx, vip, theirs, nodePort, theirsOutside)
}

func (b *bench) serviceContests(ctx context.Context, vip, theirs, nodePort, theirsOutside *way) error {
	return errors.Join(
		b.contests(ctx, serviceNames()[4:8], vip, theirs),
		b.contests(ctx, serviceNames()[8:], nodePort, theirsOutside),
	)
}

// serviceWays are the ways to the server: by its own address, by its Service's, and
// from outside by its node's.
func (b *bench) serviceWays(l *testLab) (direct, vip, nodePort *way, err error) {
	if direct, err = b.between(l); err != nil {
		return nil, nil, nil, err
	}
	s, err := l.Status()
	if err != nil {
		return nil, nil, nil, err
	}
	through := *direct
	for _, svc := range s.Services {
		if svc.Name == "default/server" {
			if through.addr, err = netip.ParseAddr(svc.Addresses[0]); err != nil {
				return nil, nil, nil, err
			}
		}
	}
	if through.addr == direct.addr {
		return nil, nil, nil, fmt.Errorf("lab %s has no Service in front of the server", l.name)
	}
	p, err := l.between("client", "server")
	if err != nil {
		return nil, nil, nil, err
	}
	p.From = l.outside()
	if p.Addr, err = netip.ParseAddr(s.Nodes[0].Addresses[0]); err != nil {
		return nil, nil, nil, err
	}
	if nodePort, err = b.open(p); err != nil {
		return nil, nil, nil, err
	}
	nodePort.offset = rivals.NodePortOffset
	return direct, &through, nodePort, nil
}

// outside is the namespace of the lab's host beyond the nodes.
func (t *testLab) outside() string { return "netctl." + t.name + ".outside" }
