// Package agent is the node's daemon: it holds every pod's port, compiles the
// cluster's state into what this node does, and keeps the node that way.
//
//	cluster.Source ──State──▶ ┌──────┐ Compile ┌────────┐ Publish ──▶ router, dns
//	cni.Server ──attach.go──▶ │ loop │ ───────▶│ Output │
//	kernel addresses ───────▶ └──────┘         └────────┘ Apply ────▶ engine, netctl0
//
// compile.go is pure; package loop turns it, apply.go is what a turn does, package
// claim tells the cluster. attach.go and check.go are what a CNI call does, package hold
// keeps such calls apart, package record is what is remembered of them, and
// restore.go takes it over after a restart. sockets.go is what the node listens on.
// run.go is whose turn it is (package handover), package settings what follows from
// what the cluster says, package install what the container runtime is told. The
// Agent only owns the parts and their lives. Everything it makes in the kernel outlives it on purpose: pods keep
// their eth0, the node its netctl0, and the next agent takes them over.
//
// Tests: compile.go and record.go on plain values, the rest in the lab.
package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netctl/netctl/cni"
	"github.com/netctl/netctl/dns"
	"github.com/netctl/netctl/internal/agent/balancer"
	"github.com/netctl/netctl/internal/agent/claim"
	"github.com/netctl/netctl/internal/agent/confirm"
	"github.com/netctl/netctl/internal/agent/estate"
	"github.com/netctl/netctl/internal/agent/hold"
	"github.com/netctl/netctl/internal/agent/install"
	"github.com/netctl/netctl/internal/agent/loop"
	"github.com/netctl/netctl/internal/agent/record"
	"github.com/netctl/netctl/internal/agent/settings"
	"github.com/netctl/netctl/internal/agent/status"
	"github.com/netctl/netctl/internal/cluster"
	"github.com/netctl/netctl/internal/datapath"
	"github.com/netctl/netctl/internal/drain"
	"github.com/netctl/netctl/internal/flow"
	"github.com/netctl/netctl/internal/kernel"
	"github.com/netctl/netctl/internal/model"
	"github.com/netctl/netctl/internal/netstack"
	"github.com/netctl/netctl/internal/nodeport"
	"github.com/netctl/netctl/internal/notice"
	"github.com/netctl/netctl/internal/packet"
	"github.com/netctl/netctl/internal/rawport"
	"github.com/netctl/netctl/ipam"
	"github.com/netctl/netctl/overlay"
	"github.com/netctl/netctl/proxy"
	"github.com/netctl/netctl/proxy/balance"
	"github.com/netctl/netctl/proxy/health"
)

// Cluster is what a cluster with an API server knows besides the State.
type Cluster interface {
	confirm.Cluster
	claim.NameServer
	// Servers returns where API servers are reached.
	Servers() []netip.AddrPort
	// Keep says whether this process keeps what it knows for the next one: not when
	// that one serves already.
	Keep(keep bool)
}

// Config says what an agent needs to know before it can ask.
type Config struct {
	Node       string
	StateDir   string   // records and the socket; must outlive the process, not the machine
	DataDir    string   // the node's key; must outlive the machine's boots
	Domain     string   // of the cluster's names; "": what the cluster says
	ResolvConf []string // files that name where names outside are asked; none: the usual ones
	ListenPort uint16   // of WireGuard
	MTU        int      // of pods; 0: what the underlay leaves
	Workers    int      // threads that read TUNs; 0: half the processors
	// ClusterCIDRs hold every pod range; what no node owns in them is nobody's.
	// Block ranges are claimed from them when the Node object has none. None: what
	// the Cluster says, if there is one.
	ClusterCIDRs []netip.Prefix
	Proxy        settings.Proxy  // "": full
	DNS          settings.DNS    // "": on
	Egress       settings.Egress // "": sockets
	// NodePorts are the addresses that have node ports, ExternalIPs serves what
	// Services name as such, Healthz and Metrics are where the service proxy's health
	// and counters are; "": nowhere.
	NodePorts        proxy.NodePortAddresses
	ExternalIPs      bool
	Healthz, Metrics string
	Events           notice.Recorder // nil: nobody is told
	// Pools are addresses for Services of type LoadBalancer, Balancers is where they
	// are written. None or nil: that is somebody else's affair.
	Pools       balance.Pools
	Balancers   balancer.Status
	Source      cluster.Source
	Claims      claim.Publisher
	Blocks      ipam.BlockStore   // nil: pod ranges come on Node objects only
	Cluster     Cluster           // nil: there is nothing but the State
	Install     *cni.Installation // nil: somebody else tells the container runtime
	ProbeSocket string            // "": nobody watches over us
	HoldSocket  string            // of the holder; "": the one that started this process, if any
	// StandIn has the agent end after it has given way, instead of staying in reserve.
	StandIn bool
	// DrainLimit bounds how long an agent that has handed over stays for connections
	// that it could not hand on; 0: DefaultDrainLimit.
	DrainLimit time.Duration
	Log        *slog.Logger
}

