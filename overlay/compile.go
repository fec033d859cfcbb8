package overlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/netctl/netctl/internal/model"
)

// Input is what Compile makes peers of.
type Input struct {
	Self     string // the node this agent runs on
	Nodes    []*model.Node
	Blocks   []model.Block
	Reserved []netip.Prefix // ranges that no node may claim: the service CIDRs
	// Pools are the ranges that all pods live in: a node's pods cannot be
	// anywhere else. None: anywhere.
	Pools []netip.Prefix
	// BlockPools say how large the blocks of a range are; of pools that overlap
	// the first one counts. None: a block may have any size.
	BlockPools []model.BlockPool
	// Protected are addresses that this node depends on and that belong to no
	// node: its gateways and resolvers, the API server's.
	Protected []netip.Addr
}

// Mesh is what Compile makes of what the nodes say of themselves.
type Mesh struct {
	Peers     []Peer         // sorted by node
	Claims    []Claim        // that were accepted, of all nodes, sorted by range
	Contested []netip.Prefix // this node's pod ranges that another claims with no less right
	Problems  []Problem      // what was refused, sorted
}

// Claim is a range that belongs to a node.
type Claim struct {
	Node    string
	Prefix  netip.Prefix
	Address bool // an address of the node itself, not a range of its pods
}

// Reason is why a claim of a node was refused.
type Reason uint8

// The reasons. A node that claims what is not its own loses the claim, not
// the node it takes it from, wherever the State says who is right.
const (
	ReasonNoKey       Reason = iota + 1 // has not published a key yet
	ReasonBadKey                        // published something that is no key
	ReasonKeyTwice                      // another node has the same key
	ReasonNoEndpoint                    // has not published where it listens, or nothing usable
	ReasonBadEndpoint                   // an endpoint that lies inside the cluster's own ranges
	ReasonBadAddress                    // an address that cannot be a node's
	ReasonOverlap                       // a range or address that another has a better claim to
	ReasonTwice                         // a range or address that another claims with equal right: neither gets it
	ReasonOutside                       // a range of pods outside the cluster's pod ranges
	ReasonProtected                     // holds an address that this node depends on
	ReasonContested                     // a range of this node that another claims, too
)

// String returns the reason as messages spell it.
func (r Reason) String() string {
	switch r {
	case ReasonNoKey:
		return "no public key"
	case ReasonBadKey:
		return "invalid public key"
	case ReasonKeyTwice:
		return "public key claimed twice"
	case ReasonNoEndpoint:
		return "no endpoint"
	case ReasonBadEndpoint:
		return "endpoint inside cluster ranges"
	case ReasonBadAddress:
		return "invalid address"
	case ReasonOverlap:
		return "overlaps another's"
	case ReasonTwice:
		return "claimed twice"
	case ReasonOutside:
		return "outside the cluster's pod ranges"
	case ReasonProtected:
		return "holds an address that belongs to no node"
	case ReasonContested:
		return "also claimed by another node; no pod gets an address of it"
	default:
		return "unknown"
	}
}

// Problem is a claim that was refused: the traffic it concerns is dropped.
type Problem struct {
	Node   string
	Reason Reason
	Detail string
}

// String returns a line for people.
func (p Problem) String() string {
	if p.Detail == "" {
		return fmt.Sprintf("node %s: %s", p.Node, p.Reason)
	}
	return fmt.Sprintf("node %s: %s: %s", p.Node, p.Reason, p.Detail)
}

