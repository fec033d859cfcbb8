// Package packet reads and changes packets: it is the only place that knows
// where a header's bytes are.
//
// # What a packet is
//
// Everywhere in the datapath a packet is one contiguous buffer: the virtio-net
// header a TUN device reads and writes, then the IP packet. With segmentation
// offload the IP packet may be a super-packet of up to 64 KiB that stands for
// many; it goes through the router whole, because cutting it up first costs
// more than everything else the router does.
//
//	0          10                     10+L4          10+Payload
//	+----------+----------------------+--------------+---------------- -+
//	| VNet     | IPv4 | IPv6 + ext.   | TCP UDP ICMP | data             |
//	+----------+----------------------+--------------+------------------+
//	Buf        IP()
//
// # The order a packet meets this code
//
//	Parse         headers -> Tuple, Kind, offsets; or a Fault          parse*.go
//	DecrementTTL  one hop                                              ttl.go
//	Apply         addresses and ports (ApplyICMPError: the quote too)  rewrite*.go
//	ClampMSS      TCP SYN towards a smaller link                       mss.go
//	LimitSegment  does it fit the exit? Fragment4 where it may         fit.go
//	TooBig ...    the answers a router owes: ICMP errors, TCP resets   icmp.go, reset.go
//	Segmenter     super-packet -> packets, for exits without offloads  segment.go
//	Coalescer     packets -> super-packets, for what came over a wire  coalesce*.go
//
// # Invariants
//
//   - Parse trusts no length and allocates nothing. What it accepts, every
//     other function here can work on without checking again, and no function
//     here makes a packet that Parse refuses.
//   - Checksums are changed incrementally (RFC 1624), never recomputed, while
//     a packet is forwarded: a packet that was damaged on its way here stays
//     visibly damaged. Under NEEDS_CSUM only the pseudo-header's part is kept.
//   - IPv4 and IPv6 cannot be confused although both live in one Addr type:
//     IPv6 headers with v4-mapped addresses are refused.
//   - Source routing is refused, because the destination the policy judged
//     would not be the destination the packet reaches. So are overlapping-
//     header fragments (RFC 1858, RFC 3128, RFC 7112), for the same reason.
//
// # How to test
//
// Every checksum is compared with a naive full recomputation over seeded random
// packets. FuzzParse, FuzzSegment and FuzzCoalesce feed bytes nobody chose:
//
//	go test ./internal/packet -fuzz FuzzParse -fuzztime 20s
//	go test ./internal/packet -bench . -run ^$
package packet