// The agent's sizes and times.
const (
	DefaultListenPort = overlay.DefaultPort
	// tunnelOverhead is what WireGuard adds to a packet over IPv6 (40+8+32).
	tunnelOverhead    = 80
	defaultUnderlay   = 1500
	minMTU            = 1280      // RFC 8200 §5
	HostInterface     = "netctl0" // the node's own way into the cluster
	keyFile           = "wireguard.key"
	txQueueLen        = 1000 // semantics of drops: a full queue loses packets in silence
	reconcileInterval = 30 * time.Second
	// netstackMTU lets super-packets pass whole to sockets.
	netstackMTU = 65535
	// DefaultDrainLimit is within the grace that a kubelet is told to give a pod.
	DefaultDrainLimit = 5 * time.Minute
)

// Validate checks a Config, names what is missing and fills in what may be.
func (c *Config) Validate() error {
	var errs []error
	if c.Node == "" {
		errs = append(errs, errors.New("the node's name is missing: set --node, or NODE_NAME in the environment"))
	}
	for what, dir := range map[string]string{"state": c.StateDir, "data": c.DataDir} {
		if !filepath.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("%s directory %q: use an absolute path", what, dir))
		}
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > 65535) {
		errs = append(errs, fmt.Errorf("MTU %d: IPv6 needs at least %d, and 65535 is the most", c.MTU, minMTU))
	}
	if c.Proxy == "" {
		c.Proxy = settings.ProxyFull
	}
	if c.DNS == "" {
		c.DNS = settings.DNSOn
	}
	if c.Egress == "" {
		c.Egress = settings.EgressSockets
	}
	return errors.Join(errs...)
}

// Agent is one node's daemon for a term of service: see process.
type Agent struct {
	cfg Config
	log *slog.Logger
	mtu int

	flows     *flow.Table
	affinity  *proxy.Affinity
	pool      *ipam.Pool
	records   *record.Store
	router    *datapath.Router
	workers   *datapath.Workers
	engine    *overlay.WireGuard
	key       overlay.Key
	resolver  *dns.Server
	upstreams *dns.ResolvConf
	stack     *netstack.Stack
	sockets   *nodeport.Server
	host      *kernel.TUN
	outside   *rawport.Port   // nil: what pods send to the outside ends in sockets
	heritage  *drain.Heritage // of the agent before; nil: there was none, or it had no connections
	cni       *cni.Server
	calls     int // the CNI socket's descriptor, for who comes after; -1: not open
	holds     hold.Holds
	guard     netstack.HostGuard
	claims    *claim.Keeper
	notices   *notice.Keeper
	balancer  *balancer.Balancer // nil: load balancers are somebody else's
	health    *health.Server     // has sockets while this agent serves
	lost      chan error         // what the agent cannot go on without
	ports     portIDs
	loop      *loop.Loop[Output]
	installer *install.Keeper // nil: somebody else tells the container runtime

	// The process', immutable: what the cluster says, and what follows from it.
	state  *atomic.Pointer[model.State]
	facts  settings.Cluster
	ranges []netip.Prefix
	keeper *estate.Custodian
	// relieve has other holders let go of what this agent took over from them.
	relieve func()
	// free has holders let go of what this agent could not get from them, once; nil:
	// what is busy is another agent's.
	free func()

	applying  sync.Mutex      // of the node's sockets; locked before mu
	listening map[string]bool // guarded by applying: sockets that the holder knows, by name

	mu     sync.Mutex
	fixed  []LocalPort               // immutable after open
	pods   map[cni.ID]*pod           // guarded by mu
	unread map[datapath.PortID]error // guarded by mu: ports of the newest tables that cannot be read
	// services are the sockets that Services want, conflicts what stands in the way
	// of sockets.
	services    []nodeport.Listener // guarded by mu
	conflicts   []string            // guarded by mu
	portNotices []model.Notice      // guarded by mu: the conflicts of Services' ports
	badChecks   []*health.PortError // guarded by mu

	endings hold.Endings  // devices of deleted pods
	delays  status.Delays // of changes
	turned  atomic.Int64  // when housekeeping did something last, in Unix nanoseconds

	addressesDue atomic.Bool // the host's addresses have changed

	// The loop's own.
	addresses     []netip.Addr // the host's
	addressesRead time.Time
	last          Output      // what was compiled last
	self          *model.Node // this node's object as it was last seen
}

// newAgent returns an agent that has touched nothing yet.
func newAgent(p *process) *Agent {
	a := &Agent{
		cfg: p.cfg, log: p.log, pods: make(map[cni.ID]*pod), lost: make(chan error, 1), calls: -1,
		state: p.state, facts: p.facts, ranges: p.ranges, keeper: p.keeper, relieve: func() {},
	}
	if !a.cfg.Pools.Empty() && a.cfg.Balancers != nil {
		a.balancer = balancer.New(a.cfg.Node, a.cfg.Pools, a.cfg.Balancers, func() { a.loop.Kick() }, a.log)
	}
	a.notices = notice.New(a.cfg.Events, a.log)
	a.health = health.New(health.Config{
		HealthzAddress: a.cfg.Healthz, MetricsAddress: a.cfg.Metrics, Mode: "netctl", NoLocal: a.noLocal, More: a.writeMetrics, Logger: a.log,
	})
	if a.cfg.Install != nil {
		a.installer = install.NewKeeper(*a.cfg.Install, a.log)
	}
	return a
}

