package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/internal/agent/confirm"
	"github.com/netctl/netctl/internal/agent/estate"
	"github.com/netctl/netctl/internal/agent/handover"
	"github.com/netctl/netctl/internal/agent/probe"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/drain"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

// process is what outlives a term of service: what the cluster says, and whose
// turn it is. Everything that only one agent of a node may hold is in the Agent,
// which lives for a term.
//
//	           first State, settings fit       seat is ours
//	starting ──────────────────▶ prepared ──────────────▶ serving ◀─┐ it fails
//	                                 ▲                       │ a successor asks
//	                                 │                       ├──────┘
//	                                 └────── retired ◀───────┘ it serves
//	                           nobody serves any more: at once if the
//	                           successor failed or ended in order
type process struct {
	cfg   Config
	log   *slog.Logger
	state *atomic.Pointer[model.State]
	first chan struct{} // closed when there is a State
	news  chan struct{} // a State that is not looked at yet; while no Agent serves

	keeper *estate.Custodian
	drains sync.WaitGroup // connections that ended here when another agent took over

	facts   settings.Cluster  // immutable after settle
	ranges  []netip.Prefix    // immutable after settle
	settled chan struct{}     // closed when facts and ranges are there, which only a cluster has
	sure    confirm.Confirmer // of what cluster says; without one there is nothing to confirm

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
	var err error
	if p.keeper, err = estate.NewCustodian(cfg.HoldSocket, cfg.Log); err != nil {
		return err
	}
	defer p.drains.Wait()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := cfg.Source.Run(ctx, p.learn); err != nil {
			return fmt.Errorf("cluster source: %w", err)
		}
		return nil
	})
	if cfg.ProbeSocket != "" && !cfg.StandIn { // else it is that of the agent it stands in for
		g.Go(func() error {
			return probe.Serve(ctx, cfg.ProbeSocket, probe.Subject{Live: p.live, Ready: p.ready})
		})
	}
	g.Go(func() error { return p.terms(ctx) })
	if cfg.Cluster != nil {
		g.Go(func() error { return p.confirm(ctx) })
	}
	if err := g.Wait(); !errors.Is(err, errReplaced) {
		return ignoreDone(ctx, err)
	}
	return nil
}

// errReplaced: a stand-in is not needed any more.
var errReplaced = errors.New("the agent that this one stood in for serves again")

func newProcess(cfg Config) *process {
	return &process{
		cfg: cfg, log: cfg.Log, state: new(atomic.Pointer[model.State]),
		first: make(chan struct{}), news: make(chan struct{}, 1), settled: make(chan struct{}),
		sure: confirm.Confirmer{Cluster: cfg.Cluster, Dir: cfg.StateDir, Log: cfg.Log},
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
		a.health.Heard(s.Revision)
		a.loop.Kick()
	}
}

// terms serves whenever it is this process' turn, until the context ends.
func (p *process) terms(ctx context.Context) error {
	if err := p.sure.Await(ctx); err != nil {
		return err
	}
	if err := p.settle(ctx); err != nil {
		return err
	}
	a := newAgent(p)
	if err := a.prepare(); err != nil {
		return errors.Join(err, a.close())
	}
	if err := p.sure.Await(ctx); err != nil { // there may be one to follow by now
		return errors.Join(err, a.close())
	}
	// The one that serves is asked to hand over only now, when nothing is left to
	// find out or to make that could keep us from serving, as far as it can be known.
	seat, legacy, err := handover.Take(ctx, p.cfg.StateDir, a.wants()...)
	if errors.Is(err, handover.ErrNotNeeded) {
		p.log.Info("not needed: another agent of this node serves")
		return errors.Join(errReplaced, a.close())
	}
	if err != nil {
		return errors.Join(err, a.close())
	}
	for {
		if err := p.term(ctx, a, seat, legacy); err != nil || ctx.Err() != nil {
			return err
		}
		p.retire(true)
		if p.cfg.StandIn {
			p.log.Info("gave way to the agent that this one stood in for")
			p.drains.Wait()
			return errReplaced
		}
		p.log.Info("gave way to another agent of this node; waiting to be ended, or needed again")
		if seat, err = seat.Retake(ctx); err != nil {
			return err
		}
		legacy = nil
		p.retire(false)
		p.log.Warn("no other agent serves this node any more, so this one does again")
		a = newAgent(p)
		if err := a.prepare(); err != nil {
			return errors.Join(err, a.close(), seat.Leave())
		}
	}
}

