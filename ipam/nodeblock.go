package ipam

import "net/netip"

// NodeBlock returns the i-th block of the pod range, counted from 0: the one
// that a controller which numbers the nodes gives to the i-th of them.
func (f FamilyLayout) NodeBlock(i uint64) netip.Prefix { return nth(f.Pods, f.Block, i) }
