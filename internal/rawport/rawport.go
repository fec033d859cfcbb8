// Package rawport carries pods' connections to the outside packet by packet,
// under the node's own address, without netfilter and without a socket for each:
// the flow table is all the state there is, so they outlive the process.
//
//	          Write                      kernel: forwards, segments, neighbours
//	router ──────────> netctl0 ────────────────────────────> network
//	   ^                                                        │
//	   │  Out                kernel: INPUT, reassembles         │
//	   └─────────── raw sockets, one a protocol and family <────┤
//	                                                            v
//	                    LISTEN and UDP sockets with a filter that passes nothing
//
// Why so. A packet written into a TUN with the node's address as its source is
// forwarded like any other: the kernel finds the way and the neighbour, and
// super-packets stay whole. Replies come to the node's own address. Raw sockets
// see them where ordinary sockets would, behind the host's INPUT rules, as whole
// super-packets and without fragments. docs/decisions/0011-packets-to-the-outside.md
// has what was measured of this and of the other ways.
//
// Invariants:
//   - Every source port that is used is bound by sockets of ours, so nobody else's
//     connection can have it, and the kernel answers nothing that comes to it: no
//     reset, no "port unreachable". The sockets must outlive the process for that to
//     hold while none runs: FDs gives them to who keeps them, Config.Adopt takes
//     them back, and what arrived meanwhile waits in the raw ones.
//   - Nothing is sent to a destination that Config.Refuse refuses, or for which the
//     kernel itself would be the receiver.
//   - Write and the Masquerade methods do not wait; for a destination that was not
//     asked about in the last seconds they make a few system calls.
//
// It needs CAP_NET_RAW, forwarding, and accept_local on the device: see
// kernel.ForwardOwn. The tests run in namespaces of their own and need root.
package rawport

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/netctl/netctl/internal/packet"
)

// Defaults. The ports are above node ports, among those that Linux gives to
// sockets by itself; those that somebody has are left out. A port is two sockets,
// of some 7 kB together, so there are more only when they are short. A server that
// has closed a connection first remembers it for a minute and may refuse the next
// one from the same port for a second, so few ports make connections slow.
const (
	defaultFirst = 40000
	defaultPorts = 1024
	defaultMost  = 24576
	defaultMTU   = 1420
	growBy       = 512
)

// Config is what New needs: Out and Send.
type Config struct {
	// Out takes a packet from the outside: virtio-net header and IP packet, maybe a
	// super-packet. The buffer is borrowed until Out returns and may be changed. It
	// is called from several goroutines at once.
	Out func(buf []byte)
	// Send gives a packet to the kernel to forward: a write to a TUN.
	Send func(buf []byte) error
	// Refuse says why nothing may be sent to an address on behalf of a pod; nil:
	// nothing is refused but what the kernel would take for its own.
	Refuse func(dst netip.Addr) error

	// First is the lowest source port, Ports how many there are at first and Most how
	// many there may be: so many connections can exist to one address, port and
	// protocol.
	First       uint16
	Ports, Most int
	// Grown is told the sockets of each new port, borrowed as those of FDs are.
	Grown func(fds []int)
	// Adopt are the sockets of a predecessor's FDs. They are the Port's own from then
	// on, whatever New returns.
	Adopt []int

	MTU    int          // of the pods; default 1420
	Logger *slog.Logger // nil: silent
}

// Validate reports everything that is wrong with the configuration.
func (c *Config) Validate() error {
	var errs []error
	if c.Out == nil || c.Send == nil {
		errs = append(errs, errors.New("no output"))
	}
	if most := max(c.Ports, c.Most); c.Ports < 0 || c.Most < 0 || int(c.First)+most > 1<<16 {
		errs = append(errs, fmt.Errorf("%d source ports from %d on: there are 65535 ports", most, c.First))
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
		errs = append(errs, fmt.Errorf("mtu %d is not within 1280 and 65535", c.MTU))
	}
	return errors.Join(errs...)
}

// ErrRefused is what Write returns for a destination that may not be sent to.
var ErrRefused = errors.New("destination is not outside the host")

// Port is an exit of the router. Its methods may be called from any goroutine.
type Port struct {
	cfg   Config // immutable after New
	began time.Time
	seed  maphash.Seed
	raws  []*rawSocket // immutable after New
	ports atomic.Pointer[[]uint16]
	short chan struct{}

	mu        sync.Mutex
	closed    bool                    // guarded by mu
	reserved  map[uint16]*reservation // guarded by mu; ports are its keys, sorted
	conflicts []uint16                // guarded by mu
	tried     int                     // guarded by mu; ports from First on

	dests     [destinations]atomic.Pointer[destination]
	truncated atomic.Uint64
	panics    atomic.Uint64
}

