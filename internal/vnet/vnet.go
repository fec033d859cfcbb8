// Package vnet is a cluster in a test: nodes with the real router, flow table
// and WireGuard engine, made from a State by the real Compile, on wires and
// ports in memory and a clock that the test turns.
//
//	pod a ──┐                                      ┌── pod b
//	        Router n1 ── WireGuard ~ Network ~ WireGuard ── Router n2
//	   n1 ──┘                                      └── n2      (the nodes' own processes)
//
// What stays out is what needs a kernel: TUNs, namespaces, sockets. A test
// says what the cluster is (AddPod, AddService, Change), sends packets into
// ports and looks at what comes out, mostly as a script in text, once for each
// family of addresses:
//
//	c.Play(vnet.V6, `
//		a -> udp a:1000 > web:80 data=hello
//		b <- udp a:1000 > b:8080 data=hello ttl=62
//		b -> udp b:8080 > a:1000
//		a <- udp web:80 > a:1000
//	`)
//
// See Play for the notation. Everything that a port gets is checked: it must
// parse and all its checksums must be right. What a script does not mention
// must not happen: packets left over and drops not named fail the test.
//
// Every packet that enters a tunnel is counted until it has left it, so "nothing
// more arrives" is known and not waited for (Settle). WireGuard's own timers are
// the one thing that runs by real time, or by a synctest bubble's. The package is
// imported by tests only; the walk's own tests use it too.
package vnet

import (
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/overlay/overlaytest"
)

// Family is a family of addresses. The zero Family is none.
type Family int

// The families.
const (
	V4 Family = iota + 1
	V6
)

// String returns "v4" or "v6", to name subtests.
func (f Family) String() string { return "v" + strconv.Itoa(2+2*int(f)) }

// Families are both, to range over.
func Families() []Family { return []Family{V4, V6} }

// Config says how large a cluster is.
type Config struct {
	Nodes int // n1, n2, ...; 0: 2
	// Bare leaves the tunnels out: the overlay of each node is a port in memory,
	// "overlay.n1".
	Bare bool
	MTU  int // of pods and tunnel; 0: 1420
	// PodsOnly and ForeignDNS are agent.Input's.
	PodsOnly, ForeignDNS bool
	// Slots and PerOwner are the flow table's; 0: 4096 slots, its default bound.
	Slots, PerOwner int
	Underlay        overlaytest.Config
}

// Addresses of the cluster. Node i has 192.0.2.i and 2001:db8::i and the blocks
// 10.1.i.0/24 and fd00:1:0:i::/64.
const (
	ServicePort = 80   // of every service, TCP and UDP
	TargetPort  = 8080 // of every backend
	DefaultMTU  = 1420

	tunnelPort   = overlay.DefaultPort
	defaultSlots = 4096
	start        = 1000 // the clock's first second
)

// pair is the two addresses of one thing.
type pair [2]netip.Addr

func (p pair) of(f Family) netip.Addr { return p[f-1] }

func addrs(v4, v6 string) pair { return pair{netip.MustParseAddr(v4), netip.MustParseAddr(v6)} }

// Cluster is a cluster. Its methods are called from the test's goroutine.
type Cluster struct {
	Network *overlaytest.Network // nil when the cluster is bare

	tb    testing.TB
	cfg   Config
	now   atomic.Uint32
	log   *slog.Logger
	state *model.State // what the next Publish compiles; rebuilt by Change
	nodes map[string]*Node
	order []*Node
	ports map[string]*Port
	pods  map[string]*Pod
	addrs map[string]pair        // name -> addresses
	names map[packet.Addr]string // address -> name
	links map[[2]string]bool     // from, to: a packet has arrived; guarded by mu
	vips  int                    // services so far
	hold  bool                   // in Batch: Publish waits

	// Packets, segments of super-packets each, that went into tunnels, and those
	// of them that came out and were dealt with.
	entered, left atomic.Int64

	mu   sync.Mutex
	sent map[string][][]byte // datagrams on the underlay by node; guarded by mu
}

