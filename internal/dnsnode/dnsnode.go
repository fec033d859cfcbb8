// Package dnsnode is the cluster's name server alone: on sockets instead of inside
// a datapath, in a Deployment behind the Service kube-dns, on a node or on any host.
//
// It is a process' life around package dns, which has the names and the answers:
// it follows the State, says when it is ready, and when it is told to end it is
// unready first and goes on answering while clients go elsewhere.
//
// Tests: cmd/netctl runs it on loopback addresses.
package dnsnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/dns/metrics"
	"github.com/netctl/netctl/dns/options"
	"github.com/netctl/netctl/internal/agent/probe"
	"github.com/netctl/netctl/internal/model"
)

// Source says what the cluster is.
type Source interface {
	Run(ctx context.Context, publish func(*model.State)) error
}

// Config is what Run needs.
type Config struct {
	Source Source
	// Domain returns the domain of the cluster's names; it is asked again while it
	// fails.
	Domain      func(ctx context.Context) (string, error)
	Listen      []netip.AddrPort // UDP and TCP
	ResolvConf  []string         // files that name where names outside are asked; none: the usual ones
	Drain       time.Duration    // how long to go on answering when told to end
	ProbeSocket string           // "": nobody watches over us
	Options     *options.File    // what else it is told, while it may change
	Metrics     string           // address to serve Prometheus' metrics at; "": none
	Version     string           // of the program, for the metrics
	Log         *slog.Logger
}

// dnsService is the Service that name servers of a cluster stand behind.
//
//nolint:gochecknoglobals // a name known at compile time
var dnsService = model.Name{Namespace: "kube-system", Name: "kube-dns"}

// server is the name server at work.
type server struct {
	cfg Config
	dns *dns.Server

	own                   atomic.Pointer[[]netip.Addr]          // virtual addresses that questions come by; never nil
	pods                  atomic.Pointer[map[netip.Addr]string] // namespaces of the cluster's pods; never nil
	synced, bound, ending atomic.Bool

	mu      sync.Mutex
	options *options.Options // guarded by mu; never nil
	state   *model.State     // the last one; nil before the first; guarded by mu
	suffix  string           // the domain of the names; guarded by mu
}

// Run answers until the context ends, and for Config.Drain after that.
func Run(ctx context.Context, cfg Config) error {
	n := &server{cfg: cfg, options: cfg.Options.Options()}
	n.own.Store(new([]netip.Addr))
	n.pods.Store(new(map[netip.Addr]string))
	upstreams := dns.NewResolvConf(dns.ResolvConfConfig{Paths: cfg.ResolvConf, Refuse: n.refuse, Logger: cfg.Log})
	n.dns = dns.New(dns.Config{
		Upstreams: upstreams.Upstreams, Refuse: n.refuse, Namespace: func(a netip.Addr) string { return (*n.pods.Load())[a] },
		MaxInFlight: n.options.MaxConcurrent, Logger: cfg.Log,
	})
	if err := n.dns.Configure(n.options); err != nil {
		return fmt.Errorf("the name server's options: %w", err)
	}
	return n.run(ctx)
}

