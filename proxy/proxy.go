// Package proxy turns Services and EndpointSlices into the table that says, for
// a virtual address and port, which backend a new connection goes to. It
// behaves as kube-proxy in nftables mode does; the rules have the names that
// its tests carry (IN, EP, POL, AFF, TOP, REJ).
//
// A Table is made by Compile, which is pure, and never changes afterwards. The
// packet path asks it twice per connection and never again: Frontend for what
// the destination is, Pick for a backend. The flow table remembers the answer,
// and Generation tells whether it is worth asking again. What must be
// remembered across tables, which client is pinned to which backend, lives in
// an Affinity: with a path it is a mapped file, which outlives the process.
//
// # Invariants
//
//   - Frontend, Pick and Generation do not allocate and take no lock, but for
//     one shard of the Affinity when a service asks for it.
//   - Equal input gives a deeply equal Table, whatever Table was given as the
//     previous one and in whatever order services and slices come.
//   - A generation is a hash of content and nothing else, so an agent that
//     restarts into the same cluster finds its old flows still valid.
//   - The address families never mix: a frontend has backends of its own family.
//
// # Testing
//
// rules_test.go has a row per rule; twin_test.go compares the endpoint choice
// with a plain retelling of kube-proxy's on random services; affinity_file_test.go
// kills processes that write affinities.
package proxy

import (
	"net/netip"
	"slices"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/sharemap"
)

// Kind says what becomes of a new connection.
type Kind uint8

// The kinds.
const (
	KindNone        Kind = iota // not a service: route it as it is
	KindBackends                // Pick has a backend
	KindReject                  // no endpoint anywhere: answer with a reset or port unreachable
	KindDrop                    // endpoints exist, but policy allows this client none of them
	KindOther                   // a cluster IP, but no such port: reject
	KindUnallocated             // inside a service range, but no service's
)

// String returns the name of the kind.
func (k Kind) String() string {
	switch k {
	case KindNone:
		return "none"
	case KindBackends:
		return "backends"
	case KindReject:
		return "reject"
	case KindDrop:
		return "drop"
	case KindOther:
		return "other-port"
	case KindUnallocated:
		return "unallocated"
	default:
		return "invalid"
	}
}

// Backend is an endpoint to which connections are translated.
type Backend struct {
	Addr  packet.Addr
	Port  uint16
	Local bool // on this node, by the endpoint's nodeName (IN-8)
}

// frontKey is what a packet is matched by. For node ports the address is left
// out and family tells the two apart.
type frontKey struct {
	addr   packet.Addr
	port   uint16
	proto  uint8
	family family
}

// family is 0 in the key of a real address, which says it itself.
type family uint8

const (
	anyFamily family = iota
	ipv4
	ipv6
)

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

// Frontend is one virtual address and port. It is immutable.
type Frontend struct {
	Service model.Name
	Port    string // name of the service port

	key  frontKey
	kind Kind // of backends: KindBackends, KindReject or KindDrop

	// backends are the choice of everybody, or with split that of clients on
	// this node; outside is then that of the others (POL-4). Sorted.
	backends, outside []Backend
	split             bool
	// tables are Maglev's of both lists, nil where the choice is random.
	tables [2][]uint16
	// external: a load balancer's or external address, which clients outside of the
	// cluster may reach through this node.
	external bool
	maglev   bool
	// serving are all endpoints that a datagram flow may stay with whatever the
	// policy says (UDP-1). Sorted.
	serving []Backend
	// sources may use it; nil: everybody (LB-5).
	sources []netip.Prefix
	// pin is the affinity key of the service port, timeout its seconds; 0: none.
	pin     uint64
	timeout uint32
	// sum is the hash of all of the above, slot that of the key.
	sum  uint64
	slot uint16
}

// Slot returns the index of the frontend's generation.
func (f *Frontend) Slot() uint16 { return f.slot }

// Has reports whether a datagram flow to this backend may go on: it is an
// endpoint of the service port that serves, terminating or not, whatever the
// traffic policy says (UDP-1, UDP-4).
func (f *Frontend) Has(addr packet.Addr, port uint16) bool {
	_, ok := slices.BinarySearchFunc(f.serving, Backend{Addr: addr, Port: port}, compareBackends)
	return ok
}

// External reports whether clients outside of the cluster may reach it through
// this node: the address is a load balancer's or an external one.
func (f *Frontend) External() bool { return f.external }

// Backends returns a copy of the backends that clients on this node are spread
// over, for those who show them.
func (f *Frontend) Backends() []Backend { return slices.Clone(f.backends) }

// nodePort is a port on the addresses of nodes.
type nodePort struct {
	own   *Frontend            // this node's addresses
	other *Frontend            // another node's, unless byNode knows better
	nodes map[string]*Frontend // external policy Local: nodes with endpoints
}

// NodePort is a port of a service on the node's own addresses.
type NodePort struct {
	Port     uint16
	Protocol model.Protocol
	Service  model.Name
	Name     string // of the service port
	// IPv4 and IPv6 are the families in which somebody stands behind the port.
	// Without an endpoint anywhere it is as closed as a port that nobody has.
	IPv4, IPv6 bool
}

// NodePorts are the ports for which this node needs sockets, since what is sent
// to its own addresses is its kernel's affair: by port and protocol. The slice
// is that of the Table, and that of the previous one while nothing has changed.
func (t *Table) NodePorts() []NodePort { return t.listen }

