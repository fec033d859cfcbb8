package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/netctl/netctl/internal/lab"
	"github.com/netctl/netctl/test/bench/rivals"
)

// closer undoes things in reverse order.
type closer struct{ list []func() error }

func (c *closer) add(f func() error) { c.list = append(c.list, f) }

func (c *closer) close() error {
	var errs []error
	for _, f := range slices.Backward(c.list) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// podsOf says where the pods client and server are.
type podsOf struct {
	name     string // of the lab
	nodes    int    // the client is on the first one, the server on the last one
	underlay int    // MTU between the nodes; 0: 1500
	manifest string // of what is there besides
	room     int    // for pods on a node; 0: the lab's default
}

func (p podsOf) mtu() int {
	if p.underlay == 0 {
		return 1500
	}
	return p.underlay
}

// twoPods are idle pods at fixed places; the benchmarks bring their programs.
const twoPods = `apiVersion: v1
kind: Pod
metadata: {name: client, labels: {end: client}}
spec:
  nodeName: node1
  containers: [{name: idle, command: [sleep, "86400"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {end: server}}
spec:
  nodeName: node%d
  containers: [{name: idle, command: [sleep, "86400"]}]
`

// pods brings up a lab of a binary's agents with the two pods.
func (b *bench) pods(ctx context.Context, c *closer, exe string, where podsOf) (*testLab, error) {
	l, err := b.up(ctx, exe, where, fmt.Sprintf(twoPods, where.nodes)+where.manifest)
	if err != nil {
		return nil, err
	}
	c.add(func() error { return errors.Join(b.closeEnds("netctl."+where.name+"."), l.down()) })
	return l, nil
}

// between returns the way from client to server.
func (b *bench) between(l *testLab) (*way, error) {
	p, err := l.between("client", "server")
	if err != nil {
		return nil, err
	}
	return b.open(p)
}

// podsWay is both.
func (b *bench) podsWay(ctx context.Context, c *closer, exe string, where podsOf) (*way, error) {
	l, err := b.pods(ctx, c, exe, where)
	if err != nil {
		return nil, err
	}
	return b.between(l)
}

// rival returns the way that ours is compared with: what f builds, or the same pods
// with another binary's agents.
func (b *bench) rival(ctx context.Context, c *closer, where podsOf, f func() (*rivals.Path, error)) (*way, error) {
	if b.against != "" {
		where.name += "-b"
		return b.podsWay(ctx, c, b.against, where)
	}
	p, err := f()
	if err != nil {
		return nil, err
	}
	c.add(p.Close)
	return b.open(p)
}

// status returns the pods of the default namespace by name, and the nodes.
func (t *testLab) status() (map[string]lab.PodStatus, []lab.NodeStatus, error) {
	s, err := t.Status()
	if err != nil {
		return nil, nil, err
	}
	out := make(map[string]lab.PodStatus)
	for _, p := range s.Pods {
		out[strings.TrimPrefix(p.Name, "default/")] = p
	}
	return out, s.Nodes, nil
}

// between returns the way from one pod of the lab to another.
func (t *testLab) between(from, to string) (*rivals.Path, error) {
	pods, _, err := t.status()
	if err != nil {
		return nil, err
	}
	p := &rivals.Path{From: pods[from].Namespace, To: pods[to].Namespace}
	if p.Carriers, err = t.agents(); err != nil {
		return nil, err
	}
	p.Addr, err = netip.ParseAddr(pods[to].Addresses[0])
	return p, err
}

// agents returns the agents' processes.
func (t *testLab) agents() ([]int, error) {
	var out []int
	for _, node := range t.NodeNames() {
		pid, ok := t.AgentPID(node)
		if !ok {
			return nil, fmt.Errorf("agent of %s does not run", node)
		}
		out = append(out, pid)
	}
	return out, nil
}

// sites returns the nodes of the client and of the server.
func (t *testLab) sites() (out [2]rivals.Site, err error) {
	pods, nodes, err := t.status()
	if err != nil {
		return out, err
	}
	for i, pod := range []string{"client", "server"} {
		n := nodes[slices.IndexFunc(nodes, func(n lab.NodeStatus) bool { return n.Name == pods[pod].Node })]
		out[i] = rivals.Site{Node: n.Namespace, Pod: pods[pod].Namespace}
		if out[i].Addr, err = netip.ParseAddr(n.Addresses[0]); err != nil {
			return out, err
		}
	}
	return out, nil
}
