package ipam

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"github.com/netctl/netctl/internal/model"
)

const (
	// DefaultThreshold is how many addresses a node wants to have ready.
	DefaultThreshold = 8
	// DefaultMaxBlocks bounds what one node may claim of each family.
	DefaultMaxBlocks = 16
	// DefaultBlockGrace is how long a node must be gone before its blocks are
	// taken from it: longer than replacing a machine under the same name takes.
	DefaultBlockGrace = 15 * time.Minute
	// claimTries bounds the races that one claim may lose.
	claimTries = 64
	// crowded is after how many lost races a claimer looks elsewhere in the pool.
	crowded = 3
	// widest4 and widest6 are the widest blocks that nodes may claim; the cluster's
	// admission policy has the same bounds.
	widest4, widest6 = 20, 64
)

// BlockStore is where the cluster keeps its blocks. Creating is the only lock:
// of two nodes that create one block, one succeeds.
type BlockStore interface {
	// Create claims a block; the error is fs.ErrExist when anybody has it.
	Create(ctx context.Context, b model.Block) error
	// List returns all blocks as they are now.
	List(ctx context.Context) ([]model.Block, error)
	// Delete releases a block if it is still of b.Node; another node's block
	// stays and is an error, an absent one is success.
	Delete(ctx context.Context, b model.Block) error
}

// ClaimerConfig says what a node may claim.
type ClaimerConfig struct {
	Node      string
	Pools     []BlockPool
	Store     BlockStore
	Threshold uint64
	MaxBlocks int
	Grace     time.Duration
	Now       func() time.Time
}

// Claimer claims blocks for one node and takes them from nodes that are gone.
// It is for one goroutine.
type Claimer struct {
	cfg  ClaimerConfig
	gone map[string]time.Time // nodes with blocks that do not exist, since when
}

