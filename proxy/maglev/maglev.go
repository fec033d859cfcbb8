// Package maglev makes lookup tables of Maglev hashing (Eisenbud et al., "Maglev: A
// Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4): every node
// makes the same table of the same backends, so that it does not matter which of
// them gets a packet, and a backend that comes or goes moves few flows of others.
//
// A table is as large as a prime number above a hundred times the backends, so their
// shares differ by one in a hundred at most. It is made of their names' hashes alone:
// neither their order nor what was before counts. So a service that grows beyond 163
// backends, or 655, has a table of another size, and nearly all its flows move once.
package maglev

import "slices"

// sizes are the primes that tables have as their sizes: a smaller one for what most
// services are, and the paper's two.
//
//nolint:gochecknoglobals // a table known at compile time
var sizes = []int{16381, 65537, 655373}

// perBackend is how many entries a backend has at least, but in the largest table.
const perBackend = 100

// Most is how many backends a table can have; the others get nothing.
const Most = 1 << 16

// Size returns the size of a table of n backends.
func Size(n int) int {
	for _, m := range sizes {
		if m >= n*perBackend {
			return m
		}
	}
	return sizes[len(sizes)-1]
}

// Table returns, for every entry, the index of its backend. names are the backends'
// hashes, evenly spread over all 64 bits and different from each other; one backend
// or none needs no table.
func Table(names []uint64) []uint16 {
	if len(names) > Most {
		names = names[:Most]
	}
	if len(names) < 2 {
		return nil
	}
	m := uint64(Size(len(names)))
	walks := make([]walk, len(names))
	for i, h := range names {
		walks[i] = walk{next: h % m, skip: mix(h)%(m-1) + 1, index: uint16(i)} // Most fits
	}
	// Whose turn is first must not depend on the order that they are given in.
	slices.SortFunc(walks, func(a, b walk) int {
		if names[a.index] < names[b.index] {
			return -1
		}
		return 1
	})
	return fill(walks, m)
}

// walk is a backend's way through the table: a permutation of its entries, since the
// size is prime.
type walk struct {
	next, skip uint64
	index      uint16
}

// fill lets each in turn take the next entry on its way that is free.
func fill(walks []walk, m uint64) []uint16 {
	const free = -1
	taken := make([]int32, m)
	for i := range taken {
		taken[i] = free
	}
	for left := m; ; {
		for i := range walks {
			w := &walks[i]
			for taken[w.next] != free {
				w.next = (w.next + w.skip) % m
			}
			taken[w.next] = int32(w.index)
			if left--; left == 0 {
				table := make([]uint16, m)
				for j, b := range taken {
					table[j] = uint16(b) // none is free
				}
				return table
			}
		}
	}
}

// mix makes a second hash of a first one.
func mix(h uint64) uint64 {
	h ^= h >> 31
	h *= 0x9fb21c651e98df25
	h ^= h >> 28
	h *= 0xd6e8feb86659fd93
	return h ^ h>>32
}
