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
// super-packets and without fragments. docs/decisions/0010-packets-to-the-outside.md
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
// It needs CAP_NET_RAW, forwarding, and accept_local on the device: Usable says
// what is missing. The tests run in namespaces of their own and need root.
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

// Defaults. The ports are above those that Linux gives to sockets by itself, and
// above node ports; those of them that somebody has bound are left out.
const (
	defaultFirst = 61000
	defaultPorts = 1024
	defaultMTU   = 1420
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

	// First is the lowest source port and Ports how many there are: so many
	// connections can exist to one address, port and protocol.
	First uint16
	Ports int
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
	if c.Ports < 0 || int(c.First)+c.Ports > 1<<16 {
		errs = append(errs, fmt.Errorf("%d source ports from %d on: there are 65535 ports", c.Ports, c.First))
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
	cfg       Config // immutable after New
	began     time.Time
	seed      maphash.Seed
	reserved  map[uint16]*reservation // immutable after New
	ports     []uint16                // its keys, sorted
	conflicts []uint16
	raws      []*rawSocket
	dests     [destinations]atomic.Pointer[destination]
	truncated atomic.Uint64
	closeOnce sync.Once
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
	if cfg.Ports == 0 {
		cfg.Ports = min(defaultPorts, 1<<16-int(cfg.First))
	}
	if cfg.MTU == 0 {
		cfg.MTU = defaultMTU
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Port{cfg: cfg, began: time.Now(), seed: maphash.MakeSeed(), reserved: make(map[uint16]*reservation)}
	if err := errors.Join(p.adopt(cfg.Adopt), p.openRaws(), p.reserve()); err != nil {
		p.Close()
		return nil, fmt.Errorf("rawport: %w", err)
	}
	if len(p.conflicts) > 0 {
		cfg.Logger.Warn("ports for connections to the outside are in use by other programs", "ports", p.conflicts)
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

// SourcePort returns one of the reserved ports: n is a random number to choose by.
func (p *Port) SourcePort(n uint32) uint16 {
	return p.ports[int(n)%len(p.ports)]
}

// Ports returns the reserved source ports, Conflicts those that somebody else has.
func (p *Port) Ports() []uint16     { return slices.Clone(p.ports) }
func (p *Port) Conflicts() []uint16 { return slices.Clone(p.conflicts) }

// Run carries packets from the outside to Out until the context ends or a socket
// fails.
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
	<-ctx.Done()
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
	for _, n := range p.ports {
		r := p.reserved[n]
		fds = append(fds, r.tcp, r.udp)
	}
	return fds
}

// Close closes the sockets. Copies that others keep go on reserving the ports.
func (p *Port) Close() {
	p.closeOnce.Do(func() {
		for _, s := range p.raws {
			s.close()
		}
		for _, r := range p.reserved {
			r.close()
		}
	})
}
