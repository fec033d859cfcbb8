// Package overlay is the encrypted mesh between nodes: WireGuard in this
// process, fed by the router without a second TUN device.
//
// Peers come from the cluster state by [Compile], which is pure and refuses
// what nodes may not claim. An [Engine] carries packets to them; [WireGuard] is
// the engine. It speaks WireGuard, and is held against wireguard-go's device in
// tests; packets run to completion, without queues and goroutines between:
//
//	router --Send--> route, cut, seal in place ---------> one sendmsg per piece
//	       \                                      in the caller's goroutine; small
//	        \                                     packets of a Batch share a piece
//	        no session: waits in a bounded queue, and a handshake begins
//
//	router <--Sink-- merge <-- whose source is it? <-- open in place <-- recvmmsg
//	                                               in one goroutine per socket; with
//	                                               processors to spare, others help opening
//	        handshake messages: MACs checked there, the rest by one goroutine,
//	        which begins our own handshakes, too: nobody else computes with keys
//
// A packet on the router's side is a virtio-net header and an IP packet of up
// to 64 KiB. It is cut into tunnel-sized packets where they are encrypted, and
// the kernel cuts and joins the datagrams of a piece.
//
// A peer's life is in peer.go (timers), shake.go (handshakes), keypair.go (limits)
// and path.go (probes of the way to it, by package pathmtu); names of constants are those of the WireGuard whitepaper. What
// strangers send is parsed in package handshake, sockets are package udp, and
// key pairs live in a store of package sessions, which outlives the process:
//
//	NewWireGuard   opens sockets and file, touches nothing; another process may serve
//	Start          takes the sessions over and serves; waits shortly for one that still does
//	Stop           serves no more; the file is final, the sockets are still open
//	Close
//
// Invariants:
//   - Fail closed. A destination without a peer is [ErrNoPeer]; nothing leaves
//     but what seal and the handshake made.
//   - No nonce is used twice, also when the process is killed, or another one
//     works on the same sessions: see package sessions.
//   - Nothing waits for the network: a socket without room is a counted drop.
//   - What the network can make grow is bounded: handshake messages that wait,
//     packets that wait for handshakes, four key pairs per peer, who may ask.
//   - One caller's packets leave in the order in which it sent them.
//   - A peer's endpoint is what the cluster state says. Roaming is off unless it
//     is asked for: a packet from elsewhere is accepted when it is authentic, but
//     answers go to the configured endpoint, so nobody on the path can divert a
//     tunnel.
//   - No persistent keepalives: between nodes there is no NAT to keep open.
//     Start and Apply shake hands with every new peer at once, and a session that
//     has aged out is renewed by the first packet, which waits and is not lost.
//
// When both ends begin a handshake at once, both answer: each has two sessions
// then, sends with its own and understands the other, and only one end renews.
//
// Test with two engines on an overlaytest.Network, in a synctest bubble where
// time matters; no root needed.
package overlay

import (
	"net/netip"
	"time"
)

// Engine carries packets to the peers' nodes, encrypted. All methods may be
// called from any goroutine.
type Engine interface {
	Carrier
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

// Carrier is the part of an Engine that the router uses.
type Carrier interface {
	// Send takes one packet, or super-packet, with its virtio-net header, for
	// the peer whose AllowedIPs hold its destination. It does not keep buf, but may
	// change its headers; it does not wait for the network, nor allocate where
	// there is a session. Errors: ErrNoPeer, ErrFull, ErrMalformed, ErrClosed.
	Send(buf []byte) error
	// NewBatch returns a way to send for one goroutine that has several packets.
	NewBatch() Batch
	// PathMTU returns the largest packet that reaches the node of an address, which
	// may be less than the engine's MTU and changes with what is found on the way.
	PathMTU(dst netip.Addr) int
}

// Batch sends packets as Engine.Send does, and in the same order, but those that
// could leave in one piece with their successors may wait for Flush, which must
// follow soon. What fails there is counted only. It holds no memory between
// Flush and the next Send.
type Batch interface {
	Send(buf []byte) error
	Flush()
}

// Sink takes decrypted packets, put together to super-packets where possible,
// each with its virtio-net header. They are borrowed: valid until it returns,
// and may be changed in place. It is called from one goroutine per socket, may
// call Send, and must not wait for Stop or Close.
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
	MTU           int // of packets to it
}
