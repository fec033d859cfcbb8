package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/netctl/netctl/internal/packet"
)

const (
	// DefaultPort is where WireGuard listens unless it is told otherwise.
	DefaultPort = 51820

	// The ring holds some 30 super-packets, or 1024 small ones: enough for a
	// burst, and at 2 Gbit/s emptied in 8 ms.
	defaultQueueBytes   = 2 << 20
	defaultQueuePackets = 1 << 10

	minMTU = 576                           // RFC 791
	maxMTU = device.MaxContentSize &^ 15   // what one message can carry, padded
	minIP4 = packet.VNetLen + 20           // up to the end of the destination
	minIP6 = packet.VNetLen + 40           //
	dstIP4 = packet.VNetLen + 16           //
	dstIP6 = packet.VNetLen + 24           //
	maxBuf = packet.VNetLen + 1<<16 - 1    // packet.MaxSize
	_      = uint(maxBuf - packet.MaxSize) // compile-time check
)

// WireGuardConfig says what NewWireGuard shall make.
type WireGuardConfig struct {
	Key        PrivateKey
	ListenPort uint16 // 0: one that is free, see WireGuard.Port
	MTU        int    // of packets inside the tunnel
	Sink       Sink
	Logger     *slog.Logger // nil: silent

	// Bind moves the datagrams; nil: UDP sockets as UDP says. A bind serves
	// one engine.
	Bind conn.Bind
	UDP  UDPConfig

	QueueBytes   int // of the queue towards the peers; 0: 2 MiB
	QueuePackets int // a power of two; 0: 1024
}

// Validate reports everything that is wrong with the configuration.
func (c *WireGuardConfig) Validate() error {
	var errs []error
	if c.Key.IsZero() {
		errs = append(errs, errors.New("no private key"))
	}
	if c.MTU < minMTU || c.MTU > maxMTU {
		errs = append(errs, fmt.Errorf("mtu %d is not within %d and %d", c.MTU, minMTU, maxMTU))
	}
	if c.Sink == nil {
		errs = append(errs, errors.New("no sink"))
	}
	if c.QueueBytes != 0 && c.QueueBytes < packet.MaxSize {
		errs = append(errs, fmt.Errorf("queue of %d bytes cannot hold a packet of %d", c.QueueBytes, packet.MaxSize))
	}
	if c.QueuePackets < 0 || c.QueuePackets&(c.QueuePackets-1) != 0 {
		errs = append(errs, fmt.Errorf("queue of %d packets is not a power of two", c.QueuePackets))
	}
	return errors.Join(errs...)
}

// WireGuard is the Engine that runs wireguard-go in this process.
type WireGuard struct {
	log     *slog.Logger
	self    Key
	dev     *device.Device
	devLog  *deviceLog
	port    *port
	bind    *bind
	windows *windows
	count   *counters

	routes atomic.Pointer[bart.Table[*window]] // destination -> peer; immutable once stored

	mu      sync.Mutex
	wins    map[Key]*window // of the peers the device has; guarded by mu
	nodes   map[Key]string  // their names; guarded by mu
	applied []Peer          // what the device has for sure, nil: look; guarded by mu
	closed  bool            // guarded by mu

	greetings map[Key]greeting // guarded by mu
	greeter   *time.Timer      // runs greetLate
}

var _ Engine = (*WireGuard)(nil)

