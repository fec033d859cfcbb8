// Package datapath is the router of a node: it takes packets in at ports,
// decides once per flow what becomes of them, rewrites and emits them.
//
//	pod TUN | host TUN | overlay | netstack | dns      a Port
//	          \   |   /
//	       Input.Deliver: the nine steps of walk.go
//	          /   |   \
//	pod TUN | host TUN | overlay | netstack | dns
//
// The walk reads one immutable value, Tables, through one atomic pointer that
// is loaded once per batch. Changing what the router does means compiling
// other Tables and publishing them; there are no verbs to add or remove a
// route. Nothing in the walk blocks, logs or allocates; every packet that is
// not forwarded is counted under a typed Drop reason.
//
// Tests drive a Router through in-memory ports (see internal/vnet).
package datapath

import (
	"errors"

	"github.com/gaissmai/bart"

	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/policy"
	"github.com/netctl/netctl/proxy"
)

// What a Port's Write returns when it does not take a packet, which is then lost
// and counted. Any other error says that the port itself is gone.
var (
	// ErrFull means that the queue is full.
	ErrFull = errors.New("port queue is full")
	// ErrNoPeer means that the tunnel leads to nobody who owns the destination.
	ErrNoPeer = errors.New("no peer for the destination")
	// ErrFragment means that the port takes whole datagrams only.
	ErrFragment = errors.New("port takes no fragments")
	// ErrRefused means that the port, which is well, does not like this packet.
	ErrRefused = errors.New("port refused the packet")
)

// PortID names a port: it is the port's index in Tables.Ports. An ID may be
// used again for another port later; flows notice by the port's Gen.
type PortID uint32

// NoPort is never a valid index into Tables.Ports.
const NoPort PortID = 0

// Port is one exit of the router.
type Port interface {
	// Write sends one packet: a virtio-net header and the IP packet. It never
	// blocks and does not keep buf. It is safe for concurrent use.
	Write(buf []byte) error
}

// Reader is a Port that a Worker reads packets from: a TUN.
type Reader interface {
	Port
	// Read fills buf with one packet or fails at once; see kernel.TUN.Read.
	Read(buf []byte) (int, error)
	FD() int
}

// Kind says what is behind a port and so what its packets may claim.
type Kind uint8

// The kinds of ports. The zero Kind is a hole in Tables.Ports.
const (
	KindPod      Kind = iota + 1
	KindHost          // netctl0: the node's own processes
	KindOverlay       // the WireGuard engine: pods and processes of other nodes
	KindNetstack      // sockets that carry pods' traffic to the outside
	KindDNS           // the cluster's name server
	KindInbound       // connections that this node's own sockets carry on into the cluster
	KindOutside       // packets of pods to the outside, under the node's own address
)

// String returns the kind as logs and traces print it.
func (k Kind) String() string {
	switch k {
	case KindPod:
		return "pod"
	case KindHost:
		return "host"
	case KindOverlay:
		return "overlay"
	case KindNetstack:
		return "netstack"
	case KindDNS:
		return "dns"
	case KindInbound:
		return "inbound"
	case KindOutside:
		return "outside"
	default:
		return "none"
	}
}

// PortEntry is what the Tables say of a port.
type PortEntry struct {
	Port Port
	Kind Kind
	// Gen is a content hash of everything that a flow through this port was
	// judged by besides its frontend: who is behind it and their policy. A
	// flow that remembers another Gen is judged again.
	Gen uint32
	// MTU is the largest IP packet that fits, segments of super-packets each.
	MTU int
	// Addrs are the only sources that a pod or host port may send from. For the
	// other kinds the route to the source decides.
	Addrs []packet.Addr
	// Foreign lets a host port send from addresses outside the cluster to pods of
	// this node: somebody else's proxy in the kernel keeps clients' addresses.
	Foreign bool
	// Gateway lets a host port send from addresses outside the cluster to the
	// addresses of load balancers and external IPs, and to nothing else.
	Gateway bool
	// Name is for people: "default/nginx-0", "netctl0".
	Name string
}

// Route says where packets to a destination go.
type Route struct {
	Port PortID // NoPort: rejected for Reason
	// Reason is counted, and the sender told "unreachable", when Port is NoPort.
	Reason Drop
	// HostAddress marks addresses of nodes (this one's or another's), whose
	// kernels would answer a translated flow past us: see walk.go step 4.
	HostAddress bool
	// Peer tells the nodes behind the overlay port apart: each peer has a number
	// of its own from 1 on. 0: nobody's.
	Peer uint32
	// Router marks addresses of routers, this node's (Peer 0) or a peer's: the ends
	// of wrapped packets.
	Router bool
}

// Tables is everything that the walk reads. It is immutable once published.
type Tables struct {
	Revision uint64
	Ports    []PortEntry // indexed by PortID; entry 0 is never used
	Routes   *bart.Table[Route]
	Services *proxy.Table
	Policy   *policy.Table
	// DNS are the virtual addresses of the cluster's name server: UDP port 53
	// goes to the DNS port, TCP port 53 to netstack. Unset: no server.
	DNS      [2]packet.Addr
	DNSPort  PortID
	Netstack PortID
	// Masquerade is the port by which pods' packets to the outside leave under the
	// node's own address, of KindOutside; its Port is a Masquerade. Only routes
	// lead to it. NoPort: pods' way to the outside is Netstack.
	Masquerade  PortID
	RouterAddrs [2]packet.Addr // IPv4, IPv6: the router's own address in the node's block
	// Peers are the nodes behind the overlay port by number; entry 0 is never used.
	// PeerNumbers finds them by their IDs.
	Peers       []Peer
	PeerNumbers map[uint64]uint32
	// TunnelPort is the UDP port that WireGuard listens on, on every node: it is
	// for other nodes' kernels and nobody behind the router. 0: none.
	TunnelPort uint16
}

// route returns the way to a, NoPort with DropNoRoute when there is none.
func (t *Tables) route(a packet.Addr) Route {
	rt, ok := t.Routes.Lookup(a.Netip())
	if !ok {
		return Route{Reason: DropNoRoute}
	}
	return rt
}

// port returns the entry of id, or one of zero Kind.
func (t *Tables) port(id PortID) *PortEntry {
	if int(id) >= len(t.Ports) {
		return &t.Ports[NoPort]
	}
	return &t.Ports[id]
}

// routerAddr returns the router's address of a's family, the zero Addr when it
// has none.
func (t *Tables) routerAddr(a packet.Addr) packet.Addr {
	return ofFamily(t.RouterAddrs, a)
}

// isDNS reports whether a is a virtual address of the name server.
func (t *Tables) isDNS(a packet.Addr) bool {
	return t.DNSPort != NoPort && (a == t.DNS[0] || a == t.DNS[1])
}