// Compile returns the mesh as the node Self sees it. It is pure: equal input,
// in whatever order, gives deep-equal output.
//
// What a Node object says is a claim, and one node may be in the wrong hands.
// Claims are weighed by who makes them: what this node knows of itself and
// the reserved ranges first, then the podCIDRs that controllers assign, then
// blocks, then addresses. A claim that overlaps a better one is refused; of
// equal claims that overlap, all are. Keys stand for themselves: two nodes
// with one key are both refused.
//
// Blocks of their pool's size go before others: two of those overlap only if they
// are the same, and then they have one name, which only one node can get. So
// nobody takes a block from another by a wider or narrower one. Blocks of another
// size count where nothing better is, for a pool's size may have been changed.
func Compile(in Input) Mesh {
	c := &compiler{self: in.Self, accepted: new(bart.Table[string]), prefixes: make(map[string][]netip.Prefix)}
	byRank := c.claims(in)
	contested := c.contested(byRank)
	c.resolve(byRank)
	keys := c.keys(in.Nodes)
	var self *model.Node
	for _, n := range in.Nodes {
		if n.Name == in.Self {
			self = n
		}
	}
	var peers []Peer
	for _, n := range in.Nodes {
		if n.Name == in.Self {
			continue
		}
		key, ok := keys[n.Name]
		if !ok {
			continue
		}
		endpoint, ok := c.endpoint(n, self)
		if !ok {
			continue
		}
		prefixes := c.prefixes[n.Name]
		slices.SortFunc(prefixes, netip.Prefix.Compare)
		peers = append(peers, Peer{Node: n.Name, PublicKey: key, Endpoint: endpoint, AllowedIPs: slices.Compact(prefixes)})
	}
	slices.SortFunc(peers, func(a, b Peer) int { return cmp.Compare(a.Node, b.Node) })
	slices.SortFunc(c.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Detail, b.Detail))
	})
	return Mesh{Peers: peers, Claims: c.claimed(), Contested: contested, Problems: slices.Compact(c.problems)}
}

// claimed lists what was accepted.
func (c *compiler) claimed() []Claim {
	var out []Claim
	for prefix, node := range c.accepted.AllSorted() {
		if node == "" {
			continue
		}
		isRange := c.ranges.Get(prefix)
		out = append(out, Claim{Node: node, Prefix: prefix, Address: !isRange})
	}
	return out
}