// NewWireGuard opens the socket and starts an engine without peers. Close
// ends it.
func NewWireGuard(cfg WireGuardConfig) (*WireGuard, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Bind == nil {
		cfg.Bind = newUDPBind(cfg.UDP, cfg.Logger)
	}
	w := &WireGuard{
		log: cfg.Logger, self: cfg.Key.Public(), windows: newWindows(), count: new(counters),
		wins: make(map[Key]*window), nodes: make(map[Key]string), applied: []Peer{},
		greetings: make(map[Key]greeting),
	}
	w.greeter = time.AfterFunc(time.Hour, w.greetLate)
	w.greeter.Stop()
	w.routes.Store(new(bart.Table[*window]))
	open := newOpening()
	w.bind = &bind{inner: cfg.Bind, windows: w.windows, opening: open, count: w.count}
	w.bind.ties = newTies(w.self, w.bind.repeat)
	w.port = &port{
		mtu: cfg.MTU, sink: cfg.Sink, probe: w.probe,
		ring:    newRing(cmp.Or(cfg.QueueBytes, defaultQueueBytes), cmp.Or(cfg.QueuePackets, defaultQueuePackets)),
		windows: w.windows, opening: open, count: w.count,
		events: make(chan tun.Event), closed: make(chan struct{}), timer: time.NewTimer(time.Hour),
	}
	w.devLog = newDeviceLog(cfg.Logger)
	w.dev = device.NewDevice(w.port, w.bind, w.devLog.logger())
	w.dev.DisableSomeRoamingForBrokenMobileSemantics() // endpoints are the State's: see the package comment
	err := w.dev.IpcSet(deviceConfig(cfg.Key, cfg.ListenPort))
	if err == nil {
		err = w.dev.Up()
	}
	if err != nil {
		w.dev.Close()
		w.devLog.close()
		return nil, fmt.Errorf("overlay: listen on port %d: %w", cfg.ListenPort, err)
	}
	return w, nil
}

// Send implements Engine.
func (w *WireGuard) Send(buf []byte) error {
	dst, ok := destination(buf)
	if !ok {
		w.count.drop(DropMalformed)
		return ErrMalformed
	}
	to, ok := w.routes.Load().Lookup(dst)
	if !ok {
		w.count.drop(DropNoPeer)
		return ErrNoPeer
	}
	if err := w.port.ring.put(buf, to); err != nil {
		w.count.drop(DropFull)
		return err
	}
	w.count.txPackets.Add(1)
	return nil
}

// destination reads where the packet wants to go.
func destination(buf []byte) (netip.Addr, bool) {
	if len(buf) < minIP4 || len(buf) > packet.MaxSize {
		return netip.Addr{}, false
	}
	switch buf[packet.VNetLen] >> 4 {
	case 4:
		return netip.AddrFrom4([4]byte(buf[dstIP4:])), true
	case 6:
		if len(buf) < minIP6 {
			return netip.Addr{}, false
		}
		return netip.AddrFrom16([16]byte(buf[dstIP6:])), true
	default:
		return netip.Addr{}, false
	}
}

// Apply implements Engine.
func (w *WireGuard) Apply(peers []Peer) error {
	want, err := normalise(peers, w.self)
	if err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return ErrClosed
	}
	if w.applied != nil && slices.EqualFunc(w.applied, want, equalPeers) {
		return nil
	}
	w.applied = nil
	have, _, err := w.status()
	if err != nil {
		return err
	}
	c := diff(have, want)
	w.prepare(c.added)
	w.bind.ties.setPeers(want)
	if c.text != "" {
		err = w.dev.IpcSet(c.text)
	}
	if err != nil {
		return fmt.Errorf("overlay: set peers: %w", err)
	}
	w.commit(want, c)
	w.applied = want
	w.greet(c)
	return nil
}

// prepare makes the windows that the device's new endpoints will refer to.
func (w *WireGuard) prepare(added []Key) {
	for _, key := range added {
		if w.wins[key] == nil {
			w.wins[key] = &window{key: key}
		}
	}
	byHex := make(map[string]*window, len(w.wins))
	for key, win := range w.wins {
		byHex[key.hex()] = win
	}
	w.bind.setPeers(byHex)
}

// commit routes to the peers that the device now has.
func (w *WireGuard) commit(want []Peer, c change) {
	routes := new(bart.Table[*window])
	clear(w.nodes)
	for _, p := range want {
		w.nodes[p.PublicKey] = p.Node
		for _, prefix := range p.AllowedIPs {
			routes.Insert(prefix, w.wins[p.PublicKey])
		}
	}
	w.routes.Store(routes)
	for key, win := range w.wins {
		if _, stays := w.nodes[key]; !stays {
			w.windows.forget(win)
			delete(w.wins, key)
		}
	}
	w.log.Info("overlay peers applied", "peers", len(want), "added", len(c.added), "removed", len(c.gone))
}

