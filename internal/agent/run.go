package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/handover"
	"github.com/netctl/netctl/internal/agent/probe"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

// process is what outlives a term of service: what the cluster says, and whose
// turn it is. Everything that only one agent of a node may hold is in the Agent,
// which lives for a term.
//
//	           first State, settings fit     seat is ours
//	starting ──────────────────────────▶ waiting ───────▶ serving
//	                                        ▲               │ a successor asks
//	                                        └── retired ◀───┘
//	                                     nobody serves any more: at once if the
//	                                     successor failed or ended in order
type process struct {
	cfg   Config
	log   *slog.Logger
	state *atomic.Pointer[model.State]
	first chan struct{} // closed when there is a State
	news  chan struct{} // a State that is not looked at yet; while no Agent serves

	facts  settings.Cluster // immutable after settle
	ranges []netip.Prefix   // immutable after settle

	serving atomic.Pointer[Agent]
	retired atomic.Bool
}

// Run is the life of an agent: it follows the cluster, and whenever it is its
// turn it takes over what a former one left, serves, and lets go of everything.
func Run(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	// Before the seat is taken: an agent that cannot have its directory must not end
	// one that serves.
	if err := cni.OwnDirectory(cfg.StateDir); err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	p := newProcess(cfg)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := cfg.Source.Run(ctx, p.learn); err != nil {
			return fmt.Errorf("cluster source: %w", err)
		}
		return nil
	})
	if cfg.ProbeSocket != "" {
		g.Go(func() error {
			return probe.Serve(ctx, cfg.ProbeSocket, probe.Subject{Live: p.live, Ready: p.ready})
		})
	}
	g.Go(func() error { return p.terms(ctx) })
	return ignoreDone(ctx, g.Wait())
}

func newProcess(cfg Config) *process {
	return &process{
		cfg: cfg, log: cfg.Log, state: new(atomic.Pointer[model.State]),
		first: make(chan struct{}), news: make(chan struct{}, 1),
	}
}

// learn is called with every State, from one goroutine.
func (p *process) learn(s *model.State) {
	if p.state.Swap(s) == nil {
		close(p.first)
	}
	select {
	case p.news <- struct{}{}:
	default:
	}
	if a := p.serving.Load(); a != nil {
		a.delays.Heard(s.Revision, s.Heard)
		a.loop.Kick()
	}
}

// terms serves whenever it is this process' turn, until the context ends.
func (p *process) terms(ctx context.Context) error {
	if err := p.settle(ctx); err != nil {
		return err
	}
	// The one that serves is asked to give way only now, when nothing is left to
	// find out that could keep us from serving, as far as it can be known.
	seat, err := handover.Take(ctx, p.cfg.StateDir)
	if err != nil {
		return err
	}
	for {
		if err := errors.Join(p.term(ctx, seat), seat.Leave()); err != nil || ctx.Err() != nil {
			return err
		}
		p.retired.Store(true)
		p.log.Info("gave way to another agent of this node; waiting to be ended, or needed again")
		if seat, err = seat.Retake(ctx); err != nil {
			return err
		}
		p.retired.Store(false)
		p.log.Warn("no other agent serves this node any more, so this one does again")
	}
}

// term serves until the context ends or a successor asks.
func (p *process) term(ctx context.Context, seat *handover.Seat) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-seat.Asked():
			cancel()
		case <-ctx.Done():
		}
	}()
	a := newAgent(p)
	defer func() { err = errors.Join(err, a.close()) }()
	defer p.serving.Store(nil)
	if err := a.open(); err != nil {
		return err
	}
	if err := a.restore(); err != nil {
		return err
	}
	if err := seat.Serving(); err != nil {
		return err
	}
	p.serving.Store(a)
	a.loop.Kick() // for a State that came before
	return a.serve(ctx)
}

// settleRetry is how often the cluster is asked again for what it says of itself.
const settleRetry = 5 * time.Second

// settle returns when it is known what the cluster leaves open, and whether we can
// work with that.
func (p *process) settle(ctx context.Context) error {
	select {
	case <-p.first:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if p.cfg.Cluster == nil { // nothing but the State and the configuration
		p.ranges = p.cfg.ClusterCIDRs
		return nil
	}
	for {
		facts, err := p.cfg.Cluster.Facts(ctx)
		if err == nil {
			p.facts = facts
			break
		}
		p.log.Warn("the cluster's own settings are not known yet, trying again", "error", err)
		select {
		case <-time.After(settleRetry):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	for {
		host, err := hostRanges()
		if err != nil {
			return fmt.Errorf("look at the node's own routes: %w", err)
		}
		s := p.state.Load()
		p.ranges, err = settings.PodRanges(p.cfg.ClusterCIDRs, settings.Surroundings{
			Node: p.cfg.Node, State: s, PodSubnets: p.facts.PodSubnets, Host: host,
		})
		if err != nil {
			return err
		}
		if len(p.ranges) > 0 || len(s.BlockPools) > 0 {
			p.log.Info("settings found", "pod_ranges", fmt.Sprint(p.ranges), "service_ranges", fmt.Sprint(s.ServiceCIDRs),
				"domain", settings.Domain(p.cfg.Domain, p.facts.Domain), "name_servers", fmt.Sprint(p.facts.NameServers))
			return nil
		}
		p.log.Warn("the services' ranges are not known yet, waiting for a ServiceCIDR")
		select {
		case <-p.news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// staleTurn is how long ago the loop and the housekeeping may have turned before
// the process counts as stuck: they do so twice a minute at least.
const staleTurn = 3 * time.Minute

// live answers the probe: what an agent waits for (the cluster, its turn) is no
// reason to end it, but work that does not go on is.
func (p *process) live() error {
	a := p.serving.Load()
	if a == nil {
		return nil
	}
	return a.alive(time.Now())
}

// ready answers the probe: it serves, or it has served and could again.
func (p *process) ready() error {
	if p.retired.Load() {
		return nil
	}
	a := p.serving.Load()
	if a == nil {
		return errors.New("the agent does not serve yet: it waits for the cluster's state, or for its turn")
	}
	return a.ready()
}

// hostRanges lists what this host uses addresses for: its own ones and its routes,
// ours aside.
func hostRanges() ([]settings.HostRange, error) {
	links, err := kernel.DescribeAll()
	if err != nil {
		return nil, err
	}
	var out []settings.HostRange
	for _, l := range links {
		if l.Name == HostInterface {
			continue
		}
		for _, a := range l.Addresses {
			out = append(out, settings.HostRange{Prefix: a.Masked(), What: "address of this node's " + l.Name})
		}
		for _, r := range l.Routes {
			if !r.Own {
				out = append(out, settings.HostRange{Prefix: r.Dst, What: "route of this node to " + l.Name})
			}
		}
	}
	return out, nil
}

// alive reports what of the agent does not go on.
func (a *Agent) alive(now time.Time) error {
	var errs []error
	for what, last := range map[string]time.Time{"loop": a.loop.Turned(), "housekeeping": time.Unix(0, a.turned.Load())} {
		if last.Unix() > 0 && now.Sub(last) > staleTurn {
			errs = append(errs, fmt.Errorf("%s stands still since %s", what, now.Sub(last).Round(time.Second)))
		}
	}
	return errors.Join(errs...)
}

// ready reports why pods cannot be added here yet.
func (a *Agent) ready() error {
	select {
	case <-a.cni.Serving():
	default:
		return errors.New("the agent takes over the pods that run already")
	}
	if a.installer == nil {
		return nil
	}
	return a.installer.Err()
}