// OwnNodePort is Frontend for the sockets that listen for a node port on this
// node, whatever the address they listen on.
func (t *Table) OwnNodePort(port uint16, proto uint8, is4 bool) (*Frontend, Kind) {
	k := frontKey{port: port, proto: proto, family: ipv6}
	if is4 {
		k.family = ipv4
	}
	return t.nodePort(t.node, k)
}

// Externals are the addresses of load balancers and external IPs that this node
// serves, sorted.
func (t *Table) Externals() []netip.Addr { return t.externals }

// Table is the compiled set of services. It is immutable.
type Table struct {
	frontends   sharemap.Map[frontKey, *Frontend]
	nodePorts   sharemap.Map[frontKey, nodePort]
	clusterIPs  map[packet.Addr]struct{}
	nodes       map[packet.Addr]string // addresses of nodes
	node        string
	local       []netip.Prefix // clients on this node
	ranges      []netip.Prefix // the service CIDRs
	generations [generations]uint32
	pins        map[uint64]uint32 // affinity keys in use, and their timeouts
	listen      []NodePort        // sorted
	externals   []netip.Addr      // sorted
	checks      []HealthCheck     // sorted
	units       sharemap.Map[model.Name, *unit]

	// What the next Compile compares its input with.
	zone        string
	exclude     []netip.Prefix
	externalIPs bool
	services    []*model.Service       // sorted
	slices      []*model.EndpointSlice // sorted
	problems    []Problem
}

// Frontend says what dst is. The Frontend is nil unless a service has exactly
// that address, port and protocol; it is there also for KindReject and KindDrop.
func (t *Table) Frontend(dst packet.Addr, port uint16, proto uint8) (*Frontend, Kind) {
	if f := t.frontends.Get(frontKey{addr: dst, port: port, proto: proto}); f != nil {
		return f, f.entryKind()
	}
	if _, ok := t.clusterIPs[dst]; ok {
		return nil, KindOther
	}
	if node, ok := t.nodes[dst]; ok {
		return t.nodePort(node, frontKey{port: port, proto: proto, family: familyOfAddr(dst)})
	}
	if len(t.ranges) > 0 {
		a := dst.Netip()
		for _, p := range t.ranges {
			if p.Contains(a) {
				return nil, KindUnallocated
			}
		}
	}
	return nil, KindNone
}

func familyOfAddr(a packet.Addr) family {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

func (t *Table) nodePort(node string, k frontKey) (*Frontend, Kind) {
	np, ok := t.nodePorts.Lookup(k)
	if !ok {
		return nil, KindNone
	}
	f := np.other
	if node == t.node {
		f = np.own
	} else if at := np.nodes[node]; at != nil {
		f = at
	}
	return f, f.entryKind()
}

// entryKind is the kind as far as it does not depend on the client: where it
// does, Pick has the last word.
func (f *Frontend) entryKind() Kind {
	if f.sources != nil || f.split {
		return KindBackends
	}
	return f.kind
}

// Hashed reports whether the choice is to be the same for the same connection, on
// every node: Pick then wants Hash for a random number.
func (f *Frontend) Hashed() bool { return f.maglev }

// Hash is what a connection is known by wherever it comes in: its two ends.
func Hash(proto uint8, client packet.Addr, clientPort uint16, dst packet.Addr, port uint16) uint32 {
	d := digest{h: fnvOffset}
	d.bytes(client[:])
	d.bytes(dst[:])
	h := (d.h ^ uint64(clientPort)<<32 ^ uint64(port)<<16 ^ uint64(proto)) * fnvPrime
	d.h = h ^ h>>29
	return uint32(d.sum() >> 32)
}

// Pick chooses a backend for a new connection of client, uniformly by random
// (EP-1), by Maglev's table or as aff remembers. The Kind is KindBackends, KindReject or KindDrop.
// A nil aff remembers nothing; now is in seconds.
func (t *Table) Pick(f *Frontend, client packet.Addr, random uint32, aff *Affinity, now uint32) (Backend, Kind) {
	if f.sources != nil && !contains(f.sources, client) {
		return Backend{}, KindDrop // LB-6: before anything else
	}
	if f.kind == KindReject {
		return Backend{}, KindReject
	}
	list, table := f.backends, f.tables[0]
	if f.split && !t.isLocal(client) {
		list, table = f.outside, f.tables[1]
	}
	if len(list) == 0 {
		return Backend{}, KindDrop
	}
	if f.timeout != 0 && aff != nil {
		return aff.pick(f, list, client, random, now), KindBackends
	}
	if table != nil {
		return list[table[spread(random, len(table))]], KindBackends
	}
	return list[spread(random, len(list))], KindBackends
}

// spread maps a random number to [0, n) without a division.
func spread(random uint32, n int) int {
	return int(uint64(random) * uint64(n) >> 32) // n is a length
}

// isLocal reports whether a client is on this node. Only a socket knows one by
// a loopback address.
func (t *Table) isLocal(client packet.Addr) bool {
	return contains(t.local, client) || client.Netip().IsLoopback()
}

func contains(set []netip.Prefix, a packet.Addr) bool {
	addr := a.Netip()
	for _, p := range set {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// Len returns the number of virtual addresses and ports, node ports once each.
func (t *Table) Len() int { return t.frontends.Len() + t.nodePorts.Len() }

// Generation returns the hash of the frontends that share slot. It is 0 for a
// slot without any and for one that does not exist.
func (t *Table) Generation(slot uint16) uint32 {
	if slot >= generations {
		return 0
	}
	return t.generations[slot]
}