// run serves until the context ends, and then for as long as it takes clients to
// go elsewhere.
func (n *server) run(ctx context.Context) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		n.ending.Store(true)
		if n.cfg.Drain > 0 {
			n.cfg.Log.Info("told to end, answering on for a while", "drain", n.cfg.Drain)
		}
		time.AfterFunc(n.cfg.Drain, stop)
	})()
	g, serving := errgroup.WithContext(serving)
	g.Go(func() error {
		domain, err := n.domain(serving)
		if err != nil {
			return err
		}
		return n.cfg.Source.Run(serving, func(s *model.State) {
			heard := s.Heard
			if heard.IsZero() { // not measured
				heard = time.Now()
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			n.state, n.suffix = s, domain
			n.learn()
			n.dns.Programmed(time.Since(heard))
		})
	})
	g.Go(func() error { return n.followOptions(serving) })
	if n.cfg.Metrics != "" {
		g.Go(func() error { return n.measure(serving) })
	}
	g.Go(func() error { return n.dns.Run(serving) })
	g.Go(func() error {
		return n.dns.Listen(serving, n.cfg.Listen, func(at []netip.AddrPort) {
			n.bound.Store(true)
			var list []string
			for _, a := range at {
				list = append(list, a.String())
			}
			n.cfg.Log.Info("name server listens", "addresses", strings.Join(list, ","))
		})
	})
	if n.cfg.ProbeSocket != "" {
		g.Go(func() error {
			return probe.Serve(serving, n.cfg.ProbeSocket, probe.Subject{Live: func() error { return nil }, Ready: n.ready})
		})
	}
	if err := g.Wait(); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// measureRetry is how soon metrics are served again that could not be.
const measureRetry = time.Second

// measure serves the metrics until the context ends. Names are answered without them:
// the port may be somebody else's.
func (n *server) measure(ctx context.Context) error {
	for said := false; ; {
		err := metrics.Serve(ctx, n.cfg.Metrics, func(w io.Writer) error { return n.dns.WriteMetrics(w, n.cfg.Version) })
		if ctx.Err() == nil && !said {
			said = true
			n.cfg.Log.Warn("the name server's metrics are not served, trying again", "error", err)
		}
		select {
		case <-time.After(measureRetry):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// domainRetry is how often the cluster is asked again for its domain.
const domainRetry = 5 * time.Second

// domain returns the domain of the cluster's names, however long it takes to know.
func (n *server) domain(ctx context.Context) (string, error) {
	for {
		domain, err := n.cfg.Domain(ctx)
		if err == nil {
			return domain, nil
		}
		n.cfg.Log.Warn("the cluster's domain is not known yet, trying again; --cluster-domain sets it", "error", err)
		select {
		case <-time.After(domainRetry):
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
}

// optionsEvery is how often the options are looked at.
const optionsEvery = time.Second

// followOptions takes over what changes in the options until the context ends.
func (n *server) followOptions(ctx context.Context) error {
	tick := time.NewTicker(optionsEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.takeOptions(n.cfg.Options.Options())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// takeOptions works by other options from now on, unless they are refused.
func (n *server) takeOptions(o *options.Options) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if o == n.options {
		return
	}
	old := n.options
	n.options = o
	if err := n.dns.Configure(o); err != nil {
		n.cfg.Log.Error("the name server's options are refused, the former ones hold on", "error", err)
		return
	}
	if o.NeedPods() && !old.NeedPods() {
		n.cfg.Log.Warn("the name server's options need pods, which are read from the next start on")
	}
	n.learn()
}

// learn publishes the names of the last State; mu is held.
func (n *server) learn() {
	s := n.state
	if s == nil {
		return
	}
	in := dns.InputOf(s)
	in.Domain, in.Server, in.Previous = n.suffix, dnsService, n.dns.Zone()
	in.Configure(n.options)
	if svc := s.Service(dnsService); svc != nil {
		in.Addresses = svc.ClusterIPs
		own := slices.Clone(svc.ClusterIPs)
		n.own.Store(&own)
	}
	n.dns.Publish(dns.Compile(in))
	if n.options.NeedPods() {
		pods := dns.Namespaces(s.Pods)
		n.pods.Store(&pods)
	}
	n.synced.Store(s.Synced)
}

// refuse keeps questions from coming back to us.
func (n *server) refuse(upstream netip.Addr) error {
	if slices.Contains(*n.own.Load(), upstream) {
		return fmt.Errorf("%s is the Service %s, which we may stand behind", upstream, dnsService)
	}
	for _, a := range n.cfg.Listen {
		if a.Addr() == upstream && a.Port() == 53 {
			return fmt.Errorf("%s is this name server itself", upstream)
		}
	}
	return nil
}

// ready answers the probe.
func (n *server) ready() error {
	switch {
	case n.ending.Load():
		return errors.New("the name server is about to end")
	case !n.bound.Load():
		return errors.New("the name server does not listen yet")
	case !n.synced.Load():
		return errors.New("the name server waits for the cluster's state")
	}
	return nil
}
