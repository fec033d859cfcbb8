package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/netctl/netctl/internal/kernel"
)

const iperfPort = "5201"

// twoPods are idle pods at fixed places; the benchmarks bring their programs.
const twoPods = `apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  nodeName: %[2]s
  containers: [{name: idle, command: [sleep, "3600"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: %[3]s}
spec:
  nodeName: %[4]s
  containers: [{name: idle, command: [sleep, "3600"]}]
`

// path is a way from one namespace to an address in another one.
type path struct {
	from, to *kernel.Namespace
	addr     netip.Addr // where to listens
	agents   []int      // processes that carry the traffic, if any
	cpu      []float64  // seconds that they took per GiB, one value a run
}

// sameNode compares two pods of one node with two namespaces that a third one
// connects by veth pairs and kernel routing.
func (b *bench) sameNode(ctx context.Context) (err error) {
	l, err := b.up(ctx, "bench-same", 1, fmt.Sprintf(twoPods, "client", "node1", "server", "node1"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.down()) }()
	ours, err := l.between("client", "server")
	if err != nil {
		return err
	}
	defer ours.close()
	theirs, remove, err := vethPath(filepath.Base(b.dir))
	defer func() { err = errors.Join(err, remove()) }()
	if err != nil {
		return err
	}
	defer theirs.close()
	return b.compare(ctx, "same-node", "same-node", ours, theirs)
}

// crossNode compares two pods of two nodes with the same pods' namespaces
// joined by kernel VXLAN over the same underlay.
func (b *bench) crossNode(ctx context.Context) (err error) {
	l, err := b.up(ctx, "bench-cross", 2, fmt.Sprintf(twoPods, "client", "node1", "server", "node2"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.down()) }()
	ours, err := l.between("client", "server")
	if err != nil {
		return err
	}
	defer ours.close()
	theirs, err := l.vxlanPath()
	if err != nil {
		return err
	}
	defer theirs.close()
	return b.compare(ctx, "cross-node", "encrypted-vs-vxlan", ours, theirs)
}

// compare measures throughput and latency of two paths in turns.
func (b *bench) compare(ctx context.Context, name, ratio string, ours, theirs *path) error {
	seconds := pick(b, 2, 3)
	tcp := func(p *path) func() (float64, error) {
		return func() (float64, error) { return p.iperf(ctx, seconds) }
	}
	ratioName := ratio
	if ratio == name {
		ratioName += "-tcp"
	}
	if err := b.pairs(ctx, ratioName, "Gbit/s", tcp(ours), tcp(theirs)); err != nil {
		return err
	}
	b.figure(name+"-agent-cpu", quantile(ours.cpu, 0.5), "s/GiB")
	exchanges := pick(b, 3000, 10000)
	rtt := func(p *path) func() (float64, error) {
		return func() (float64, error) {
			all, err := p.exchanges(ctx, exchanges)
			return quantile(all, 0.5).Seconds() * 1e6, err
		}
	}
	return b.pairs(ctx, name+"-rtt", "us", rtt(ours), rtt(theirs))
}

func (p *path) close() {
	_ = p.from.Close()
	_ = p.to.Close()
}

// between returns the way from one pod of the lab to another.
func (t *testLab) between(from, to string) (*path, error) {
	pods, err := t.pods()
	if err != nil {
		return nil, err
	}
	p := &path{}
	for _, node := range t.NodeNames() {
		pid, ok := t.AgentPID(node)
		if !ok {
			return nil, fmt.Errorf("agent of %s does not run", node)
		}
		p.agents = append(p.agents, pid)
	}
	if p.addr, err = netip.ParseAddr(pods[to].Addresses[0]); err != nil {
		return nil, err
	}
	if p.from, err = kernel.OpenNamespace(filepath.Join(kernel.RuntimeDir, pods[from].Namespace)); err != nil {
		return nil, err
	}
	p.to, err = kernel.OpenNamespace(filepath.Join(kernel.RuntimeDir, pods[to].Namespace))
	return p, err
}

// ip runs ip(8).
func ip(args string) error {
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput() //nolint:noctx // ends at once
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", args, err, out)
	}
	return nil
}

func ips(lines ...string) error {
	for _, line := range lines {
		if err := ip(line); err != nil {
			return err
		}
	}
	return nil
}

// vethPath makes three namespaces, client, router and server, as a CNI plugin
// that leaves forwarding to the kernel would.
func vethPath(prefix string) (*path, func() error, error) {
	c, r, s := prefix+"-c", prefix+"-r", prefix+"-s"
	remove := func() error {
		var errs []error
		for _, ns := range []string{c, r, s} {
			errs = append(errs, kernel.DeleteNamespace(filepath.Join(kernel.RuntimeDir, ns)))
		}
		return errors.Join(errs...)
	}
	open := map[string]*kernel.Namespace{}
	for _, name := range []string{c, r, s} {
		ns, err := kernel.CreateNamespace(filepath.Join(kernel.RuntimeDir, name))
		if err != nil {
			return nil, remove, err
		}
		open[name] = ns
	}
	defer open[r].Close()
	if err := kernel.SetForwarding(open[r]); err != nil {
		return nil, remove, err
	}
	err := ips(
		"link add eth0 netns "+c+" type veth peer name c netns "+r,
		"link add eth0 netns "+s+" type veth peer name s netns "+r,
		"-n "+c+" address add 10.9.1.2/24 dev eth0", "-n "+r+" address add 10.9.1.1/24 dev c",
		"-n "+s+" address add 10.9.2.2/24 dev eth0", "-n "+r+" address add 10.9.2.1/24 dev s",
		"-n "+c+" link set eth0 up", "-n "+s+" link set eth0 up", "-n "+r+" link set c up", "-n "+r+" link set s up",
		"-n "+c+" route add default via 10.9.1.1", "-n "+s+" route add default via 10.9.2.1")
	return &path{from: open[c], to: open[s], addr: netip.MustParseAddr("10.9.2.2")}, remove, err
}