// NewClaimer checks the configuration.
func NewClaimer(cfg ClaimerConfig) (*Claimer, error) {
	if cfg.Node == "" || cfg.Store == nil {
		return nil, errors.New("claim blocks: node and store are needed")
	}
	var errs []error
	for i, p := range cfg.Pools {
		if err := p.check(); err != nil {
			errs = append(errs, err)
			continue
		}
		for _, o := range cfg.Pools[:i] {
			if o.CIDR.IsValid() && o.CIDR.Overlaps(p.CIDR) {
				errs = append(errs, fmt.Errorf("block pools %s and %s overlap", o.CIDR, p.CIDR))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Threshold == 0 {
		cfg.Threshold = DefaultThreshold
	}
	if cfg.MaxBlocks == 0 {
		cfg.MaxBlocks = DefaultMaxBlocks
	}
	if cfg.Grace == 0 {
		cfg.Grace = DefaultBlockGrace
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Claimer{cfg: cfg, gone: map[string]time.Time{}}, nil
}

// check reports why nothing could be claimed from a pool.
func (p BlockPool) check() error {
	if err := checkRange("block pool", p.CIDR); err != nil {
		return err
	}
	if p.Block < p.CIDR.Bits() || p.Block > p.CIDR.Addr().BitLen()-minHostBits {
		return fmt.Errorf("block pool %s cannot be cut into blocks of /%d", p.CIDR, p.Block)
	}
	return nil
}

// Apply makes sure that the node has enough blocks and returns those that it
// has, also together with an error. It is idempotent. used returns the numbers
// of the node's pool, and is called once for each family.
//
// A node claims its next block when fewer addresses than the threshold are
// free. Addresses that cool down do not count as free: they cannot be had yet,
// and a node that counted on them would fail pods first and claim afterwards.
func (c *Claimer) Apply(ctx context.Context, used func(Families) Usage, taken []netip.Prefix) ([]netip.Prefix, error) {
	all, err := c.cfg.Store.List(ctx)
	if err != nil {
		return nil, err
	}
	var own []netip.Prefix
	for _, b := range all {
		if b.Node == c.cfg.Node {
			own = append(own, b.CIDR)
		}
	}
	var errs []error
	for _, f := range []Families{IPv4, IPv6} {
		pools := c.pools(f)
		have := 0
		for _, b := range own {
			if b.Addr().Is4() == (f == IPv4) {
				have++
			}
		}
		if len(pools) == 0 || (have > 0 && !c.wants(used(f), have)) {
			continue
		}
		b, err := c.claim(ctx, pools, taken)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		own = append(own, b)
	}
	slices.SortFunc(own, netip.Prefix.Compare)
	return own, errors.Join(errs...)
}

// Enough reports whether Apply would leave everything as it is, when own are the
// node's blocks. It asks the store nothing, so it may be asked often, with blocks
// as they were last heard of.
func (c *Claimer) Enough(own []netip.Prefix, used func(Families) Usage) bool {
	for _, f := range []Families{IPv4, IPv6} {
		have := 0
		for _, b := range own {
			if b.Addr().Is4() == (f == IPv4) {
				have++
			}
		}
		if len(c.pools(f)) > 0 && (have == 0 || c.wants(used(f), have)) {
			return false
		}
	}
	return true
}

// wants reports whether one more block is needed beside those of u. Blocks that
// the pool does not know yet are ready to be used, so they come first.
func (c *Claimer) wants(u Usage, have int) bool {
	return have <= u.Blocks && have < c.cfg.MaxBlocks && u.Free < c.cfg.Threshold
}

// pools returns the pools of a family.
func (c *Claimer) pools(f Families) []BlockPool {
	return slices.DeleteFunc(slices.Clone(c.cfg.Pools), func(p BlockPool) bool { return p.CIDR.Addr().Is4() != (f == IPv4) })
}

// claim creates the first block that nobody has. It asks the store again after
// each lost race, and looks elsewhere when many nodes want the same one.
func (c *Claimer) claim(ctx context.Context, pools []BlockPool, taken []netip.Prefix) (netip.Prefix, error) {
	skip := slices.Clone(taken)
	for try := range claimTries {
		all, err := c.cfg.Store.List(ctx)
		if err != nil {
			return netip.Prefix{}, err
		}
		used := slices.Clone(skip)
		for _, b := range all {
			if !slices.ContainsFunc(pools, func(p BlockPool) bool { return p.swallowedBy(b.CIDR) }) {
				used = append(used, b.CIDR)
			}
		}
		start := uint64(0)
		if try >= crowded {
			h := fnv.New64a()
			fmt.Fprintf(h, "%s %d", c.cfg.Node, try)
			start = h.Sum64()
		}
		p, ok := netip.Prefix{}, false
		for i := 0; i < len(pools) && !ok; i++ {
			p, ok = pools[i].next(used, start)
		}
		if !ok {
			return netip.Prefix{}, fmt.Errorf("%w for node %s in %s: all /%d are taken", ErrNoBlock, c.cfg.Node, pools[0].CIDR, pools[0].Block)
		}
		err = c.cfg.Store.Create(ctx, model.Block{CIDR: p, Node: c.cfg.Node})
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return netip.Prefix{}, fmt.Errorf("claim block %s: %w", p, err)
		}
		skip = append(skip, p) // also when the list does not show it: its object may be damaged
	}
	return netip.Prefix{}, fmt.Errorf("claim a block for node %s: lost %d races", c.cfg.Node, claimTries)
}

// swallowedBy reports whether a block, which is not of the pool's size, is so wide
// that no node had any right to claim it: it must not keep others from claiming.
// Blocks that are a little wider than the pool's are left alone, for the size may
// have been another when they were claimed.
func (p BlockPool) swallowedBy(b netip.Prefix) bool {
	widest := widest6
	if b.Addr().Is4() {
		widest = widest4
	}
	return b.Overlaps(p.CIDR) && b.Bits() < p.Block && (b.Bits() <= p.CIDR.Bits() || b.Bits() < widest)
}

// next returns the first block of the pool, beginning at the start-th and
// going round, that overlaps none of the used ranges. The cost is that of
// sorting those, whatever the size of the pool.
func (p BlockPool) next(used []netip.Prefix, start uint64) (netip.Prefix, bool) {
	last := uint64(1)<<min(p.Block-p.CIDR.Bits(), 62) - 1
	type gap struct{ from, to uint64 } // indexes that are taken
	var gaps []gap
	for _, u := range used {
		switch {
		case !u.IsValid() || !u.Overlaps(p.CIDR):
		case u.Bits() <= p.CIDR.Bits():
			return netip.Prefix{}, false
		default:
			i := p.index(u.Masked().Addr())
			n := uint64(1)
			if u.Bits() < p.Block {
				n = 1 << min(p.Block-u.Bits(), 62)
			}
			gaps = append(gaps, gap{i, i + n - 1})
		}
	}
	slices.SortFunc(gaps, func(a, b gap) int {
		if a.from < b.from {
			return -1
		}
		return 1
	})
	find := func(from uint64) (uint64, bool) {
		for _, g := range gaps {
			if g.from > from {
				break
			}
			if g.to >= from {
				from = g.to + 1
			}
		}
		return from, from <= last
	}
	i, ok := find(start & last)
	if !ok {
		i, ok = find(0)
	}
	return nth(p.CIDR, p.Block, i), ok
}

// index returns which block of the pool an address is in.
func (p BlockPool) index(a netip.Addr) uint64 {
	shift := p.CIDR.Addr().BitLen() - p.Block
	if a.Is4() {
		return offsetIn(p.CIDR, a) >> shift
	}
	ah, al := words(a.As16())
	bh, bl := words(p.CIDR.Addr().As16())
	hi, lo := ah-bh, al-bl
	if al < bl {
		hi--
	}
	if shift >= 64 {
		return hi >> (shift - 64)
	}
	if shift == 0 {
		return lo
	}
	return hi<<(64-shift) | lo>>shift
}

// Reclaim deletes the blocks of nodes that have been gone for the grace and
// returns them. all is every block and nodes every node of a State that is
// complete; inUse says whether a pod or another node still has addresses of a
// block. When the own node is not among the nodes the list is not to be trusted,
// and nothing is done.
func (c *Claimer) Reclaim(ctx context.Context, all []model.Block, nodes []string, inUse func(netip.Prefix) bool) ([]model.Block, error) {
	if !slices.Contains(nodes, c.cfg.Node) {
		return nil, nil
	}
	now := c.cfg.Now()
	gone := map[string]time.Time{}
	var freed []model.Block
	var errs []error
	for _, b := range all {
		if slices.Contains(nodes, b.Node) {
			continue
		}
		since, known := c.gone[b.Node]
		if !known {
			since = now
		}
		gone[b.Node] = since
		if now.Sub(since) < c.cfg.Grace || inUse(b.CIDR) {
			continue
		}
		if err := c.cfg.Store.Delete(ctx, b); err != nil {
			errs = append(errs, err)
			continue
		}
		freed = append(freed, b)
	}
	c.gone = gone
	return freed, errors.Join(errs...)
}
