package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/ipam"
)

// store is a BlockStore in memory.
type store struct {
	mu     sync.Mutex
	blocks map[netip.Prefix]string
	hidden []netip.Prefix // taken, but not listed
}

func newStore(blocks ...model.Block) *store {
	s := &store{blocks: map[netip.Prefix]string{}}
	for _, b := range blocks {
		s.blocks[b.CIDR] = b.Node
	}
	return s
}

func (s *store) Create(_ context.Context, b model.Block) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blocks[b.CIDR] != "" || slices.Contains(s.hidden, b.CIDR) {
		return fmt.Errorf("create: %w", fs.ErrExist)
	}
	s.blocks[b.CIDR] = b.Node
	return nil
}

func (s *store) List(context.Context) ([]model.Block, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []model.Block
	for p, n := range s.blocks {
		out = append(out, model.Block{CIDR: p, Node: n})
	}
	return out, nil
}

func (s *store) Delete(_ context.Context, b model.Block) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.blocks[b.CIDR]; n != "" && n != b.Node {
		return errors.New("not yours")
	}
	delete(s.blocks, b.CIDR)
	return nil
}

// of returns the blocks of a node.
func (s *store) of(node string) []netip.Prefix {
	var out []netip.Prefix
	for p, n := range s.blocks {
		if n == node {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

func claimer(t *testing.T, s *store, node string, c *clock, pools ...ipam.BlockPool) *ipam.Claimer {
	t.Helper()
	cl, err := ipam.NewClaimer(ipam.ClaimerConfig{Node: node, Store: s, Pools: pools, MaxBlocks: 3, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

func pool(cidr string, block int) ipam.BlockPool {
	return ipam.BlockPool{CIDR: netip.MustParsePrefix(cidr), Block: block}
}

func block(cidr, node string) model.Block {
	return model.Block{CIDR: netip.MustParsePrefix(cidr), Node: node}
}

func TestClaimerClaims(t *testing.T) {
	t.Parallel()
	full := ipam.Usage{Blocks: 1, Free: 2, Cooling: 100}
	empty := ipam.Usage{Blocks: 1, Free: 100}
	for _, tc := range []struct {
		name   string
		blocks []model.Block
		hidden []netip.Prefix
		taken  []netip.Prefix
		pools  []ipam.BlockPool
		usage  ipam.Usage
		want   []netip.Prefix
		err    string
	}{
		{name: "the first", pools: []ipam.BlockPool{pool("10.0.0.0/16", 24)}, want: prefixes("10.0.0.0/24")},
		{name: "one of each family", pools: []ipam.BlockPool{pool("10.0.0.0/16", 24), pool("fd00::/64", 112)}, want: prefixes("10.0.0.0/24", "fd00::/112")},
		{name: "after others", blocks: []model.Block{block("10.0.0.0/24", "b"), block("10.0.2.0/24", "c")}, pools: []ipam.BlockPool{pool("10.0.0.0/16", 24)}, want: prefixes("10.0.1.0/24")},
		{name: "beside blocks of other sizes", blocks: []model.Block{block("10.0.0.0/23", "b"), block("10.0.2.128/26", "c")}, pools: []ipam.BlockPool{pool("10.0.0.0/16", 24)}, want: prefixes("10.0.3.0/24")},
		{name: "inside blocks that nobody may claim", blocks: []model.Block{block("10.0.0.0/16", "b"), block("10.0.0.0/8", "b"), block("10.0.0.0/19", "b"), block("fd00::/64", "b")}, pools: []ipam.BlockPool{pool("10.0.0.0/16", 24), pool("fd00::/64", 112)}, want: prefixes("10.0.0.0/24", "fd00::/112")},
		{name: "beside the widest block", blocks: []model.Block{block("10.0.0.0/20", "b")}, pools: []ipam.BlockPool{pool("10.0.0.0/16", 24)}, want: prefixes("10.0.16.0/24")},
		{name: "in a pool of wide blocks", blocks: []model.Block{block("10.0.0.0/16", "b")}, pools: []ipam.BlockPool{pool("10.0.0.0/8", 16)}, want: prefixes("10.1.0.0/16")},
		{name: "not what is taken", taken: prefixes("10.0.0.0/22", "10.0.4.7/32"), pools: []ipam.BlockPool{pool("10.0.0.0/16", 24)}, want: prefixes("10.0.5.0/24")},
		{name: "enough already", blocks: []model.Block{block("10.0.7.0/24", "a")}, usage: empty, pools: []ipam.BlockPool{pool("10.0.0.0/16", 24)}, want: prefixes("10.0.7.0/24")},
		{name: "one more; what cools down does not count", blocks: []model.Block{block("10.0.7.0/24", "a")}, usage: full, pools: []ipam.BlockPool{pool("10.0.0.0/16", 24)}, want: prefixes("10.0.0.0/24", "10.0.7.0/24")},
		{name: "a block that the pool does not have yet", blocks: []model.Block{block("10.0.7.0/24", "a"), block("10.0.8.0/24", "a")}, usage: full, pools: []ipam.BlockPool{pool("10.0.0.0/16", 24)}, want: prefixes("10.0.7.0/24", "10.0.8.0/24")},
		{name: "no more than the limit", blocks: []model.Block{block("10.0.7.0/24", "a"), block("10.0.8.0/24", "a"), block("10.0.9.0/24", "a")}, usage: ipam.Usage{Blocks: 3}, pools: []ipam.BlockPool{pool("10.0.0.0/16", 24)}, want: prefixes("10.0.7.0/24", "10.0.8.0/24", "10.0.9.0/24")},
		{name: "lost races", hidden: prefixes("10.0.0.0/24", "10.0.1.0/24"), pools: []ipam.BlockPool{pool("10.0.0.0/16", 24)}, want: prefixes("10.0.2.0/24")},
		{name: "the second pool", blocks: []model.Block{block("10.0.0.0/24", "b")}, pools: []ipam.BlockPool{pool("10.0.0.0/24", 24), pool("10.9.0.0/16", 24)}, want: prefixes("10.9.0.0/24")},
		{name: "none left, but the other family", blocks: []model.Block{block("10.0.0.0/24", "b")}, pools: []ipam.BlockPool{pool("10.0.0.0/24", 24), pool("fd00::/64", 112)}, want: prefixes("fd00::/112"), err: "no free block for node a in 10.0.0.0/24: all /24 are taken"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(tc.blocks...)
			s.hidden = tc.hidden
			cl, used := claimer(t, s, "a", &clock{}, tc.pools...), func(ipam.Families) ipam.Usage { return tc.usage }
			before := s.of("a")
			enough := cl.Enough(before, used)
			got, err := cl.Apply(t.Context(), used, tc.taken)
			if err == nil && enough != slices.Equal(before, got) {
				t.Errorf("enough: %v, with %v before and %v after", enough, before, got)
			}
			same(t, "blocks", got, tc.want)
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("got error %v, want %q", err, tc.err)
			}
			for _, p := range tc.want {
				if s.blocks[p] != "a" {
					t.Errorf("%s is of node %q in the store", p, s.blocks[p])
				}
			}
		})
	}
}

func TestClaimerFromManyNodes(t *testing.T) {
	t.Parallel()
	s := newStore()
	var wg sync.WaitGroup
	for n := range 40 {
		wg.Go(func() {
			c := claimer(t, s, fmt.Sprintf("n%d", n), &clock{}, pool("10.0.0.0/18", 24), pool("fd00::/64", 112))
			for range 3 { // idempotent
				got, err := c.Apply(context.Background(), func(ipam.Families) ipam.Usage { return ipam.Usage{Blocks: 1, Free: 50} }, nil)
				if err != nil || len(got) != 2 {
					t.Errorf("node %d: %v, %v", n, got, err)
				}
			}
		})
	}
	wg.Wait()
	if len(s.blocks) != 80 {
		t.Errorf("%d blocks for 40 nodes", len(s.blocks))
	}
}

// TestClaimerAgainstTwin claims until the pool is full, among random obstacles,
// and compares with trying one block after the other.
func TestClaimerAgainstTwin(t *testing.T) {
	t.Parallel()
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 0))
		p := []ipam.BlockPool{pool("10.0.0.0/20", 26), pool("fd00:0:0:40::/58", 64), pool("fd00::/122", 125)}[rng.IntN(3)]
		s := newStore()
		for range rng.IntN(20) {
			a := p.CIDR.Addr().AsSlice()
			for i := range a {
				if rng.IntN(3) == 0 {
					a[i] ^= byte(rng.IntN(256)) & byte(rng.IntN(256)) //nolint:staticcheck // two draws: a quarter of the bits
				}
			}
			addr, _ := netip.AddrFromSlice(a)
			s.blocks[netip.PrefixFrom(addr, p.CIDR.Bits()+1+rng.IntN(addr.BitLen()-p.CIDR.Bits())).Masked()] = "other"
		}
		for n := range 70 {
			var want netip.Prefix
			for a := p.CIDR.Addr(); p.CIDR.Contains(a) && !want.IsValid(); {
				try := netip.PrefixFrom(a, p.Block)
				free := true
				for b := range s.blocks {
					swallows := b.Addr().Is6() && b.Bits() < 64 // of the pools above only that of /64 has such blocks
					free = free && (swallows || !b.Overlaps(try))
				}
				if free {
					want = try
				}
				if a = nextBlock(try); !a.IsValid() {
					break
				}
			}
			got, err := claimer(t, s, fmt.Sprintf("n%d", n), &clock{}, p).Apply(t.Context(), nil, nil)
			if !want.IsValid() {
				if !errors.Is(err, ipam.ErrNoBlock) {
					t.Fatalf("seed %d: got %v, %v from a full pool", seed, got, err)
				}
				break
			}
			if err != nil || len(got) != 1 || got[0] != want {
				t.Fatalf("seed %d: got %v, %v, want %s", seed, got, err, want)
			}
		}
	}
}

// nextBlock returns the first address after a range.
func nextBlock(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits() - 1; i >= 0; i-- {
		bit := byte(0x80 >> (i % 8))
		b[i/8] ^= bit
		if b[i/8]&bit != 0 {
			a, _ := netip.AddrFromSlice(b)
			return a
		}
	}
	return netip.Addr{}
}

func TestClaimerReclaims(t *testing.T) {
	t.Parallel()
	c := &clock{now: time.Unix(1000, 0)}
	s := newStore(block("10.0.0.0/24", "a"), block("10.0.1.0/24", "gone"), block("10.0.2.0/24", "gone"), block("10.0.3.0/24", "back"))
	cl := claimer(t, s, "a", c, pool("10.0.0.0/16", 24))
	inUse := func(p netip.Prefix) bool { return p == netip.MustParsePrefix("10.0.2.0/24") }
	step := func(what string, nodes []string, want ...model.Block) {
		t.Helper()
		all, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got, err := cl.Reclaim(t.Context(), all, nodes, inUse)
		if err != nil {
			t.Fatal(err)
		}
		same(t, what, got, want)
	}
	step("gone just now", []string{"a", "back"})
	c.now = c.now.Add(ipam.DefaultBlockGrace - time.Second)
	step("within the grace", []string{"a"})
	c.now = c.now.Add(time.Second)
	step("a list without this node is not to be trusted", nil)
	step("after the grace, but for the one in use", []string{"a"}, block("10.0.1.0/24", "gone"))
	step("the one that left later was seen leaving later", []string{"a", "back"})
	c.now = c.now.Add(2 * ipam.DefaultBlockGrace)
	step("a node that came back begins anew", []string{"a"})
	same(t, "left", len(s.blocks), 3)
}

func TestNewClaimerRefuses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		pools []ipam.BlockPool
		want  string
	}{
		{[]ipam.BlockPool{pool("10.0.0.0/16", 15)}, "block pool 10.0.0.0/16 cannot be cut into blocks of /15"},
		{[]ipam.BlockPool{pool("10.0.0.0/16", 30)}, "block pool 10.0.0.0/16 cannot be cut into blocks of /30"},
		{[]ipam.BlockPool{pool("10.0.0.1/16", 24)}, "bits beyond its mask"},
		{[]ipam.BlockPool{pool("10.0.0.0/16", 24), pool("10.0.0.0/8", 24)}, "block pools 10.0.0.0/16 and 10.0.0.0/8 overlap"},
	} {
		_, err := ipam.NewClaimer(ipam.ClaimerConfig{Node: "a", Store: newStore(), Pools: tc.pools})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want %s", err, tc.want)
		}
	}
}
