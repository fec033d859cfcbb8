package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/ipam"
)

// The times of a write to the cluster.
const (
	claimTimeout = 10 * time.Second
	// claimRetry is how long the first retry waits; each further one waits twice as
	// long, up to claimRetryMax, for an API server that is down is down for all.
	claimRetry    = time.Second
	claimRetryMax = 30 * time.Second
)

// keepClaims tells the cluster what it needs to know of this node after every
// turn of the loop, and tries again until it knows.
func (a *Agent) keepClaims(ctx context.Context) error {
	var retry <-chan time.Time
	wait, said := claimRetry, ""
	for {
		due := false
		select {
		case <-ctx.Done():
			return nil
		case <-a.claims:
			due = retry == nil
		case <-retry:
			due = true
		}
		if !due {
			continue // what failed waits its time, whatever else turns the loop
		}
		retry = nil
		err := a.claim(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			wait, said = claimRetry, ""
			continue
		case err.Error() != said:
			a.log.Warn("the cluster does not know this node's claims yet, trying again", "error", err)
			said = err.Error()
		}
		retry = time.After(wait)
		wait = min(2*wait, claimRetryMax)
	}
}

// claim publishes what other nodes need to know of this one, makes the name
// server's Service where it is missing, and claims a block of pod addresses where
// the Node object brings none.
func (a *Agent) claim(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	state := a.state.Load()
	return errors.Join(a.claimNode(ctx, state), a.claimDNS(ctx, state), a.claimPods(ctx, state))
}

func (a *Agent) claimNode(ctx context.Context, state *model.State) error {
	self := state.Node(a.cfg.Node)
	if self == nil {
		return nil // the next State may have it; compile says so
	}
	var endpoints []netip.AddrPort
	for _, addr := range self.Addresses {
		endpoints = append(endpoints, netip.AddrPortFrom(addr, a.cfg.ListenPort))
	}
	if self.PublicKey == a.key.String() && slices.Equal(self.Endpoints, endpoints) {
		return nil
	}
	if err := a.cfg.Claims.PublishNode(ctx, cluster.NodeClaim{Node: a.cfg.Node, PublicKey: a.key.String(), Endpoints: endpoints}); err != nil {
		return fmt.Errorf("publish the node's key: %w", err)
	}
	a.log.Info("node published", "public_key", a.key.String(), "endpoints", fmt.Sprint(endpoints))
	return nil
}

// claimDNS makes the Service that kubelets send their pods' questions to.
func (a *Agent) claimDNS(ctx context.Context, state *model.State) error {
	if a.cfg.Cluster == nil || !state.Synced || state.Service(dnsService) != nil || settings.ForeignDNS(a.cfg.DNS, state) {
		return nil
	}
	addrs := settings.NameServers(a.facts.NameServers, state)
	if len(addrs) == 0 {
		return nil
	}
	if err := a.cfg.Cluster.EnsureDNSService(ctx, addrs); err != nil {
		return fmt.Errorf("make the Service %s at %v: %w", dnsService, addrs, err)
	}
	a.log.Info("name server's Service made", "service", dnsService.String(), "addresses", fmt.Sprint(addrs))
	return nil
}

func (a *Agent) claimPods(ctx context.Context, state *model.State) error {
	self := state.Node(a.cfg.Node)
	if self == nil || a.cfg.Blocks == nil || len(self.PodCIDRs) > 0 || !state.Synced {
		return nil
	}
	return a.claimBlocks(ctx, state)
}

// claimBlocks claims a range of pod addresses where the Node object brings
// none, and takes those of nodes that are gone back from time to time. What is
// claimed comes back with the next State.
func (a *Agent) claimBlocks(ctx context.Context, state *model.State) error {
	if pools := blockPools(state, a.ranges); a.claimer == nil || !slices.Equal(pools, a.pools) {
		cfg := ipam.ClaimerConfig{Node: a.cfg.Node, Store: a.cfg.Blocks}
		for _, p := range pools {
			cfg.Pools = append(cfg.Pools, ipam.BlockPool{CIDR: p.CIDR, Block: p.Bits})
		}
		c, err := ipam.NewClaimer(cfg)
		if err != nil {
			return fmt.Errorf("the pools of pod addresses: %w", err)
		}
		a.claimer, a.pools = c, pools
	}
	var own, taken []netip.Prefix
	for _, b := range state.Blocks {
		if b.Node == a.cfg.Node {
			own = append(own, b.CIDR)
		}
	}
	nodes := make([]string, 0, len(state.Nodes))
	for _, n := range state.Nodes {
		taken = append(taken, n.PodCIDRs...)
		nodes = append(nodes, n.Name)
	}
	if !a.claimer.Enough(own, a.pool.Usage) {
		if _, err := a.claimer.Apply(ctx, a.pool.Usage, taken); err != nil {
			return fmt.Errorf("claim pod addresses: %w", err)
		}
	}
	if time.Since(a.reclaimed) < reconcileInterval {
		return nil
	}
	a.reclaimed = time.Now()
	freed, err := a.claimer.Reclaim(ctx, state.Blocks, nodes, func(block netip.Prefix) bool {
		return slices.ContainsFunc(state.Pods, func(p *model.Pod) bool {
			return !p.Finished && slices.ContainsFunc(p.Addresses, block.Contains)
		})
	})
	for _, b := range freed {
		a.log.Info("block of a node that is gone is free again", "node", b.Node, "block", b.CIDR.String())
	}
	if err != nil {
		return fmt.Errorf("take back blocks of nodes that are gone: %w", err)
	}
	return nil
}

// blockPools are the ranges to claim from: those of the cluster's BlockPool
// objects or, without any, the configured ones, cut into blocks that hold the
// usual 110 pods of a node.
func blockPools(s *model.State, configured []netip.Prefix) []model.BlockPool {
	if len(s.BlockPools) > 0 {
		return s.BlockPools
	}
	const block4, block6 = 25, 121
	var out []model.BlockPool
	for _, p := range configured {
		bits := block6
		if p.Addr().Is4() {
			bits = block4
		}
		out = append(out, model.BlockPool{CIDR: p, Bits: max(bits, p.Bits())})
	}
	return out
}
