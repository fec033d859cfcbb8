package flow

import (
	"math/bits"

	"github.com/netctl/netctl/internal/mapfile"
)

// hashWords is the length of the hash key: six words for NH over the tuple's
// five words and a padding zero, and two for the second round.
const hashWords = mapfile.KeyWords

// hash is NH over the tuple: the sum of products of keyed pairs, modulo 2^128,
// taken twice. Two tuples chosen without knowledge of the key meet with a
// probability near 2^-64, whatever their form; addition before multiplication
// means that no word of the input can cancel the key.
func hash(k *[hashWords]uint64, w *key) uint64 {
	h1, l1 := bits.Mul64(w[0]+k[0], w[1]+k[1])
	h2, l2 := bits.Mul64(w[2]+k[2], w[3]+k[3])
	h3, l3 := bits.Mul64(w[4]+k[4], k[5])
	lo, carry := bits.Add64(l1, l2, 0)
	hi, _ := bits.Add64(h1, h2, carry)
	lo, carry = bits.Add64(lo, l3, 0)
	hi, _ = bits.Add64(hi, h3, carry)
	h, l := bits.Mul64(lo+k[6], hi+k[7])
	return h ^ l
}

// secondBucket returns the other bucket of a tuple, never b1 itself.
func secondBucket(h uint64, b1, mask uint32) uint32 {
	b2 := uint32(h>>32) & mask
	if b2 == b1 {
		return b1 ^ 1
	}
	return b2
}
