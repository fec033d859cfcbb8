// Package claim tells the cluster what it needs to know of a node, and nothing
// that it knows already: the key and endpoints of its tunnel, the Service of the
// name server where it is missing, a block of pod addresses where the Node object
// brings none. It stands beside the loop, for whoever waits for a turn of the loop
// must not wait for an API server.
package claim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	timeout = 10 * time.Second
	// firstRetry is how long the first retry waits; each further one waits twice as
	// long, up to lastRetry, for an API server that is down is down for all.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	// reclaimInterval is how often blocks of nodes that are gone are looked for.
	reclaimInterval = 30 * time.Second
)

// Publisher is where a node's key and endpoints are told.
type Publisher interface {
	PublishNode(ctx context.Context, c cluster.NodeClaim) error
}

// NameServer makes the Service that kubelets send their pods' questions to.
type NameServer interface {
	EnsureDNSService(ctx context.Context, addrs []netip.Addr) error
}

// Config is what a node claims, and where.
type Config struct {
	Node       string
	PublicKey  string
	ListenPort uint16
	State      func() *model.State // the newest

	Publisher Publisher

	// DNS is whether the agent answers as the name server, and at which addresses
	// kubelets expect it. NameServer may be nil.
	NameServer  NameServer
	DNS         settings.DNS
	NameServers []netip.Addr

	// Blocks may be nil: pod ranges come on Node objects only. Ranges are claimed
	// from where the cluster has no BlockPools.
	Blocks ipam.BlockStore
	Ranges []netip.Prefix
	Usage  func(ipam.Families) ipam.Usage

	Log *slog.Logger
}

// Keeper claims and goes on claiming.
type Keeper struct {
	cfg Config
	log *slog.Logger
	due chan struct{}

	// Run's own.
	claimer   *ipam.Claimer
	from      []model.BlockPool // that the claimer claims from
	reclaimed time.Time         // when blocks of lost nodes were looked for last
}

// New returns a Keeper that says nothing before Run.
func New(cfg Config) *Keeper { return &Keeper{cfg: cfg, log: cfg.Log, due: make(chan struct{}, 1)} }

// Kick has Run look at the State again soon.
func (k *Keeper) Kick() {
	select {
	case k.due <- struct{}{}:
	default: // due already
	}
}

// Run claims whenever it is kicked, and tries again what fails, until the context
// ends.
func (k *Keeper) Run(ctx context.Context) error {
	var retry <-chan time.Time
	wait, said := firstRetry, ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.due:
			if retry != nil {
				continue // what failed waits its time, whatever else turns the loop
			}
		case <-retry:
		}
		retry = nil
		err := k.claim(ctx)
		switch {
		case err == nil:
			wait, said = firstRetry, ""
			continue
		case ctx.Err() == nil && err.Error() != said:
			k.log.Warn("the cluster does not know this node's claims yet, trying again", "error", err)
			said = err.Error()
		}
		retry = time.After(wait)
		wait = min(2*wait, lastRetry)
	}
}

// claim publishes what other nodes need to know of this one, makes the name
// server's Service where it is missing, and claims a block of pod addresses where
// the Node object brings none.
func (k *Keeper) claim(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	state := k.cfg.State()
	return errors.Join(k.node(ctx, state), k.nameServer(ctx, state), k.pods(ctx, state))
}

func (k *Keeper) node(ctx context.Context, state *model.State) error {
	self := state.Node(k.cfg.Node)
	if self == nil {
		return nil // the next State may have it; compile says so
	}
	var endpoints []netip.AddrPort
	for _, addr := range self.Addresses {
		endpoints = append(endpoints, netip.AddrPortFrom(addr, k.cfg.ListenPort))
	}
	if self.PublicKey == k.cfg.PublicKey && slices.Equal(self.Endpoints, endpoints) {
		return nil
	}
	if err := k.cfg.Publisher.PublishNode(ctx, cluster.NodeClaim{Node: k.cfg.Node, PublicKey: k.cfg.PublicKey, Endpoints: endpoints}); err != nil {
		return fmt.Errorf("publish the node's key: %w", err)
	}
	k.log.Info("node published", "public_key", k.cfg.PublicKey, "endpoints", fmt.Sprint(endpoints))
	return nil
}

