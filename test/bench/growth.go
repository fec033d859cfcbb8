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

	"github.com/netctl/netctl/test/bench/ends"
)

// growthNames compare the cost of a packet with much of something (ours) with that
// with little (theirs).
var (
	growthPods     = []int{10, 110, 250}
	growthServices = []int{100, 10000}
	growthPeers    = []int{100, 1000}
	growthFlows    = []int{100, 10000}
)

func growthNames() []string {
	var out []string
	for kind, sizes := range map[string][]int{"pods": growthPods, "services": growthServices, "peers": growthPeers, "flows": growthFlows} {
		for _, n := range sizes {
			out = append(out, growthName(kind, n))
		}
	}
	return out
}

func growthName(kind string, n int) string { return fmt.Sprintf("growth-%s-%d", kind, n) }

// growth runs all of them; each size has a lab of its own beside the small one.
func (b *bench) growth(ctx context.Context) error {
	return errors.Join(
		b.grow(ctx, "pods", growthPods, podsOf{nodes: 1, room: slices.Max(growthPods)}, idlePods, nil, "-udp-64"),
		b.grow(ctx, "services", growthServices, podsOf{nodes: 1, manifest: service()}, nil, moreServices, "-udp-64", "-connect"),
		b.grow(ctx, "peers", growthPeers, podsOf{nodes: 2}, nil, morePeers, "-udp-64"),
		b.growFlows(ctx))
}

// grow compares labs with much of something with one without. More of it is either
// brought up by the lab (manifest), or known to the agents only (known).
func (b *bench) grow(
	ctx context.Context, kind string, sizes []int, where podsOf, manifest, known func(n int) string, measures ...string,
) (err error) {
	var chosen []int
	for _, n := range sizes {
		if b.any(growthName(kind, n)) {
			chosen = append(chosen, n)
		}
	}
	if len(chosen) == 0 {
		return nil
	}
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
	where.name = "small"
	small, err := b.growthWay(ctx, &c, where, "")
	if err != nil {
		return err
	}
	for _, n := range chosen {
		if err := b.growTo(ctx, n, kind, where, manifest, known, small, measures); err != nil {
			return err
		}
	}
	return nil
}

// growTo is one size.
func (b *bench) growTo(
	ctx context.Context, n int, kind string, where podsOf, manifest, known func(n int) string, small *way, measures []string,
) (err error) {
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
	where.name = fmt.Sprintf("%s-%d", kind, n)
	if manifest != nil {
		where.manifest += manifest(n)
	}
	more := ""
	if known != nil {
		more = known(n)
	}
	large, err := b.growthWay(ctx, &c, where, more)
	if err != nil {
		return err
	}
	name := growthName(kind, n)
	if err := b.idle(ctx, name, large); err != nil {
		return err
	}
	for _, m := range measures {
		if err := b.contest(ctx, name+m, measureOf(m), large, small); err != nil {
			return err
		}
	}
	return nil
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
	wait(ctx, 3*time.Second) // until what is new has been taken in
	const long = 2 * time.Second
	before, err := w.carriers.read()
	if err != nil {
		return err
	}
	wait(ctx, long)
	after, err := w.carriers.read()
	if err != nil {
		return err
	}
	b.figure(name+"-idle", after.since(before)*1e3/long.Seconds(), "ms/s")
	return ctx.Err()
}

// growFlows compares one flow with many between the same pods, in one lab.
func (b *bench) growFlows(ctx context.Context) (err error) {
	var c closer
	defer func() { err = errors.Join(err, c.close()) }()
	var few *way
	for _, n := range growthFlows {
		if !b.any(growthName("flows", n)) {
			continue
		}
		if few == nil {
			if few, err = b.podsWay(ctx, &c, b.netctl, podsOf{name: "flows", nodes: 1}); err != nil {
				return err
			}
		}
		many := *few
		many.flows = n
		if err := b.contest(ctx, growthName("flows", n)+"-udp-64", flood(ends.DefaultSize), &many, few); err != nil {
			return err
		}
	}
	return nil
}