// term serves until the context ends or a successor serves. It owns the Agent, and
// the seat is left after it.
func (p *process) term(ctx context.Context, a *Agent, seat *handover.Seat, legacy *handover.Legacy) (err error) {
	began := time.Now()
	endLife := a.live(context.WithoutCancel(ctx))
	end := func() error {
		err := a.letGo()
		endLife()
		return errors.Join(err, a.close())
	}
	var drained bool
	defer func() {
		if !drained {
			err = errors.Join(err, end())
		}
		if err != nil && ctx.Err() == nil {
			seat.Failed()
		}
		err = errors.Join(err, seat.Leave())
	}()
	e := p.inherit(ctx, a, legacy)
	for {
		from := e.String()
		if err := a.seize(e); err != nil {
			return err
		}
		if err := p.enter(a, seat); err != nil {
			return err
		}
		if legacy != nil {
			_ = legacy.Conn().Close() // all is said; connections that drain have their own
		}
		p.log.Info("agent carries packets", "inherited", from, "from_agent", legacy != nil, "took", time.Since(began).Round(time.Microsecond))
		p.serving.Store(a)
		heir, err := p.serve(ctx, a, seat)
		p.serving.Store(nil)
		switch {
		case err != nil && heir != nil:
			return errors.Join(err, heir.Refuse(err))
		case err != nil:
			return err
		case heir == nil: // told to end, or asked by one of an earlier version
			last := ctx.Err() != nil && !errors.Is(context.Cause(ctx), errChanged)
			if ctx.Err() == nil || last && p.keeper.Child() && !p.cfg.StandIn {
				p.keeper.Goodbye() // a held copy would keep the next one from its own
			}
			return nil
		}
		began = time.Now()
		d := p.finish(a)
		if err = p.handOver(ctx, a, heir, d); err == nil {
			p.log.Info("another agent serves", "after", time.Since(began).Round(time.Microsecond))
			drained = true
			p.keeper.Goodbye()
			p.drains.Go(func() { p.drain(a, d, end) })
			return heir.Conn().Close()
		}
		p.log.Warn("this agent serves on, for its successor does not", "error", err)
		if e, err = a.goOn(seat, d); err != nil {
			return fmt.Errorf("go on after a successor failed: %w", err)
		}
		legacy = nil
	}
}

// goOn takes everything back from a successor that failed, for seize.
func (a *Agent) goOn(seat *handover.Seat, d *retirement) (estate.Estate, error) {
	if err := d.takeBack(); err != nil {
		return nil, err
	}
	all, done := a.borrowed()
	for name := range all {
		if estate.IsListener(name) {
			delete(all, name) // at work again
		}
	}
	e, err := all.Copy()
	done()
	a.keeper.Claim() // the successor may have
	a.relieve, a.heritage = func() {}, nil
	return e, errors.Join(err, seat.Resume(), a.letGo())
}

// enter is the moment from which on this agent serves and the one before does not.
func (p *process) enter(a *Agent, seat *handover.Seat) error {
	// Before anybody lets go for us: from then on our death must be noticed, and what
	// the predecessor had kept must stay until we have given our own.
	p.keeper.Claim()
	due := seat.Due()
	if !due.IsZero() && time.Now().After(due) {
		return errors.New("the agent that handed over has been kept waiting for too long, and may go on")
	}
	if a.heritage != nil {
		ctx, cancel := context.WithTimeout(context.Background(), lockTime) // within what due leaves
		defer cancel()
		h := a.heritage
		if err := h.Serve(ctx); err != nil { // whether that one is dead or goes on, the seat knows
			p.log.Warn("connections of the agent before are lost", "error", err)
			a.heritage = nil
			return seat.Serving()
		}
		go func() { // as long as the process, which does not stay for it
			if err := h.Run(context.Background()); err != nil {
				p.log.Warn("connections of the agent before are lost", "error", err)
			}
		}()
	}
	return seat.Serving()
}

// inherit returns what there is for an agent to go on with: from the one before, or
// from the holders.
func (p *process) inherit(ctx context.Context, a *Agent, legacy *handover.Legacy) estate.Estate {
	dir := filepath.Join(p.cfg.StateDir, estate.HoldersDir)
	if legacy != nil {
		go p.keeper.Sweep(ctx, dir)
		return legacy.Items
	}
	var e estate.Estate
	e, a.relieve = p.keeper.Found(ctx, dir)
	a.free = func() {
		p.log.Warn("a holder has a device open of which this agent has no copy, so it is to let go of all: devices lose their carrier for a moment")
		a.free = nil
		p.keeper.Free(ctx, dir)
	}
	return e
}