// New reserves the ports and opens the raw sockets. What arrives is queued until
// Run. The caller owes it Close.
func New(cfg Config) (*Port, error) {
	if err := cfg.Validate(); err != nil {
		closeAll(cfg.Adopt)
		return nil, fmt.Errorf("rawport: %w", err)
	}
	if cfg.First == 0 {
		cfg.First = defaultFirst
	}
	room := 1<<16 - int(cfg.First)
	if cfg.Ports == 0 {
		cfg.Ports = min(defaultPorts, room)
	}
	if cfg.Most == 0 {
		cfg.Most = min(defaultMost, room)
	}
	cfg.Most = max(cfg.Most, cfg.Ports)
	if cfg.MTU == 0 {
		cfg.MTU = defaultMTU
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Port{
		cfg: cfg, began: time.Now(), seed: maphash.MakeSeed(),
		short: make(chan struct{}, 1), reserved: make(map[uint16]*reservation),
	}
	p.ports.Store(new([]uint16))
	p.adopt(cfg.Adopt)
	err := p.openRaws()
	if err == nil {
		_, err = p.reserve(cfg.Ports)
	}
	if err == nil && len(*p.ports.Load()) == 0 {
		err = fmt.Errorf("all ports from %d to %d are in use by other programs", cfg.First, int(cfg.First)+cfg.Ports-1)
	}
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("rawport: %w", err)
	}
	return p, nil
}

// Write gives one packet to the kernel: the datapath's port.
func (p *Port) Write(buf []byte) error {
	dst, ok := destinationOf(buf)
	if !ok || p.Source(dst) == (packet.Addr{}) {
		return ErrRefused
	}
	return p.cfg.Send(buf)
}

// ownTries is how many ports are looked at for one of the client's own half.
const ownTries = 64

// SourcePort returns one of the reserved ports: n is a random number to choose by.
// Each client has some half of them, another than others have, so that one that
// takes all that it can towards a server leaves everybody else about half of theirs.
func (p *Port) SourcePort(client packet.Addr, n uint32) uint16 {
	type mine struct {
		client packet.Addr
		port   uint16
	}
	ports := *p.ports.Load()
	for i := range ownTries {
		port := ports[(int(n)+i)%len(ports)]
		if maphash.Comparable(p.seed, mine{client, port})&1 == 0 {
			return port
		}
	}
	return ports[int(n)%len(ports)] // there are very few
}

// Short has Run reserve more ports, if there may be more.
func (p *Port) Short() {
	select {
	case p.short <- struct{}{}:
	default:
	}
}

// Ports returns the reserved source ports, Conflicts those that somebody else has.
func (p *Port) Ports() []uint16 { return slices.Clone(*p.ports.Load()) }

// Conflicts returns the ports that could not be reserved.
func (p *Port) Conflicts() []uint16 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.conflicts)
}

// Truncated returns how many packets were longer than any may be.
func (p *Port) Truncated() uint64 { return p.truncated.Load() }

// Panics returns how many packets met a bug and were dropped.
func (p *Port) Panics() uint64 { return p.panics.Load() }

// Run carries packets from the outside to Out until the context ends or a socket
// fails. It is called once: what is not read then stays for who adopts the sockets.
func (p *Port) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make([]error, len(p.raws))
	var wg sync.WaitGroup
	for i, s := range p.raws {
		wg.Go(func() {
			defer stop()
			errs[i] = s.run(ctx, p)
		})
	}
	p.grow(ctx)
	for _, s := range p.raws {
		s.wake()
	}
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

// FDs returns the descriptors that must outlive the process, borrowed until Close.
func (p *Port) FDs() []int {
	var fds []int
	for _, s := range p.raws {
		fds = append(fds, s.fd)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.reserved {
		fds = append(fds, r.tcp, r.udp)
	}
	return fds
}

// groupPorts is how many ports are in a group: two sockets each, which fit into one
// message between processes.
const groupPorts = 100

// Groups is FDs in parts of at most twice groupPorts. A port's sockets are always in
// the same group, however many ports there are.
func (p *Port) Groups() [][]int {
	groups := make([][]int, 1)
	for _, s := range p.raws {
		groups[0] = append(groups[0], s.fd)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for port, r := range p.reserved {
		i := 1 + int(port-p.cfg.First)/groupPorts
		for len(groups) <= i {
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], r.tcp, r.udp)
	}
	return groups
}

// Close closes the sockets. Copies that others keep go on reserving the ports.
func (p *Port) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	for _, s := range p.raws {
		s.close()
	}
	for _, r := range p.reserved {
		r.close()
	}
}