// New makes a cluster without pods, published already. It ends with the test.
func New(tb testing.TB, cfg Config) *Cluster {
	tb.Helper()
	if cfg.Nodes == 0 {
		cfg.Nodes = 2
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.Slots == 0 {
		cfg.Slots = defaultSlots
	}
	c := &Cluster{
		tb: tb, cfg: cfg, log: slog.New(slog.DiscardHandler),
		nodes: map[string]*Node{}, ports: map[string]*Port{}, pods: map[string]*Pod{},
		addrs: map[string]pair{}, names: map[packet.Addr]string{}, sent: map[string][][]byte{}, links: map[[2]string]bool{},
	}
	c.now.Store(start)
	c.state = &model.State{
		Synced: true, Namespaces: []*model.Namespace{{Name: "default"}, {Name: "kube-system"}},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:96::/112")},
	}
	if !cfg.Bare {
		cfg.Underlay.Tap = c.tap
		c.Network = overlaytest.New(cfg.Underlay)
	}
	for i := range cfg.Nodes {
		c.addNode(i + 1)
	}
	c.Name("outside", "198.51.100.7", "2001:db8:ffff::7")
	c.Name("unowned", "10.1.1.250", "fd00:1:0:1::fa")    // of n1's block
	c.Name("nowhere", "10.1.77.7", "fd00:1:0:77::7")     // of no block
	c.Name("unallocated", "10.96.77.7", "fd00:96::7777") // of no service
	c.service("kube-system", "kube-dns", addrs("10.96.0.10", "fd00:96::a"))
	c.Publish()
	return c
}

// Name gives addresses a name in scripts.
func (c *Cluster) Name(name, v4, v6 string) { c.name(name, addrs(v4, v6)) }

func (c *Cluster) name(name string, p pair) {
	c.mu.Lock() // tap reads names
	defer c.mu.Unlock()
	c.addrs[name] = p
	for _, a := range p {
		c.names[packet.AddrFrom(a)] = name
	}
}

// Addr returns the address of a node, pod, service or other name.
func (c *Cluster) Addr(f Family, name string) netip.Addr {
	c.tb.Helper()
	p, ok := c.addrs[name]
	if !ok {
		c.tb.Fatalf("no address has the name %q", name)
	}
	return p.of(f)
}

// Node returns the node of that name.
func (c *Cluster) Node(name string) *Node {
	c.tb.Helper()
	n := c.nodes[name]
	if n == nil {
		c.tb.Fatalf("no node has the name %q", name)
	}
	return n
}

// Port returns the port of that name: a pod's, or "n1", "netstack.n1",
// "inbound.n1", and "overlay.n1" of a bare cluster.
func (c *Cluster) Port(name string) *Port {
	c.tb.Helper()
	p := c.ports[name]
	if p == nil {
		c.tb.Fatalf("no port has the name %q", name)
	}
	return p
}

// Advance turns the routers' clocks on and lets flows expire. The tunnels'
// time is the bubble's.
func (c *Cluster) Advance(seconds uint32) {
	c.now.Add(seconds)
	for _, n := range c.order {
		for range 60 { // one call looks at a sixtieth of the table
			n.Flows.Expire(c.now.Load())
		}
	}
}

// Waits are short because packets cross in microseconds; patience is for a
// loaded machine, and for WireGuard's further tries after 5 and 15 seconds.
const (
	poll     = 100 * time.Microsecond
	patience = 60 * time.Second
)

// Settle returns when every packet is where it goes. On an underlay that loses
// packets it never would, and fails the test.
func (c *Cluster) Settle() {
	c.tb.Helper()
	c.wait("packets are stuck in the tunnels", func() bool { return c.entered.Load() == c.left.Load() })
}

func (c *Cluster) wait(what string, done func() bool) {
	c.tb.Helper()
	for start := time.Now(); !done(); time.Sleep(poll) {
		if time.Since(start) > patience {
			for _, n := range c.order {
				if n.Engine != nil {
					c.tb.Logf("%s: tunnel %+v", n.Name, n.Engine.Counters())
				}
			}
			c.tb.Fatalf("%s: %d of %d left; drops: %v", what, c.left.Load(), c.entered.Load(), c.Drops())
		}
	}
}

func (c *Cluster) tap(d overlaytest.Datagram) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := c.names[packet.AddrFrom(d.From.Addr())] // nodes have theirs before they send
	c.sent[name] = append(c.sent[name], append([]byte(nil), d.Payload...))
}

// Sent returns the datagrams that a node sent to others since the last call.
func (c *Cluster) Sent(node string) [][]byte {
	c.Settle()
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.sent[node]
	delete(c.sent, node)
	return out
}