// serve serves until the context ends or a successor asks, which is returned when
// it is one that everything can be handed to.
func (p *process) serve(ctx context.Context, a *Agent, seat *handover.Seat) (heir *handover.Heir, err error) {
	yield := make(chan struct{})
	ended, quit := context.WithCancel(ctx)
	defer quit()
	asked := make(chan *handover.Heir, 1)
	go func() {
		defer close(asked)
		select {
		case h := <-seat.Heirs():
			asked <- h
			close(yield)
		case <-seat.Asked():
			quit()
		case <-ended.Done():
		}
	}()
	err = a.serve(ended, yield)
	quit()
	return <-asked, err
}

// retirement is a process' connections on their way to an end, or back.
type retirement struct {
	theirs int // the successor's end, -1: there is none
	cancel context.CancelFunc
	done   chan struct{}
	err    error // of drain.Old, when done
}

// finish begins to finish connections that end in this process.
func (p *process) finish(a *Agent) *retirement {
	ctx, cancel := context.WithTimeout(context.Background(), cmp.Or(p.cfg.DrainLimit, DefaultDrainLimit))
	d := &retirement{theirs: -1, cancel: cancel, done: make(chan struct{})}
	ours, theirs, err := drain.Pair()
	if err != nil {
		d.err = errors.Join(drain.ErrNotTaken, err)
		close(d.done)
		return d
	}
	d.theirs = theirs
	go func() {
		defer close(d.done)
		d.err = drain.Old(ctx, ours, a.ends())
	}()
	return d
}

// takeBack has the connections carried on here.
func (d *retirement) takeBack() error {
	d.cancel()
	<-d.done
	if errors.Is(d.err, drain.ErrNotTaken) {
		return nil
	}
	return errors.Join(errors.New("its connections are gone"), d.err)
}

// handOver gives a successor everything and returns when it serves.
func (p *process) handOver(ctx context.Context, a *Agent, heir *handover.Heir, d *retirement) error {
	errs := []error{a.closePool()}
	all, done := a.borrowed()
	defer done()
	for name, fds := range all {
		errs = append(errs, heir.Give(name, fds...))
	}
	if d.theirs >= 0 {
		errs = append(errs, heir.Give(estate.Drain, d.theirs))
		kernel.CloseFDs([]int{d.theirs})
	}
	if err := a.exportAll(heir); err != nil {
		p.log.Warn("the successor does not know all that it wants to", "error", err)
	}
	errs = append(errs, heir.Leave())
	if err := errors.Join(errs...); err != nil {
		return errors.Join(err, heir.Refuse(err))
	}
	// Whoever ends this process now ends it a moment later.
	return heir.Await(context.WithoutCancel(ctx))
}

// lateAnswers is how long an agent that has handed over keeps its devices, for
// answers of name servers that it has asked.
const lateAnswers = 500 * time.Millisecond

// drain is what an agent does after another one has taken over.
func (p *process) drain(a *Agent, d *retirement, end func() error) {
	began := time.Now()
	select {
	case <-d.done:
		if errors.Is(d.err, drain.ErrNotTaken) { // back in service, where there is none
			_ = a.sockets.Close()
		}
	case <-time.After(lateAnswers):
	}
	<-time.After(time.Until(began.Add(lateAnswers)))
	err := a.letGo()
	<-d.done
	d.cancel()
	if d.err != nil {
		p.log.Warn("connections that end in this process did not all end in order", "error", d.err)
	}
	if err := errors.Join(err, end()); err != nil {
		p.log.Warn("not all is let go of", "error", err)
	}
	p.log.Info("nothing is left to be finished", "after", time.Since(began).Round(time.Millisecond))
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

// ready answers the probe: it serves what the cluster says now, or it has served and
// could again. One that goes on with what the last process knew is not ready, so that
// an upgrade to agents that cannot read the cluster ends at the first node. While the
// cluster is down nobody asks.
func (p *process) ready() error {
	if p.retired.Load() {
		return nil
	}
	a := p.serving.Load()
	if a == nil {
		return errors.New("the agent does not serve yet: it waits for the cluster's state, or for its turn")
	}
	if err := a.ready(); err != nil || p.cfg.Cluster == nil {
		return err
	}
	if err := p.cfg.Cluster.Unconfirmed(); err != nil {
		return fmt.Errorf("the agent serves with what the last one knew of the cluster: %w", err)
	}
	return nil
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