// vxlanPath gives the pods of a lab a second interface each, routed by their
// nodes' kernels into a VXLAN between the nodes' underlay addresses. It goes
// with the lab.
func (t *testLab) vxlanPath() (*path, error) {
	p, err := t.between("client", "server")
	if err != nil {
		return nil, err
	}
	p.agents, p.addr = nil, netip.MustParseAddr("10.8.2.2")
	pods, err := t.pods()
	if err != nil {
		return nil, err
	}
	s, err := t.Status()
	if err != nil {
		return nil, err
	}
	for i, pod := range []string{"client", "server"} {
		near, far := s.Nodes[i], s.Nodes[1-i]
		node, netns, k, o := near.Namespace, pods[pod].Namespace, strconv.Itoa(i+1), strconv.Itoa(2-i)
		ns, err := kernel.OpenNamespace(filepath.Join(kernel.RuntimeDir, node))
		if err != nil {
			return nil, err
		}
		if err := errors.Join(kernel.SetForwarding(ns), ns.Close()); err != nil {
			return nil, err
		}
		err = ips(
			"-n "+node+" link add vx type vxlan id 8 local "+near.Addresses[0]+" remote "+far.Addresses[0]+" dstport 4789",
			"-n "+node+" address add 10.8.0."+k+"/24 dev vx",
			"-n "+node+" link set vx up",
			"link add vx0 mtu 1450 netns "+netns+" type veth peer name pod mtu 1450 netns "+node,
			"-n "+netns+" address add 10.8."+k+".2/24 dev vx0", "-n "+node+" address add 10.8."+k+".1/24 dev pod",
			"-n "+netns+" link set vx0 up", "-n "+node+" link set pod up",
			"-n "+netns+" route add 10.8.0.0/16 via 10.8."+k+".1",
			"-n "+node+" route add 10.8."+o+".0/24 via 10.8.0."+o)
		if err != nil {
			return nil, err
		}
	}
	return p, nil
}

// iperf runs one TCP stream and returns what the server received, in Gbit/s.
func (p *path) iperf(ctx context.Context, seconds int) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds+20)*time.Second)
	defer cancel()
	server := exec.CommandContext(ctx, "iperf3", "-s", "-1", "-p", iperfPort)
	if err := kernel.StartIn(p.to, server); err != nil {
		return 0, err
	}
	defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
	before, err := p.agentCPU()
	if err != nil {
		return 0, err
	}
	result, err := p.iperfClient(ctx, seconds)
	if err != nil {
		return 0, fmt.Errorf("iperf3: %w", err)
	}
	after, err := p.agentCPU()
	if err != nil {
		return 0, err
	}
	if len(p.agents) > 0 {
		p.cpu = append(p.cpu, (after-before)/(result.End.Received.Bytes/(1<<30)))
	}
	return result.End.Received.Rate / 1e9, nil
}

// iperfResult is what matters of iperf3's report.
type iperfResult struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			Bytes float64 `json:"bytes"`
			Rate  float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	} `json:"end"`
}

// iperfClient sends until the time is over, as soon as the server listens.
func (p *path) iperfClient(ctx context.Context, seconds int) (iperfResult, error) {
	for {
		var out bytes.Buffer
		client := exec.CommandContext(ctx, "iperf3", "-c", p.addr.String(), "-p", iperfPort, "-t", strconv.Itoa(seconds), "-J")
		client.Stdout = &out
		if err := kernel.StartIn(p.from, client); err != nil {
			return iperfResult{}, err
		}
		var result iperfResult
		err := errors.Join(client.Wait(), json.Unmarshal(out.Bytes(), &result))
		switch {
		case strings.Contains(result.Error, "onnection refused") && ctx.Err() == nil: // it does not listen yet
			wait(ctx, 20*time.Millisecond)
		case result.Error != "": // the exit code does not tell
			return result, errors.New(result.Error)
		default:
			return result, err
		}
	}
}

// userHz is the unit of times in /proc: 100 on every architecture that Go
// runs on.
const userHz = 100

// agentCPU returns the processor time that the agents have taken, in seconds.
func (p *path) agentCPU() (float64, error) {
	var sum float64
	for _, pid := range p.agents {
		stat, err := readFile("/proc/%d/stat", pid)
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(stat, ") ")
		fields := strings.Fields(rest) // the third and on; utime and stime are 14 and 15
		for _, f := range fields[11:13] {
			ticks, err := strconv.ParseFloat(f, 64)
			if err != nil {
				return 0, err
			}
			sum += ticks / userHz
		}
	}
	return sum, nil
}
