package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/internal/agent/status"
)

// Sizes of the large cluster.
const (
	endpointsEach = 10
	writers       = 16 // that create objects at the same time
	slicesPath    = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
	servicesPath  = "/api/v1/namespaces/default/services"
)

// scale measures what agents weigh with few and with very many Services, and how
// soon one changed endpoint of the many is in force.
func (s *speed) scale(ctx context.Context) (err error) {
	c, err := s.up(ctx, "speed-scale", "netctl", pick(s, 1, 3))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.down()) }()
	probe, err := c.newProbe(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, probe.close()) }()
	rest := pick(s, 20*time.Second, 90*time.Second)
	wait(ctx, rest)
	if err := c.weigh(ctx, "kube-agent-idle"); err != nil {
		return err
	}

	n := pick(s, 500, 5000)
	start := time.Now()
	if err := c.fill(ctx, n); err != nil {
		return err
	}
	c.figure("kube-scale-objects-made", time.Since(start).Seconds(), "s")
	wait(ctx, rest)
	name := fmt.Sprintf("kube-agent-%d", n*endpointsEach)
	if err := c.weigh(ctx, name); err != nil {
		return err
	}
	// An agent that starts reads everything at once.
	for _, args := range [][]string{{"restart", "daemonset/netctl"}, {"status", "daemonset/netctl", "--timeout=5m"}} {
		if out, err := c.run(ctx, append([]string{"-n", "kube-system", "rollout"}, args...)...); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	wait(ctx, rest)
	if err := c.weigh(ctx, name+"-restarted"); err != nil {
		return err
	}
	if err := c.changes(ctx, n); err != nil {
		return err
	}
	return c.flips(ctx, probe, pick(s, 20, 200))
}

// wait sleeps, unless the context ends first.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// run runs kubectl and returns what it printed.
func (c *cluster) run(ctx context.Context, args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, c.kubectl, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

// fill makes n Services with 10 endpoints each. The endpoints are addresses of
// the cluster's pod range that no pod has; nobody asks them anything.
func (c *cluster) fill(ctx context.Context, n int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	addr := netip.MustParseAddr("10.244.60.0")
	for i := range n {
		var addrs []string
		for range endpointsEach {
			addrs = append(addrs, addr.String())
			addr = addr.Next()
		}
		name := fmt.Sprintf("service-%05d", i)
		g.Go(func() error {
			if err := c.create(ctx, servicesPath, newService(name, "TCP", 80)); err != nil {
				return err
			}
			return c.create(ctx, slicesPath, newSlice(name, "TCP", 8080, i, addrs...))
		})
	}
	return g.Wait()
}

// newService has no selector, so that no controller touches its endpoints.
func newService(name, protocol string, port int) object {
	return object{
		"apiVersion": "v1", "kind": "Service", "metadata": object{"name": name, "labels": object{"app": name}},
		"spec": object{"ports": []any{object{"name": "main", "protocol": protocol, "port": port}}},
	}
}

// newSlice says the same of every endpoint as the controller does of a pod.
func newSlice(service, protocol string, port, number int, addrs ...string) object {
	endpoints := make([]any, 0, len(addrs))
	for i, a := range addrs {
		endpoints = append(endpoints, object{
			"addresses": []any{a}, "nodeName": fmt.Sprintf("node%d", (number+i)%3+1),
			"conditions": object{"ready": true, "serving": true, "terminating": false},
			"targetRef": object{
				"kind": "Pod", "namespace": "default", "name": fmt.Sprintf("%s-7d9c5b6f4-%05d", service, i),
				"uid": fmt.Sprintf("6d2f0f6a-1b5e-4b53-9c3e-%06x%06x", number, i),
			},
		})
	}
	return object{
		"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
		"metadata": object{"name": service + "-abcde", "labels": object{
			"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "speed.netctl.io",
		}},
		"ports":     []any{object{"name": "main", "protocol": protocol, "port": port}},
		"endpoints": endpoints,
	}
}

// weigh prints the memory of the largest agent, now and at its highest.
func (c *cluster) weigh(ctx context.Context, name string) error {
	// Not the script itself, whose command line has the words too.
	const script = `for p in /proc/[0-9]*; do
  [ "$(cat $p/comm 2>/dev/null)" = netctl ] && tr '\0' ' ' <$p/cmdline | grep -q ' agent ' && cat $p/status
done; true`
	nodes := struct {
		Items []struct{ Metadata struct{ Name string } }
	}{}
	if err := c.get(ctx, "/api/v1/nodes", &nodes); err != nil {
		return err
	}
	largest := map[string]float64{}
	for _, n := range nodes.Items {
		out, err := c.onNode(ctx, n.Metadata.Name, script)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			key, rest, _ := strings.Cut(line, ":")
			if kb, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64); err == nil {
				largest[key] = max(largest[key], kb*1024/1e6)
			}
		}
	}
	if largest["VmRSS"] == 0 {
		return errors.New("no agent runs")
	}
	for _, f := range []struct{ key, suffix string }{
		{"VmRSS", "-rss"}, {"RssAnon", "-rss-anon"}, {"RssFile", "-rss-file"}, {"RssShmem", "-rss-shmem"}, {"VmHWM", "-rss-peak"},
	} {
		c.figure(name+f.suffix, largest[f.key], "MB")
	}
	return nil
}

// changes makes one endpoint after the other ready or not, and asks the agents how
// long that took from the API server's event to the tables in force.
func (c *cluster) changes(ctx context.Context, services int) error {
	for i := range pick(c.speed, 50, 400) {
		path := fmt.Sprintf("%s/service-%05d-abcde", slicesPath, i*37%services)
		if err := c.patch(ctx, path, []object{{"op": "replace", "path": "/endpoints/3/conditions/ready", "value": i/services%2 == 1}}); err != nil {
			return err
		}
		wait(ctx, 50*time.Millisecond)
	}
	wait(ctx, time.Second)
	agents, err := c.run(ctx, "-n", "kube-system", "get", "pods", "-l", "app.kubernetes.io/name=netctl", "-o", "name")
	if err != nil {
		return err
	}
	var worst status.Delay
	for agent := range strings.FieldsSeq(agents) {
		out, err := c.run(ctx, "-n", "kube-system", "exec", agent, "--", "netctl", "status", "-o", "json")
		if err != nil {
			return err
		}
		var s status.Status
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return err
		}
		fmt.Fprintf(c.log, "speed: %s %+v\n", s.Node, s.Delay)
		if s.Delay.P99 >= worst.P99 {
			worst = s.Delay
		}
	}
	c.figure("kube-change-agent-p50", worst.P50, "ms")
	c.figure("kube-change-agent-p99", worst.P99, "ms")
	c.figure("kube-change-agent-max", worst.Max, "ms")
	return nil
}