// probe has WireGuard send what it holds for the peer, or a keepalive, which
// starts a handshake when there is no session. It does not wait.
func (w *WireGuard) probe(win *window) {
	if peer := w.dev.LookupPeer(device.NoisePublicKey(win.key)); peer != nil {
		peer.SendKeepalive()
	}
}

// Peers implements Engine.
func (w *WireGuard) Peers() ([]PeerStatus, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	have, _, err := w.status()
	if err != nil {
		return nil, err
	}
	out := make([]PeerStatus, 0, len(have))
	for key, s := range have {
		s.Node = w.nodes[key]
		slices.SortFunc(s.AllowedIPs, netip.Prefix.Compare)
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b PeerStatus) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), slices.Compare(a.PublicKey[:], b.PublicKey[:]))
	})
	return out, nil
}

// Port returns the UDP port that the engine listens on.
func (w *WireGuard) Port() (uint16, error) {
	_, port, err := w.status()
	return port, err
}

func (w *WireGuard) status() (map[Key]PeerStatus, uint16, error) {
	text, err := w.dev.IpcGet()
	if err != nil {
		return nil, 0, fmt.Errorf("overlay: read peers: %w", err)
	}
	peers, port, err := parseStatus(text)
	if err != nil {
		return nil, 0, fmt.Errorf("overlay: read peers: %w", err)
	}
	return peers, port, nil
}

// Counters implements Engine.
func (w *WireGuard) Counters() Counters { return w.count.read() }

// Close implements Engine.
func (w *WireGuard) Close() error {
	w.mu.Lock()
	closed := w.closed
	w.closed = true
	w.greeter.Stop()
	w.mu.Unlock()
	if !closed {
		w.bind.ties.close()
		w.dev.Close()
		w.devLog.close()
	}
	return nil
}

// normalise returns the peers sorted, with canonical prefixes, or says why
// the set makes no sense. Compile never makes such a set.
func normalise(peers []Peer, self Key) ([]Peer, error) {
	var errs []error
	keys := make(map[Key]string, len(peers))
	owner := make(map[netip.Prefix]string)
	out := make([]Peer, 0, len(peers))
	for _, p := range peers {
		if other, taken := keys[p.PublicKey]; taken {
			errs = append(errs, fmt.Errorf("peers %s and %s have one key", other, p.Node))
		}
		if p.PublicKey.IsZero() || p.PublicKey == self || !p.Endpoint.IsValid() {
			errs = append(errs, fmt.Errorf("peer %s has no key, our key or no endpoint", p.Node))
		}
		keys[p.PublicKey] = p.Node
		prefixes := make([]netip.Prefix, 0, len(p.AllowedIPs))
		for _, prefix := range p.AllowedIPs {
			c, ok := canonical(prefix)
			if other, taken := owner[c]; !ok || taken {
				errs = append(errs, fmt.Errorf("peer %s: allowed IP %s is invalid or given twice (%s)", p.Node, prefix, other))
				continue
			}
			owner[c] = p.Node
			prefixes = append(prefixes, c)
		}
		slices.SortFunc(prefixes, netip.Prefix.Compare)
		p.AllowedIPs = prefixes
		p.Endpoint = netip.AddrPortFrom(p.Endpoint.Addr().Unmap(), p.Endpoint.Port())
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Peer) int { return slices.Compare(a.PublicKey[:], b.PublicKey[:]) })
	return out, errors.Join(errs...)
}

// canonical masks a prefix and turns v4-mapped ones into IPv4.
func canonical(p netip.Prefix) (netip.Prefix, bool) {
	const mapped = 96 // bits of ::ffff:0:0/96
	if !p.IsValid() {
		return p, false
	}
	if p.Addr().Is4In6() {
		if p.Bits() < mapped {
			return p, false
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
	}
	return p.Masked(), true
}

func equalPeers(a, b Peer) bool {
	return a.Node == b.Node && a.PublicKey == b.PublicKey && a.Endpoint == b.Endpoint &&
		slices.Equal(a.AllowedIPs, b.AllowedIPs)
}