// nameServer makes the Service that kubelets send their pods' questions to.
func (k *Keeper) nameServer(ctx context.Context, state *model.State) error {
	if k.cfg.NameServer == nil || !state.Synced || state.Service(settings.DNSService()) != nil || settings.ForeignDNS(k.cfg.DNS, state) {
		return nil
	}
	addrs := settings.NameServers(k.cfg.NameServers, state)
	if len(addrs) == 0 {
		return nil
	}
	if err := k.cfg.NameServer.EnsureDNSService(ctx, addrs); err != nil {
		return fmt.Errorf("make the Service %s at %v: %w", settings.DNSService(), addrs, err)
	}
	k.log.Info("name server's Service made", "service", settings.DNSService().String(), "addresses", fmt.Sprint(addrs))
	return nil
}

func (k *Keeper) pods(ctx context.Context, state *model.State) error {
	self := state.Node(k.cfg.Node)
	if self == nil || k.cfg.Blocks == nil || len(self.PodCIDRs) > 0 || !state.Synced {
		return nil
	}
	return k.blocks(ctx, state)
}

// blocks claims a range of pod addresses where the Node object brings
// none, and takes those of nodes that are gone back from time to time. What is
// claimed comes back with the next State.
func (k *Keeper) blocks(ctx context.Context, state *model.State) error {
	if pools := Pools(state, k.cfg.Ranges); k.claimer == nil || !slices.Equal(pools, k.from) {
		cfg := ipam.ClaimerConfig{Node: k.cfg.Node, Store: k.cfg.Blocks}
		for _, p := range pools {
			cfg.Pools = append(cfg.Pools, ipam.BlockPool{CIDR: p.CIDR, Block: p.Bits})
		}
		c, err := ipam.NewClaimer(cfg)
		if err != nil {
			return fmt.Errorf("the pools of pod addresses: %w", err)
		}
		k.claimer, k.from = c, pools
	}
	var own, taken []netip.Prefix
	for _, b := range state.Blocks {
		if b.Node == k.cfg.Node {
			own = append(own, b.CIDR)
		}
	}
	nodes := make([]string, 0, len(state.Nodes))
	for _, n := range state.Nodes {
		taken = append(taken, n.PodCIDRs...)
		nodes = append(nodes, n.Name)
	}
	// Blocks are taken back first, and whatever becomes of that or of claiming, the
	// other goes on: in a full pool, those of nodes that are gone are all there is.
	reclaimErr := k.reclaim(ctx, state, nodes)
	var claimErr error
	if !k.claimer.Enough(own, k.cfg.Usage) {
		if _, err := k.claimer.Apply(ctx, k.cfg.Usage, taken); err != nil {
			claimErr = fmt.Errorf("claim pod addresses: %w", err)
		}
	}
	return errors.Join(reclaimErr, claimErr)
}

// reclaim takes the blocks of nodes that are gone back, if it is time to look.
func (k *Keeper) reclaim(ctx context.Context, state *model.State, nodes []string) error {
	if time.Since(k.reclaimed) < reclaimInterval {
		return nil
	}
	k.reclaimed = time.Now()
	freed, err := k.claimer.Reclaim(ctx, state.Blocks, nodes, func(block netip.Prefix) bool {
		return slices.ContainsFunc(state.Pods, func(p *model.Pod) bool {
			return !p.Finished && slices.ContainsFunc(p.Addresses, block.Contains)
		})
	})
	for _, b := range freed {
		k.log.Info("block of a node that is gone is free again", "node", b.Node, "block", b.CIDR.String())
	}
	if err != nil {
		return fmt.Errorf("take back blocks of nodes that are gone: %w", err)
	}
	return nil
}

// Pools are the ranges to claim from: those of the cluster's BlockPool
// objects or, without any, the configured ones, cut into blocks that hold the
// usual 110 pods of a node.
func Pools(s *model.State, configured []netip.Prefix) []model.BlockPool {
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
