package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/netctl/netctl/internal/agent/handover"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
)

// What a process may begin with is what the cluster says, or what it said to the
// last process:
//
//	nobody serves              the last process' at once: pods wait
//	somebody serves, and
//	  the cluster answers      the cluster's, however long it takes: whoever serves
//	                           has it, and a process that never gets it must not follow
//	  nobody answers           the last process' after a while: nobody has better
//
// What it began with of the last process' is looked up as soon as the cluster
// answers.

const (
	// newsPoll is how soon it is looked again whether the cluster has answered; each
	// further wait is longer, up to newsPollMax.
	newsPoll    = 10 * time.Millisecond
	newsPollMax = 250 * time.Millisecond
	// newsSay is how long nothing is said of the wait, and then how often it is.
	newsSay = 5 * time.Second
	// silence is how long nobody must have answered before a process follows one that
	// serves with what that one knew. It is longer than an API server takes to restart.
	silence = 30 * time.Second
	// settleRetry is how often the cluster is asked again for what it says of itself,
	// settleRetryMax how seldom, when something else does meanwhile.
	settleRetry    = 5 * time.Second
	settleRetryMax = time.Minute
)

// awaitNews waits for what the cluster says now while another agent serves.
func (p *process) awaitNews(ctx context.Context) error {
	if p.cfg.Cluster == nil || p.alone {
		return nil
	}
	heard, said := time.Now(), time.Now()
	for wait := newsPoll; ; wait = min(2*wait, newsPollMax) {
		err := p.cfg.Cluster.Unconfirmed()
		if err == nil || !handover.Served(p.cfg.StateDir) {
			return nil
		}
		now := time.Now()
		if !errors.Is(err, cluster.ErrNoAnswer) {
			heard = now
		}
		if now.Sub(heard) >= silence {
			p.log.Warn("nobody answers for the cluster: this agent follows the one that serves with what that one knew", "error", err)
			p.alone = true
			return nil
		}
		if now.Sub(said) >= newsSay {
			p.log.Warn("another agent serves, which this one does not follow before it knows what the cluster says", "missing", err)
			said = now
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// askFacts asks for the facts, by the same rule.
func (p *process) askFacts(ctx context.Context) (settings.Cluster, error) {
	if !p.alone && handover.Served(p.cfg.StateDir) {
		return p.cfg.Cluster.LiveFacts(ctx)
	}
	return p.cfg.Cluster.Facts(ctx)
}

// podRanges returns the pods' ranges as a State and facts have them.
func (p *process) podRanges(s *model.State, facts settings.Cluster) ([]netip.Prefix, error) {
	host, err := hostRanges()
	if err != nil {
		return nil, fmt.Errorf("look at the node's own routes: %w", err)
	}
	return settings.PodRanges(p.cfg.ClusterCIDRs, settings.Surroundings{
		Node: p.cfg.Node, State: s, PodSubnets: facts.PodSubnets, Host: host,
	})
}

// errChanged ends a process, so that the next one begins with what is true now.
var errChanged = errors.New("the cluster's settings are others than those that the last process knew, with which this one began")

// confirm compares what the process began with to what the cluster says, once that
// answers. Too much is made of it to be changed in a process that lives.
func (p *process) confirm(ctx context.Context) error {
	select {
	case <-p.settled:
	case <-ctx.Done():
		return nil
	}
	for wait := newsPoll; p.cfg.Cluster.Unconfirmed() != nil; wait = min(2*wait, newsPollMax) {
		if !sleep(ctx, wait) {
			return nil
		}
	}
	facts, err := p.liveFacts(ctx)
	if err != nil || p.retired.Load() {
		return nil //nolint:nilerr // the end
	}
	s := p.state.Load()
	ranges, err := p.podRanges(s, facts)
	switch {
	case err != nil: // no process could begin with that
		p.log.Warn("the pods' ranges that the last process knew stay, for now there are none", "error", err)
		ranges = p.ranges
	case len(ranges) == 0 && len(s.BlockPools) == 0: // nor with that
		ranges = p.ranges
	}
	if sameFacts(facts, p.facts) && slices.Equal(ranges, p.ranges) {
		return nil
	}
	p.log.Warn("the cluster's settings changed before this process began, which ends for one that begins with them",
		"settings", fmt.Sprint(facts), "pod_ranges", fmt.Sprint(ranges), "before", fmt.Sprint(p.facts), "pod_ranges_before", fmt.Sprint(p.ranges))
	return errChanged
}

// liveFacts asks for the facts until the cluster answers or the context ends.
func (p *process) liveFacts(ctx context.Context) (settings.Cluster, error) {
	for wait := settleRetry; ; wait = min(2*wait, settleRetryMax) {
		facts, err := p.cfg.Cluster.LiveFacts(ctx)
		if err == nil {
			return facts, nil
		}
		if ctx.Err() == nil {
			p.log.Warn("the cluster's own settings of now are not known yet, trying again", "error", err)
		}
		if !sleep(ctx, wait) {
			return facts, context.Cause(ctx)
		}
	}
}

// retire notes whether another agent serves in this one's place.
func (p *process) retire(yes bool) {
	p.retired.Store(yes)
	if p.cfg.Cluster != nil {
		p.cfg.Cluster.Keep(!yes)
	}
}

// sleep waits, and returns false if the context ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func sameFacts(a, b settings.Cluster) bool {
	return slices.Equal(a.PodSubnets, b.PodSubnets) && a.Domain == b.Domain && slices.Equal(a.NameServers, b.NameServers)
}