// contested finds the pod ranges of this node that another node claims with no
// less right. What runs in them goes on, as far as others let it, but handing
// out more of them would give one address to two pods.
func (c *compiler) contested(byRank [numRanks][]claim) []netip.Prefix {
	var out []netip.Prefix
	for _, own := range byRank[rankSelf] {
		if own.node == "" || own.address {
			continue
		}
		for r := rankPodCIDR; r <= own.made; r++ {
			for _, other := range byRank[r] {
				if other.prefix.Overlaps(own.prefix) {
					out = append(out, own.prefix)
					c.problems = append(c.problems, Problem{
						Node: c.self, Reason: ReasonContested, Detail: fmt.Sprintf("%s, by node %s as %s", own.prefix, other.node, other.prefix),
					})
				}
			}
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// rank orders claims by who makes them; lower is better.
type rank uint8

const (
	rankSelf     rank = iota // this node's own, and the reserved ranges
	rankPodCIDR              // assigned by the cluster's controllers
	rankBlock                // claimed under a unique name, and of the pool's block size
	rankOddBlock             // claimed under a unique name, of another size
	rankAddress              // reported by the node's kubelet
	numRanks
)

// claim is a range that a node says is its own.
type claim struct {
	prefix  netip.Prefix
	node    string // "": reserved
	address bool   // an address of the node, not a range of pods
	made    rank   // how it was made; for this node's own, which all rank first
	refused string // by whom; meaningful while a rank is resolved
}

// conflicts reports whether two overlapping claims exclude each other. A node
// may claim one range in two ways, but its address is never a pod's.
func (c *claim) conflicts(o *claim) bool { return c.node != o.node || c.address != o.address }

type compiler struct {
	self     string
	accepted *bart.Table[string] // ranges of pods, services and addresses: who has them
	ranges   bart.Lite           // those of pods and services alone
	prefixes map[string][]netip.Prefix
	problems []Problem
}

func (c *compiler) problem(node string, why Reason, detail string) {
	if node != c.self && node != "" {
		c.problems = append(c.problems, Problem{Node: node, Reason: why, Detail: detail})
	}
}

// claims collects everybody's claims by rank.
func (c *compiler) claims(in Input) (out [numRanks][]claim) {
	add := func(r rank, p netip.Prefix, node string) {
		prefix, ok := canonical(p)
		if !ok || prefix.Bits() == 0 {
			c.problem(node, ReasonBadAddress, p.String())
			return
		}
		if why := in.refuses(prefix, r); why != 0 && node != in.Self {
			c.problem(node, why, p.String())
			return
		}
		cl := claim{prefix: prefix, node: node, address: r == rankAddress, made: r}
		if node == in.Self && r != rankAddress {
			r = rankSelf
		}
		out[r] = append(out[r], cl)
	}
	for _, p := range in.Reserved {
		add(rankSelf, p, "")
	}
	for _, b := range in.Blocks {
		r := rankBlock
		if !in.fits(b.CIDR) {
			r = rankOddBlock
		}
		add(r, b.CIDR, b.Node)
	}
	for _, n := range in.Nodes {
		for _, p := range n.PodCIDRs {
			add(rankPodCIDR, p, n.Name)
		}
		for _, a := range n.Addresses {
			a = a.Unmap()
			if !usable(a) {
				c.problem(n.Name, ReasonBadAddress, a.String())
				continue
			}
			add(rankAddress, netip.PrefixFrom(a, a.BitLen()), n.Name)
		}
	}
	// This node's addresses rank with its other facts, but are still addresses.
	out[rankAddress] = slices.DeleteFunc(out[rankAddress], func(cl claim) bool {
		if cl.node == in.Self {
			out[rankSelf] = append(out[rankSelf], cl)
		}
		return cl.node == in.Self
	})
	return out
}

// refuses says why no other node can have a range, whoever else wants it.
func (in *Input) refuses(p netip.Prefix, r rank) Reason {
	switch {
	case r == rankSelf:
		return 0
	case slices.ContainsFunc(in.Protected, p.Contains):
		return ReasonProtected
	case r == rankAddress && slices.ContainsFunc(in.Pools, p.Overlaps):
		return ReasonBadAddress // pods' addresses are no node's
	case r == rankAddress || len(in.Pools) == 0:
		return 0
	case !slices.ContainsFunc(in.Pools, func(pool netip.Prefix) bool { return pool.Overlaps(p) && pool.Bits() <= p.Bits() }):
		return ReasonOutside
	default:
		return 0
	}
}

// fits reports whether a block has the size of its pool's blocks.
func (in *Input) fits(block netip.Prefix) bool {
	for _, pool := range in.BlockPools {
		if pool.CIDR.Overlaps(block) {
			return block.Bits() == pool.Bits
		}
	}
	return len(in.BlockPools) == 0
}

// usable reports whether a can be the address of a node for other nodes.
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() &&
		!a.IsLinkLocalUnicast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// resolve accepts claims, best rank first.
func (c *compiler) resolve(byRank [numRanks][]claim) {
	for r := range byRank {
		claims := byRank[r]
		slices.SortFunc(claims, func(a, b claim) int {
			return cmp.Or(a.prefix.Compare(b.prefix), cmp.Compare(a.node, b.node))
		})
		if rank(r) != rankSelf { // below numRanks
			claims = c.refuseTaken(claims)
			c.refuseEqual(claims)
		}
		for _, cl := range claims {
			if cl.refused != "" {
				c.problem(cl.node, ReasonTwice, fmt.Sprintf("%s, also by %s", cl.prefix, cl.refused))
				continue
			}
			c.accepted.Insert(cl.prefix, cl.node)
			if !cl.address {
				c.ranges.Insert(cl.prefix)
			}
			c.prefixes[cl.node] = append(c.prefixes[cl.node], cl.prefix)
		}
	}
}

// refuseTaken removes claims that overlap an accepted one of a better rank.
func (c *compiler) refuseTaken(claims []claim) []claim {
	return slices.DeleteFunc(claims, func(cl claim) bool {
		owner, prefix, taken := c.taken(cl)
		if taken {
			c.problem(cl.node, ReasonOverlap, fmt.Sprintf("%s, which is in conflict with %s of %s", cl.prefix, prefix, ownerName(owner)))
		}
		return taken
	})
}

// taken finds an accepted range that excludes cl, the narrowest around it or
// the first inside.
func (c *compiler) taken(cl claim) (owner string, by netip.Prefix, taken bool) {
	for prefix, node := range c.accepted.Supernets(cl.prefix) {
		if node != cl.node || cl.address && c.ranges.Lookup(cl.prefix.Addr()) {
			return node, prefix, true
		}
	}
	for prefix, node := range c.accepted.Subnets(cl.prefix) {
		if node != cl.node {
			return node, prefix, true
		}
	}
	return "", netip.Prefix{}, false
}

// refuseEqual marks claims of one rank that overlap another's. Prefixes are
// nested or disjoint, and sorted ones come after those that hold them.
func (c *compiler) refuseEqual(claims []claim) {
	var around []*claim // the claims that hold the current one
	for i := range claims {
		cl := &claims[i]
		for len(around) > 0 && !around[len(around)-1].prefix.Overlaps(cl.prefix) {
			around = around[:len(around)-1]
		}
		for _, outer := range around {
			if outer.conflicts(cl) {
				outer.refused = cmp.Or(outer.refused, cl.node)
				cl.refused = cmp.Or(cl.refused, outer.node)
			}
		}
		around = append(around, cl)
	}
}

func ownerName(node string) string {
	if node == "" {
		return "the cluster"
	}
	return "node " + node
}

// keys returns every node's key, without those that are missing, broken or
// not unique.
func (c *compiler) keys(nodes []*model.Node) map[string]Key {
	users := make(map[Key][]string, len(nodes))
	for _, n := range nodes {
		if n.PublicKey == "" {
			c.problem(n.Name, ReasonNoKey, "")
			continue
		}
		key, err := ParseKey(n.PublicKey)
		if err != nil {
			c.problem(n.Name, ReasonBadKey, err.Error())
			continue
		}
		users[key] = append(users[key], n.Name)
	}
	out := make(map[string]Key, len(users))
	for key, names := range users {
		slices.Sort(names)
		if len(names) == 1 {
			out[names[0]] = key
			continue
		}
		for i, name := range names {
			c.problem(name, ReasonKeyTwice, "also by node "+names[(i+1)%len(names)])
		}
	}
	return out
}

// endpoint chooses where to reach a node: its first endpoint of a family that
// this node has too, else its first. One inside the pods' or services' ranges
// is refused, because the tunnel's packets would enter the tunnel.
func (c *compiler) endpoint(n, self *model.Node) (netip.AddrPort, bool) {
	var chosen netip.AddrPort
	bad := ""
	for _, e := range n.Endpoints {
		e = netip.AddrPortFrom(e.Addr().Unmap(), e.Port())
		if !usable(e.Addr()) || e.Port() == 0 {
			bad = e.String()
			continue
		}
		if c.ranges.Lookup(e.Addr()) {
			c.problem(n.Name, ReasonBadEndpoint, e.String())
			continue
		}
		if !chosen.IsValid() || !reaches(self, chosen.Addr()) && reaches(self, e.Addr()) {
			chosen = e
		}
	}
	if !chosen.IsValid() {
		c.problem(n.Name, ReasonNoEndpoint, bad)
	}
	return chosen, chosen.IsValid()
}

// reaches reports whether the node has an address of a's family. One that is
// not known yet is taken to have both.
func reaches(self *model.Node, a netip.Addr) bool {
	if self == nil || len(self.Addresses) == 0 {
		return true
	}
	return slices.ContainsFunc(self.Addresses, func(own netip.Addr) bool { return own.Unmap().Is4() == a.Is4() })
}
