// Package proxynode is the service proxy of one node without the rest of netctl:
// the pods, their addresses and the way to them belong to another CNI.
//
//	processes of the node ─┐ routes of the      ┌─▶ netstack ─┐
//	pods of the other CNI ─┴─ service ranges ─▶ netctl0       ├─ backend by the ─▶ ordinary socket
//	clients anywhere ──────── the node's own address ─▶ node port ┘  proxy's table      of the host
//
// There is no pod's TUN to write to, so nothing can be translated packet by packet:
// each connection ends here and goes on from a socket of the host, by whatever way
// the other CNI has made. Backends therefore see the node as the client.
//
// Files: compile.go is pure (State in, what the node should be out), choose.go
// picks backends, device.go is netctl0 and its guard, loop.go keeps the node as
// compiled.
//
// Invariants:
//   - Only addresses of this host and of its pods get through netctl0: a machine
//     beside the node must not use it as a door to virtual addresses.
//   - A backend is never a virtual address, a node port or an address that means
//     this host alone to itself (loopback, link-local): nothing goes in circles, and
//     nobody gets at sockets that are not on the network.
//   - What cannot be had is seen as kube-proxy would show it: refused where nobody
//     stands behind a service, silence where policy lets nobody answer.
//   - After Run nothing is left of it in the kernel, unless Config.Keep is set. What
//     a killed one left is taken over by the next.
//
// Tests: compile.go and choose.go on plain values; the rest in real namespaces, by
// the tests of cmd/netctl.
package proxynode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/internal/agent/probe"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/internal/notice"
	"github.com/netctl/netctl/proxy"
	"github.com/netctl/netctl/proxy/health"
)

// Source says what the cluster is.
type Source interface {
	Run(ctx context.Context, publish func(*model.State)) error
}

// Config is what Run needs.
type Config struct {
	Node   string
	Source Source
	// PodCIDRs are ranges of this node's pods, besides those that its Node object
	// names and the addresses of pods that the State knows.
	PodCIDRs []netip.Prefix
	// ServiceCIDRs are ranges of virtual addresses, besides those that the State
	// knows.
	ServiceCIDRs []netip.Prefix
	// Servers returns where API servers are reached; their addresses are never
	// routed to netctl0. nil: nowhere.
	Servers func() []netip.AddrPort
	// NodePorts are the addresses that have node ports, ExternalIPs serves what
	// Services name as such, Healthz and Metrics are where the proxy's health and
	// counters are ("": nowhere), Events is told what cannot be done (nil: nobody).
	NodePorts        proxy.NodePortAddresses
	ExternalIPs      bool
	Healthz, Metrics string
	Events           notice.Recorder
	MTU              int    // of netctl0; 0: that of ordinary networks
	Keep             bool   // leave netctl0 and its routes when Run ends
	ProbeSocket      string // "": nobody watches over us
	Log              *slog.Logger
}

const (
	defaultMTU = 1500
	minMTU     = 1280 // RFC 8200 §5
	maxMTU     = 65535
)

// Validate reports everything that is wrong with a Config.
func (c *Config) Validate() error {
	var errs []error
	if c.Node == "" {
		errs = append(errs, errors.New("the node's name is missing: set --node, or NODE_NAME in the environment"))
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		errs = append(errs, fmt.Errorf("MTU %d: IPv6 needs at least %d, and %d is the most", c.MTU, minMTU, maxMTU))
	}
	return errors.Join(errs...)
}

// The bounds of what one client has here. The node's own processes are one client,
// and so they get more than a pod has at an agent.
const (
	dialsPerClient = 2048
	connsPerClient = 16384
	flowsPerClient = 8192
)

// node is the proxy at work.
type node struct {
	cfg      Config
	log      *slog.Logger
	affinity *proxy.Affinity
	device   *kernel.TUN
	stack    *netstack.Stack
	sockets  *nodeport.Server
	health   *health.Server
	notices  *notice.Keeper
	output   atomic.Pointer[Output] // in force; never nil
	foreign  atomic.Uint64          // packets from sources that are not ours to serve

	mu    sync.Mutex
	state *model.State // guarded by mu; nil before the first
	ready error        // guarded by mu; nil once the node is as compiled

	kick     chan struct{} // capacity 1: look again
	reported map[string]bool
	taken    []model.Notice // the loop's own: ports that somebody else has
}

