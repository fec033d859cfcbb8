package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
)

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
	var err error
	if p.facts, err = p.sure.Facts(ctx); err != nil {
		return err
	}
	for live := false; ; {
		unconfirmed := p.cfg.Cluster.Unconfirmed()
		s := p.state.Load()
		p.ranges, err = p.podRanges(s, p.facts)
		if err != nil && unconfirmed == nil {
			if live {
				return err
			}
			if p.facts, err = p.sure.LiveFacts(ctx); err != nil {
				return err
			}
			live = true
			continue
		}
		if err == nil && (len(p.ranges) > 0 || len(s.BlockPools) > 0) {
			p.log.Info("settings found", "pod_ranges", fmt.Sprint(p.ranges), "service_ranges", fmt.Sprint(s.ServiceCIDRs),
				"domain", settings.Domain(p.cfg.Domain, p.facts.Domain), "name_servers", fmt.Sprint(p.facts.NameServers))
			close(p.settled)
			return nil
		}
		if err != nil {
			p.log.Warn("what the last process knew of the cluster does not do, waiting for what the cluster says now", "error", err, "missing", unconfirmed)
		} else {
			p.log.Warn("the services' ranges are not known yet, waiting for a ServiceCIDR")
		}
		select {
		case <-p.news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
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
	facts, err := p.sure.Confirmed(ctx)
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
	if facts.Equal(p.facts) && slices.Equal(ranges, p.ranges) {
		return nil
	}
	p.log.Warn("the cluster's settings changed before this process began, which ends for one that begins with them",
		"settings", fmt.Sprint(facts), "pod_ranges", fmt.Sprint(ranges), "before", fmt.Sprint(p.facts), "pod_ranges_before", fmt.Sprint(p.ranges))
	return errChanged
}

// retire notes whether another agent serves in this one's place.
func (p *process) retire(yes bool) {
	p.retired.Store(yes)
	if p.cfg.Cluster != nil {
		p.cfg.Cluster.Keep(!yes)
	}
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
