package balance

import (
	"cmp"
	"net/netip"
	"slices"
)

// Standbys is how many nodes watch over one address: the one that answers, and those
// that take its place. When all of them go at once, the others wait until their Node
// objects are gone.
const Standbys = 3

// Rank returns the nodes that answer for an address, the first one that lives: the
// Standbys highest of all by a hash of both names (rendezvous hashing, Thaler and
// Ravishankar 1998). A node that comes or goes changes the rank of nobody else.
func Rank(addr netip.Addr, nodes []string) []string {
	type scored struct {
		node  string
		score uint64
	}
	all := make([]scored, len(nodes))
	for i, n := range nodes {
		all[i] = scored{n, score(addr, n)}
	}
	slices.SortFunc(all, func(a, b scored) int { return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.node, b.node)) })
	out := make([]string, min(len(all), Standbys))
	for i := range out {
		out[i] = all[i].node
	}
	return out
}

// score is FNV-1a of both, mixed so that every bit depends on all of them.
func score(addr netip.Addr, node string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	bytes := addr.As16()
	for _, c := range bytes {
		h = (h ^ uint64(c)) * prime
	}
	for i := range len(node) {
		h = (h ^ uint64(node[i])) * prime
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// Duties are what a node has to do with an address.
type Duties struct {
	Answer bool     // it is to answer for it now
	Watch  []string // the nodes whose life decides that
}

// Duty says what the node self has to do with an address that these nodes may answer
// for: to watch those before it, and to answer when none of them lives.
func Duty(self string, addr netip.Addr, nodes []string, lives func(node string) bool) Duties {
	rank := Rank(addr, nodes)
	i := slices.Index(rank, self)
	if i < 0 {
		return Duties{}
	}
	before := rank[:i]
	return Duties{Answer: !slices.ContainsFunc(before, lives), Watch: before}
}