var errStarting = errors.New("the proxy waits for the cluster's state")

// Run serves until the context ends.
func Run(ctx context.Context, cfg Config) (err error) {
	if err := cfg.Validate(); err != nil {
		return err
	}
	if cfg.MTU == 0 {
		cfg.MTU = defaultMTU
	}
	n := &node{
		cfg: cfg, log: cfg.Log, affinity: proxy.NewAffinity(proxy.AffinityConfig{}),
		kick: make(chan struct{}, 1), ready: errStarting,
	}
	n.output.Store(&Output{Services: emptyTable()})
	n.notices = notice.New(cfg.Events, cfg.Log)
	n.health = health.New(health.Config{
		HealthzAddress: cfg.Healthz, MetricsAddress: cfg.Metrics, Mode: "netctl", Logger: cfg.Log,
		NoLocal: func() (int, int) { return n.output.Load().Services.NoLocalEndpoints() },
	})
	defer n.health.Close()
	if n.device, err = openDevice(cfg.MTU); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.letGo()) }()
	files, err := kernel.FileLimit()
	if err != nil {
		return err
	}
	limits := nodeport.LimitsFor(files)
	n.stack, err = netstack.New(netstack.Config{
		Out: n.send, Translate: n.translate, Holds: n.holds, Refuse: func(netip.Addr) error { return nil }, // translate has seen to it
		MTU: cfg.MTU, Files: files - limits.Files(), Logger: cfg.Log,
		Limits: netstack.Limits{DialsPerPod: dialsPerClient, ConnsPerPod: connsPerClient, FlowsPerPod: flowsPerClient},
	})
	if err != nil {
		return fmt.Errorf("start the network stack for sockets: %w", err)
	}
	defer n.stack.Close()
	n.sockets = nodeport.New(nodeport.Config{
		Pick: n.pick, Has: n.has, Limits: limits, Logger: cfg.Log,
		Place: func(netip.Addr) nodeport.Place { return nodeport.PlaceOutside }, // everything is reached from the host's own sockets
	})
	defer n.sockets.Close()
	return n.serve(ctx)
}

// serve runs the parts until the context ends or one of them fails.
func (n *node) serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	changes, err := kernel.WatchAddresses(ctx)
	if err != nil {
		return fmt.Errorf("watch the node's addresses: %w", err)
	}
	run := func(name string, f func(context.Context) error) {
		g.Go(func() error {
			if err := f(ctx); err != nil && (ctx.Err() == nil || !errors.Is(err, context.Canceled)) {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	run("cluster source", func(ctx context.Context) error { return n.cfg.Source.Run(ctx, n.learn) })
	run("network stack", n.stack.Run)
	run("node ports", n.sockets.Run)
	run("events", n.notices.Run)
	run(deviceName, n.read)
	run("loop", func(ctx context.Context) error { return n.loop(ctx, changes) })
	if n.cfg.ProbeSocket != "" {
		run("probes", func(ctx context.Context) error {
			return probe.Serve(ctx, n.cfg.ProbeSocket, probe.Subject{Live: func() error { return nil }, Ready: n.isReady})
		})
	}
	return g.Wait()
}

// learn is the source's: another State.
func (n *node) learn(s *model.State) {
	n.mu.Lock()
	n.state = s
	n.mu.Unlock()
	n.health.Heard(s.Revision)
	n.again()
}

// again asks the loop for a turn.
func (n *node) again() {
	select {
	case n.kick <- struct{}{}:
	default: // a turn is due already and will see what we saw
	}
}

func (n *node) known() *model.State {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.state
}

// isReady answers the probe.
func (n *node) isReady() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready
}

func (n *node) setReady(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ready = err
}