// prepare makes what an agent can have while another one serves: all that takes
// time. Nothing of it is seen outside.
func (a *Agent) prepare() error {
	for _, dir := range []string{a.cfg.StateDir, a.cfg.DataDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create the agent's directory: %w", err)
		}
	}
	a.mtu = a.cfg.MTU
	if a.mtu == 0 {
		link, err := kernel.DefaultLink()
		if err != nil {
			link = kernel.Link{Name: "(no default route)", MTU: defaultUnderlay}
		}
		a.mtu = link.MTU - tunnelOverhead
		if a.mtu < minMTU {
			return fmt.Errorf("link %s has an MTU of %d, which leaves pods %d; IPv6 needs %d: raise it to %d, or set --mtu if larger packets get through",
				link.Name, link.MTU, a.mtu, minMTU, minMTU+tunnelOverhead)
		}
	}
	var err error
	if a.records, err = record.Open(filepath.Join(a.cfg.StateDir, "ports")); err != nil {
		return err
	}
	epoch, err := kernel.BootID()
	if err != nil {
		return err
	}
	// An agent that serves works on these until it stops reading; then we do.
	a.flows, err = flow.Open(flow.Config{Path: filepath.Join(a.cfg.StateDir, "flows"), Epoch: epoch, Join: true})
	if err != nil {
		return fmt.Errorf("open the flow table: %w", err)
	}
	if a.affinity, err = proxy.OpenAffinity(proxy.AffinityConfig{Path: filepath.Join(a.cfg.StateDir, "affinity"), Epoch: epoch}); err != nil {
		return fmt.Errorf("open the clients' affinities: %w", err)
	}
	a.log.Info("former process' state", "flows", a.flows.Report().String(), "affinities", a.affinity.Report().String())
	a.router = datapath.New(datapath.Config{Flows: a.flows, Affinity: a.affinity, Clock: kernel.BootClock})
	a.upstreams = dns.NewResolvConf(dns.ResolvConfConfig{Paths: a.cfg.ResolvConf, Refuse: a.refuseUpstream, Logger: a.log})
	a.resolver = dns.New(dns.Config{Upstreams: a.upstreams.Upstreams, Logger: a.log})
	files, err := kernel.FileLimit()
	if err != nil {
		return err
	}
	limits := nodeport.LimitsFor(files)
	outside, inbound := a.router.NewInputs(NetstackPort), a.router.NewInputs(InboundPort)
	a.stack, err = netstack.New(netstack.Config{
		Out: func(buf []byte) { outside.Deliver(buf) }, Inbound: func(buf []byte) { inbound.Deliver(buf) }, MTU: a.mtu, Logger: a.log,
		Serve: a.serveTCP, Refuse: a.refuseEgress, Files: files - limits.Files(),
	})
	if err != nil {
		return fmt.Errorf("start the network stack for sockets: %w", err)
	}
	a.sockets = a.nodeSockets(limits)
	answers := NewResolverPort(a.resolver, a.router.NewInputs(DNSPort))
	a.fixed = []LocalPort{
		{ID: NetstackPort, Kind: datapath.KindNetstack, Port: a.stack, Name: "netstack", MTU: netstackMTU},
		{ID: DNSPort, Kind: datapath.KindDNS, Port: answers, Name: "dns", MTU: netstackMTU},
		{ID: InboundPort, Kind: datapath.KindInbound, Port: a.stack.InboundPort(), Name: "inbound", MTU: netstackMTU},
	}
	a.last = a.compile() // what is the same when it is our turn is not compiled again
	return nil
}

// serveTCP is what runs behind the name server's virtual addresses.
func (a *Agent) serveTCP(dst netip.AddrPort) func(net.Conn) {
	t := a.router.Tables()
	addr := packet.AddrFrom(dst.Addr())
	if dst.Port() == 53 && (addr == t.DNS[0] || addr == t.DNS[1]) {
		return a.resolver.ServeTCP
	}
	return nil
}

// refuseEgress says why nothing may speak to dst for a pod: the host's own
// addresses, and whatever is not outside, should a stale route of the kernel
// lead it back to us.
func (a *Agent) refuseEgress(dst netip.Addr) error {
	if err := a.guard.Refuse(dst); err != nil {
		return err
	}
	if rt, ok := a.router.Tables().Routes.Lookup(dst); !ok || !leadsOutside(rt.Port) {
		return fmt.Errorf("%s is not outside the cluster", dst)
	}
	return nil
}

// refuseUpstream keeps questions from coming back to us.
func (a *Agent) refuseUpstream(addr netip.Addr) error {
	rt, ok := a.router.Tables().Routes.Lookup(addr)
	if ok && !leadsOutside(rt.Port) && !rt.HostAddress {
		return fmt.Errorf("%s is inside the cluster", addr)
	}
	if t := a.router.Tables(); t.DNS[family(addr)] == packet.AddrFrom(addr) {
		return fmt.Errorf("%s is this name server itself", addr)
	}
	return nil
}
