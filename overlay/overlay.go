// Package overlay is the encrypted mesh between nodes: WireGuard in this
// process, fed by the router without a second TUN device.
//
// Peers come from the cluster state by [Compile], which is pure and refuses
// what nodes may not claim. An [Engine] carries packets to them; [WireGuard]
// is the engine we have. The seam is small on purpose, so that an engine of
// our own can replace it.
//
//	router --Send--> ring --Read--> segmenter --> wireguard: seal --> bind --> UDP
//	router <--Sink-- coalescer <----Write-------- wireguard: open <-- bind <-- UDP
//
// A packet on the router's side is a virtio-net header and an IP packet of up
// to 64 KiB. It is cut into tunnel-sized packets in the very buffers that
// WireGuard encrypts, and put together again at the other end, so that a bulk
// stream crosses in batches.
//
// Invariants:
//   - Fail closed. A destination without a peer is [ErrNoPeer]; the bind lets
//     nothing out that is not a WireGuard message.
//   - Nothing waits for the network: Send copies into a bounded ring or
//     returns [ErrFull].
//   - Memory is bounded. WireGuard's own queues are not, so this package lets
//     only so many packets into them, in both directions (see window.go).
//   - A peer's endpoint is what the cluster state says. Roaming is off: a
//     packet from elsewhere is accepted when it is authentic, but answers go
//     to the configured endpoint, so nobody on the path can divert a tunnel.
//   - No persistent keepalives: between nodes there is no NAT to keep open.
//     Apply shakes hands with every new peer at once, and a session that has
//     aged out is renewed by the first packet, which waits and is not lost.
//
// Test with two engines on an overlaytest.Network: real WireGuard devices on
// in-memory wires, with loss and reordering, no root needed.
package overlay

import (
	"net/netip"
	"time"
)

// Engine carries packets to the peers' nodes, encrypted. All methods may be
// called from any goroutine.
type Engine interface {
	// Send takes one packet, or super-packet, with its virtio-net header, for
	// the peer whose AllowedIPs hold its destination. It copies buf and never
	// blocks or allocates. Errors: ErrNoPeer, ErrFull, ErrMalformed, ErrClosed.
	Send(buf []byte) error
	// Apply makes peers the whole set of peers. It is idempotent, touches only
	// what differs, and sessions of unchanged peers live on. After an error it
	// may be called again with the same or another set.
	Apply(peers []Peer) error
	// Peers returns the state of every peer, sorted by node.
	Peers() ([]PeerStatus, error)
	// Counters returns the totals since the start.
	Counters() Counters
	// Close ends the engine. No call of the Sink is made after it returned.
	Close() error
}

// Sink takes decrypted packets, put together to super-packets where possible,
// each with its virtio-net header. They are borrowed: valid until it returns,
// and may be changed in place. It is called from several goroutines, one per
// peer at a time, and must not wait for Close.
type Sink func(packets [][]byte)

// Peer is another node as the engine shall know it.
type Peer struct {
	Node       string
	PublicKey  Key
	Endpoint   netip.AddrPort
	AllowedIPs []netip.Prefix // what it may send from, and what is sent to it
}

// PeerStatus is what the engine knows of a peer.
type PeerStatus struct {
	Peer
	LastHandshake time.Time // zero: never
	RxBytes       uint64
	TxBytes       uint64
}
