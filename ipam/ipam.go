// Package ipam decides who has which address: it carves a cluster's range into
// pod, service and node ranges, claims blocks of pod addresses for a node, and
// hands single addresses to pods.
//
//	Plan --Carve--> Layout          pure arithmetic, once per cluster
//	Layout.Pools --Claimer--> block one object per block in the cluster's state:
//	                                creating it under the block's name is the lock
//	block --Pool--> Lease           on the node, recorded in a journal
//
// The three know nothing of each other, and nothing here knows Kubernetes: the
// store of blocks is the caller's (BlockStore), and manifests are printed as
// text. The first addresses of a block have fixed roles (HostAddr, RouterAddr).
//
// Invariants: no address is handed out while it is recorded as in use, whatever
// step the process was killed at; addresses are reused in the order of their
// release and after a cool-down; a request for two families gets both or
// nothing. Leases are known by container and interface, never by pod name.
//
// Tests: carving by table and by random plans; Pool against a naive twin over
// random histories with a crash at every write, and over a journal cut at every
// byte; the journal's reader by fuzzing.
package ipam

import (
	"errors"
	"fmt"
	"math/big"
	"math/bits"
	"net/netip"
	"strconv"
)

// The fixed roles within a block, as offsets from its first address.
const (
	hostOffset   = 1 // the node's own address on netctl0
	routerOffset = 2 // the router's, never on a kernel interface
	firstPod     = 3
	// reservedPerBlock is the network address, host, router and the last address
	// (broadcast in IPv4; kept out in IPv6, too, so that both count alike).
	reservedPerBlock = 4
	// minHostBits is the smallest block worth having: 8 addresses, 4 for pods.
	minHostBits = 3
)

// HostAddr returns the address that netctl0 bears: the block's second.
func HostAddr(block netip.Prefix) netip.Addr { return addrAt(block, hostOffset) }

// RouterAddr returns the router's own address: the block's third. It is never
// on a kernel interface.
func RouterAddr(block netip.Prefix) netip.Addr { return addrAt(block, routerOffset) }

// checkBlock reports why a range cannot be a block of pod addresses.
func checkBlock(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("block is not a range")
	case p != p.Masked() || p.Addr().Is4In6():
		return fmt.Errorf("block %s has bits beyond its mask", p)
	case hostBits(p) < minHostBits:
		return fmt.Errorf("block %s is too small: it needs %d addresses", p, 1<<minHostBits)
	}
	return nil
}

// hostBits is how many bits of a range's addresses are free.
func hostBits(p netip.Prefix) int { return p.Addr().BitLen() - p.Bits() }

// size is how many addresses a range has; more than 2^62 count as that.
func size(p netip.Prefix) uint64 { return uint64(1) << min(hostBits(p), 62) }

// addrAt returns the address at an offset from the beginning of a range.
func addrAt(p netip.Prefix, offset uint64) netip.Addr {
	return addTo(p.Masked().Addr(), 0, offset)
}

// addTo adds the 128-bit number hi:lo to an address, without a carry out of its
// family.
func addTo(a netip.Addr, hi, lo uint64) netip.Addr {
	if a.Is4() {
		b := a.As4()
		v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		v += uint32(lo)
		return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
	}
	b := a.As16()
	h, l := words(b)
	l, carry := bits.Add64(l, lo, 0)
	h, _ = bits.Add64(h, hi, carry)
	for i := range 8 {
		b[i] = byte(h >> (56 - 8*i))
		b[8+i] = byte(l >> (56 - 8*i))
	}
	return netip.AddrFrom16(b)
}

// words returns an address as two numbers.
func words(b [16]byte) (hi, lo uint64) {
	for i := range 8 {
		hi = hi<<8 | uint64(b[i])
		lo = lo<<8 | uint64(b[8+i])
	}
	return hi, lo
}

// offsetIn returns how far an address is from the beginning of a range that it
// is in; more than 2^64 counts as the largest number.
func offsetIn(p netip.Prefix, a netip.Addr) uint64 {
	ah, al := words(a.As16())
	bh, bl := words(p.Masked().Addr().As16())
	lo, borrow := bits.Sub64(al, bl, 0)
	if hi, _ := bits.Sub64(ah, bh, borrow); hi != 0 {
		return ^uint64(0)
	}
	return lo
}

// nth returns the n-th range of the given length within p.
func nth(p netip.Prefix, length int, n uint64) netip.Prefix {
	shift := p.Addr().BitLen() - length
	var hi, lo uint64
	switch {
	case shift >= 64:
		hi = n << (shift - 64)
	case shift == 0:
		lo = n
	default:
		lo, hi = n<<shift, n>>(64-shift)
	}
	return netip.PrefixFrom(addTo(p.Masked().Addr(), hi, lo), length)
}

// count writes 2^n as a number for people.
func count(n int) string {
	if n < 64 {
		return strconv.FormatUint(uint64(1)<<n, 10)
	}
	return new(big.Int).Lsh(big.NewInt(1), uint(n)).String()
}

// family names the address family of a.
func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
