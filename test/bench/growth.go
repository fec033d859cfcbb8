package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// growing is a contest of a large lab (ours) with a small one (theirs), in each of
// several sizes.
type growing struct {
	kind  string
	sizes []int
	where podsOf
	// manifest is what the lab brings up of it, known what the agents only know; or nil.
	manifest, known func(n int) string
	measures        []string
}

func growths() []growing {
	return []growing{
		{"pods", []int{10, 110, maxPods}, podsOf{nodes: 1, room: maxPods}, idlePods, nil, []string{"-udp-64"}},
		{"services", []int{100, 10000}, podsOf{nodes: 1, manifest: service()}, nil, moreServices, []string{"-udp-64", "-connect"}},
		{"peers", []int{100, 1000}, podsOf{nodes: 2}, nil, morePeers, []string{"-udp-64"}},
		{"flows", []int{100, 10000}, podsOf{nodes: 1}, nil, nil, []string{"-udp-64"}},
	}
}

const maxPods = 250

func (g *growing) name(n int) string { return fmt.Sprintf("growth-%s-%d", g.kind, n) }

func growthNames() []string {
	var out []string
	for _, g := range growths() {
		for _, n := range g.sizes {
			for _, m := range g.measures {
				out = append(out, g.name(n)+m)
			}
		}
	}
	return out
}

// growth runs all of them.
func (b *bench) growth(ctx context.Context) error {
	var errs []error
	for _, g := range growths() {
		errs = append(errs, b.grow(ctx, &g))
	}
	return errors.Join(errs...)
}

func (b *bench) grow(ctx context.Context, g *growing) (err error) {
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
	var small *way
	all := b.pairs
	defer func() { b.pairs = all }()
	for _, n := range g.sizes {
		largest := n == slices.Max(g.sizes)
		if !b.anyEnd(g.name(n), g.measures) || b.quick && !largest {
			continue
		}
		if b.pairs = all; !largest { // the marks are for the largest ones
			b.pairs = (all + 1) / 2
		}
		if small == nil {
			where := g.where
			where.name = "small"
			if small, err = b.growthWay(ctx, &c, where, ""); err != nil {
				return err
			}
		}
		if err := b.growTo(ctx, g, n, small); err != nil {
			return err
		}
	}
	return nil
}

// anyEnd reports whether a name with one of the endings is to be measured.
func (b *bench) anyEnd(name string, ends []string) bool {
	return slices.ContainsFunc(ends, func(end string) bool { return b.any(name + end) })
}

// growTo is one size.
func (b *bench) growTo(ctx context.Context, g *growing, n int, small *way) (err error) {
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
	var large *way
	if g.kind == "flows" { // nothing is built for them
		many := *small
		many.flows = n
		large = &many
	} else {
		if large, err = b.large(ctx, &c, g, n); err != nil {
			return err
		}
		if err := b.idle(ctx, g.name(n), large); err != nil {
			return err
		}
	}
	for _, m := range g.measures {
		if err := b.contest(ctx, g.name(n)+m, measureOf(m), large, small); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) large(ctx context.Context, c *closer, g *growing, n int) (*way, error) {
	where, more := g.where, ""
	where.name = fmt.Sprintf("%s-%d", g.kind, n)
	if g.manifest != nil {
		where.manifest += g.manifest(n)
	}
	if g.known != nil {
		more = g.known(n)
	}
	return b.growthWay(ctx, c, where, more)
}

// growthWay brings up a lab and returns its way: through the Service when it has one.
// More objects are written where the agents read them.
func (b *bench) growthWay(ctx context.Context, c *closer, where podsOf, more string) (*way, error) {
	l, err := b.pods(ctx, c, b.netctl, where)
	if err != nil {
		return nil, err
	}
	w, err := b.between(l)
	if err == nil && where.manifest != "" && strings.Contains(where.manifest, "kind: Service\n") {
		_, w, _, err = b.serviceWays(l)
	}
	if err != nil || more == "" {
		return w, err
	}
	return w, l.write("more.yaml", more)
}

// write gives the agents more objects, all at the same moment.
func (t *testLab) write(name, text string) error {
	path := t.path("cluster", name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// idlePods are so many pods, the two that there are included.
func idlePods(n int) string {
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: idle}
spec:
  replicas: %d
  selector: {matchLabels: {app: idle}}
  template:
    metadata: {labels: {app: idle}}
    spec:
      nodeSelector: {kubernetes.io/hostname: node1}
      containers: [{name: idle, command: [sleep, "86400"]}]
`, n-2)
}

// moreServices are so many Services with two endpoints each, which nobody asks for.
func moreServices(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Service
metadata: {name: more-%[1]d, namespace: default}
spec:
  type: ClusterIP
  clusterIP: 10.96.%[2]d.%[3]d
  clusterIPs: [10.96.%[2]d.%[3]d]
  ipFamilies: [IPv4]
  ports: [{name: p, protocol: TCP, port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: more-%[1]d-a, namespace: default, labels: {kubernetes.io/service-name: more-%[1]d}}
addressType: IPv4
ports: [{name: p, protocol: TCP, port: 8080}]
endpoints:
- {addresses: [10.128.%[4]d.%[3]d], conditions: {ready: true}}
- {addresses: [10.128.%[5]d.%[3]d], conditions: {ready: true}}
`, i, 16+i/250, 1+i%250, 100+i/250%50, 150+i/250%50)
	}
	return b.String()
}

// morePeers are so many nodes with keys, of which none is there.
func morePeers(n int) string {
	var b strings.Builder
	for i := range n {
		var key [32]byte
		_, _ = rand.Read(key[:]) // never fails
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Node
metadata: {name: peer-%[1]d, annotations: {netctl.io/public-key: %[2]q}}
spec: {podCIDR: 10.%[3]d.%[4]d.0/24, podCIDRs: [10.%[3]d.%[4]d.0/24]}
status: {addresses: [{type: InternalIP, address: 203.0.%[3]d.%[4]d}]}
`, i, base64.StdEncoding.EncodeToString(key[:]), 129+i/250, i%250)
	}
	return b.String()
}

// idle measures what the agents cost while nothing is sent.
func (b *bench) idle(ctx context.Context, name string, w *way) error {
	long := pick(b, time.Second, 3*time.Second)
	wait(ctx, long) // until what is new has been taken in
	before, err := w.carriers.Read()
	if err != nil {
		return err
	}
	wait(ctx, long)
	after, err := w.carriers.Read()
	if err != nil {
		return err
	}
	b.figure(name+"-idle", after.Since(before)*1e3/long.Seconds(), "ms/s")
	return ctx.Err()
}
